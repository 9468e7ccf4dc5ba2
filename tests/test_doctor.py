"""`batchproj doctor` tries what a run stands on: it says yes where the tests run, and names what is broken."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from in_process import command
from proxy import proxied
from runs import start

from batchproj import doctor
from batchproj.doctor import Finding, examine


def named(places: list[str], *names: str) -> list[Finding]:
    """What is found of these alone."""
    return [finding for finding in examine(places) if finding.name in names]


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> None:
    """The looks that take seconds are left out."""
    for look in ("_encoders", "_ray"):
        monkeypatch.setattr(doctor, look, lambda *_: Finding("left out", "ok", ""))


@pytest.mark.slow
def test_a_machine_that_runs_the_tests_is_ready(tmp_path: Path) -> None:
    run = start("doctor", tmp_path / "new" / "c", "--json")
    told, said = run.communicate(timeout=200)
    assert run.returncode == 0, said
    document = json.loads(told)
    found = {check["name"]: check for check in document["checks"]}
    assert document["ready"]
    assert list(found) == [
        "machine",
        "libraries",
        "arithmetic",
        "cache",
        "encoders",
        "ray",
        str(tmp_path / "new" / "c"),
    ]
    assert not [name for name, check in found.items() if check["state"] == "failed"]
    assert "text, image, audio" in found["encoders"]["found"]
    assert "a process of it has batchproj" in found["ray"]["found"]
    assert not list(tmp_path.iterdir())
    assert [line.split()[1].rstrip(":") for line in said.splitlines()][:2] == ["machine", "libraries"]


@pytest.mark.usefixtures("without")
def test_a_store_that_keeps_two_runs_apart_and_one_that_does_not(s3_endpoint: str, s3_bucket: str) -> None:
    (there,) = named([s3_bucket], s3_bucket)
    assert (there.state, there.advice) == ("ok", None)
    with proxied(s3_endpoint) as proxy:
        proxy.ignore_conditions = True
        (there,) = named([s3_bucket], s3_bucket)
    assert (there.state, "--single-writer" in str(there.advice)) == ("note", True)
    missing = f"{s3_bucket}-no-such"
    (there,) = named([missing], missing)
    assert there.state == "failed"


@pytest.mark.usefixtures("without")
def test_a_library_that_does_not_load_is_named_and_the_code_is_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    done = command("doctor")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "error: this machine is not ready: libraries; see above what to do"


@pytest.mark.parametrize("error", [ValueError("no such\nthing"), OSError(5, "Input/output error")])
def test_whatever_a_look_meets_the_others_are_taken(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def breaks(*_: Any) -> Finding:
        raise error

    monkeypatch.setattr(doctor, "_encoders", breaks)
    monkeypatch.setattr(doctor, "_ray", lambda *_: Finding("ray", "ok", ""))
    encoders, ray = named([], "encoders", "ray")
    assert (encoders.state, ray.state) == ("failed", "ok")
    assert encoders.found == f"{type(error).__name__}: {' '.join(str(error).split())}"


@pytest.mark.usefixtures("without")
def test_little_memory_and_little_room_are_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**30))
    monkeypatch.setattr(doctor, "LEAST_MEMORY_GIB", 10.0**6)
    machine, cache = named([], "machine", "cache")
    assert (machine.state, cache.state) == ("note", "note")
    assert cache.found.startswith("1.0 GiB free")
