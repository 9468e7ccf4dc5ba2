"""`batchproj doctor` tries what a run stands on: it says yes where the tests run, and names what is broken."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from in_process import command
from proxy import proxied
from runs import start
from s3fs import S3FileSystem

from batchproj import doctor, retry
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
        "libraries",
        "machine",
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
    assert [line.split()[1].rstrip(":") for line in said.splitlines()][:2] == ["libraries", "machine"]


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
    assert (there.state, "create the bucket" in str(there.advice)) == ("failed", True)


BROKEN = """if True:
    import sys
    from batchproj import cli

    sys.modules[sys.argv.pop(1)] = None
    cli.main()
"""


@pytest.mark.parametrize("library", [pytest.param("av", marks=pytest.mark.long), "torch"])
def test_a_library_that_does_not_load_is_named_and_the_code_is_2(library: str) -> None:
    line = [sys.executable, "-c", BROKEN, library, "doctor", "--json"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    (check,) = json.loads(done.stdout)["checks"]
    assert (check["name"], check["state"], library in check["found"]) == ("libraries", "failed", True)
    assert done.stderr.splitlines()[-1] == "error: this machine is not ready: libraries; see above what to do"


@pytest.mark.usefixtures("without")
def test_places_are_looked_at_as_places_whatever_they_are_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    places = ["ray", "file", "s3://key:secret@bucket/c", ""]
    found = list(examine(places))[-len(places) :]
    assert [finding.name for finding in found] == ["ray", "file", "s3://***@bucket/c", ""]
    assert [finding.state for finding in found] == ["ok", "failed", "failed", "failed"]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.usefixtures("without")
def test_a_store_that_is_away_is_75_and_the_patience_of_before_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "STORE_S", 0.5)
    before = retry.patience_s()
    for name, value in {"ENDPOINT_URL": "http://127.0.0.1:9", "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    S3FileSystem.clear_instance_cache()
    try:
        assert command("doctor", "s3://away/c").returncode == 75
    finally:
        S3FileSystem.clear_instance_cache()
    assert retry.patience_s() == before


def test_a_cache_that_cannot_be_written_stops_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHPROJ_CACHE", "/proc/x/y")
    finding = doctor._cache()
    assert (finding.state, "BATCHPROJ_CACHE" in str(finding.advice)) == ("note", True)


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


@pytest.mark.usefixtures("without")
@pytest.mark.parametrize(
    ("file", "limit", "expected"),
    [
        ("memory.max", f"{2**30}\n", "1.0 GiB of memory"),
        ("memory/memory.limit_in_bytes", str(2**30), "1.0 GiB of memory"),
        ("memory.max", "max\n", None),
        ("memory/memory.limit_in_bytes", "9223372036854771712\n", None),
    ],
)
def test_memory_is_what_a_container_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, limit: str, expected: str | None
) -> None:
    monkeypatch.setattr(doctor, "CGROUP", tmp_path / "none")
    (unlimited,) = named([], "machine")
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(limit)
    monkeypatch.setattr(doctor, "CGROUP", tmp_path)
    (machine,) = named([], "machine")
    if expected is None:
        assert machine == unlimited
    else:
        assert machine.state == "note"
        assert expected in machine.found
