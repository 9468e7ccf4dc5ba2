"""A store that is away, busy or silent: whole runs in processes of their own, behind a proxy that makes the trouble."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fsspec
import pytest
from conftest import write_words
from in_process import run, without_ray
from proxy import Proxy, Request

import batchproj
from batchproj.collection.lease import records
from batchproj.objectstore import Folder

TEXTS = 24


@pytest.fixture
def proxy(s3_endpoint: str) -> Iterator[Proxy]:
    with Proxy(s3_endpoint) as proxy:
        yield proxy


@pytest.fixture
def bucket(s3_bucket: str, tmp_path: Path) -> str:
    """A bucket with some texts."""
    for number in range(TEXTS):
        write_words(tmp_path / "texts" / f"{number:02d}.txt", number)
    fsspec.filesystem("s3").put(str(tmp_path / "texts") + "/", f"{s3_bucket}/texts/", recursive=True)
    return s3_bucket


def start(bucket: str, space: Path, proxy: Proxy, recipe: str = "") -> subprocess.Popen[str]:
    """`batchproj embed` behind the proxy, four units."""
    file = space.with_name("outage.yaml")
    file.write_text(f"units: {{max_items: 8}}\n{recipe}")
    arguments = ["embed", f"{bucket}/texts", f"{bucket}/c", "--space", space, "--recipe", file, "--json"]
    return subprocess.Popen(
        [sys.executable, "-m", "batchproj.cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "AWS_ENDPOINT_URL": proxy.endpoint},
    )


def finished(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    """What a command has printed, once it has ended as expected."""
    out, said = process.communicate(timeout=240)
    assert process.returncode == code, said
    return out, said


def vectors(bucket: str) -> dict[str, list[float]]:
    rows = batchproj.open(f"{bucket}/c").table().to_pylist()
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["text"]: row["vector"] for row in rows}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_space: Path) -> dict[str, list[float]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    for number in range(TEXTS):
        write_words(folder / "texts" / f"{number:02d}.txt", number)
    with without_ray():
        run(folder / "texts", folder / "c", tiny_space)
    return {row["text"]: row["vector"] for row in batchproj.open(str(folder / "c")).table().to_pylist()}


def is_read(request: Request) -> bool:
    return request.method == "GET" and "/texts/" in request.path


def wait_for(proxy: Proxy, seen: object, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not proxy.count(seen):  # type: ignore[arg-type]
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


@pytest.mark.long
def test_twenty_seconds_away_are_a_pause_that_is_talked_about(
    bucket: str, tiny_space: Path, proxy: Proxy, undisturbed: dict[str, list[float]]
) -> None:
    process = start(bucket, tiny_space, proxy)
    wait_for(proxy, is_read, process)
    proxy.down.set()
    time.sleep(20)
    proxy.down.clear()
    out, said = finished(process)
    assert json.loads(out)["embedded"] == TEXTS
    lines = [line for line in said.splitlines() if "storage does not answer" in line]
    assert len(lines) >= 2, said
    assert "storage answers again" in said
    assert vectors(bucket) == undisturbed


@pytest.mark.long
def test_longer_away_than_the_patience_is_exit_75_and_the_rerun_goes_on(
    bucket: str, tiny_space: Path, proxy: Proxy, undisturbed: dict[str, list[float]]
) -> None:
    process = start(bucket, tiny_space, proxy, "retry_s: 4")
    wait_for(proxy, is_read, process)
    proxy.down.set()
    out, said = finished(process, 75)
    assert out == ""
    assert "storage is away" in said
    assert "run the same command again" in said
    assert "Traceback" not in said
    proxy.down.clear()
    out, _ = finished(start(bucket, tiny_space, proxy))
    report = json.loads(out)
    assert (report["run"], report["embedded"]) == ("000001", TEXTS)
    assert vectors(bucket) == undisturbed


@pytest.mark.long
def test_one_answer_in_twenty_is_busy(
    bucket: str, tiny_space: Path, proxy: Proxy, undisturbed: dict[str, list[float]]
) -> None:
    proxy.fail(0.05, seed=1)
    out, _ = finished(start(bucket, tiny_space, proxy))
    assert json.loads(out)["embedded"] == TEXTS
    assert vectors(bucket) == undisturbed


@pytest.mark.long
def test_lost_answers_of_the_commit_are_no_second_commit(
    bucket: str, tiny_space: Path, proxy: Proxy, undisturbed: dict[str, list[float]]
) -> None:
    """The store has done what was asked, and the connection ends before it can say so."""
    for part in ("/log/00000001", "/log/00000002", "/_versions/", "/tags/live", "/snapshots/"):
        proxy.drop_answer(lambda request, part=part: request.method == "PUT" and part in request.path)  # type: ignore[misc]
    out, _ = finished(start(bucket, tiny_space, proxy))
    report = json.loads(out)
    assert report["embedded"] == TEXTS
    assert vectors(bucket) == undisturbed
    assert [record.kind for record in records(Folder(f"{bucket}/c"), 10)] == ["lease", "commit"]


@pytest.mark.long
def test_an_object_that_changes_while_it_is_embedded_is_not_mixed_up(
    bucket: str, s3_endpoint: str, tiny_space: Path, proxy: Proxy, undisturbed: dict[str, list[float]]
) -> None:
    """Overwritten between plan and read: not embedded under the version that was listed, but by the next run."""
    overwritten = threading.Event()

    def overwrite(request: Request) -> bool:
        if is_read(request) and request.path.endswith("/07.txt") and not overwritten.is_set():
            fsspec.filesystem("s3").pipe_file(f"{bucket}/texts/07.txt", b"w1 w2 w3 w4")
            overwritten.set()
        return False

    proxy.fail_next(overwrite)
    out, _ = finished(start(bucket, tiny_space, proxy))
    report = json.loads(out)
    assert (report["embedded"], report["quarantined"]) == (TEXTS - 1, 1)
    out, _ = finished(start(bucket, tiny_space, proxy))
    report = json.loads(out)
    assert (report["embedded"], report["unchanged"], report["quarantined"]) == (1, TEXTS - 1, 0)
    found = vectors(bucket)
    assert found.pop("w1 w2 w3 w4")
    assert found.items() <= undisturbed.items()


def test_a_store_without_put_if_absent_is_refused_unless_one_writes_alone(
    bucket: str, tiny_space: Path, proxy: Proxy
) -> None:
    proxy.ignore_conditions = True
    _, said = finished(start(bucket, tiny_space, proxy), 2)
    assert "ignores put-if-absent" in said
    assert "--single-writer" in said
    assert not Folder(f"{bucket}/c").exists("store.json")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.long)]
)
def test_a_run_that_waits_for_its_store_can_be_stopped(
    number: signal.Signals, code: int, bucket: str, tiny_space: Path, proxy: Proxy
) -> None:
    process = start(bucket, tiny_space, proxy)
    wait_for(proxy, is_read, process)
    proxy.down.set()
    time.sleep(5)  # long enough for every call to be waiting
    process.send_signal(number)
    out, said = process.communicate(timeout=20)
    assert (process.returncode, out) == (code, ""), said
    assert "run the same command again" in said


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it printed."""

    code: int
    out: str
    said: str


def twice_on_a_small_disk(disk: Path, first: int, then: int, command: list[str]) -> list[Ended]:
    """Run a command on a disk of `first` bytes mounted at `disk`, and again when it has been enlarged."""
    namespace = ["unshare", "--map-root-user", "--mount"]
    if subprocess.run([*namespace, "mount", "-t", "tmpfs", "none", disk], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a disk of his own")
    script = (
        f'mount -t tmpfs -o size={first} none "$0"; "$@" >"$OUT/1.out" 2>"$OUT/1.said"; echo $? >"$OUT/1.code"; '
        f'mount -o remount,size={then} "$0"; "$@" >"$OUT/2.out" 2>"$OUT/2.said"; echo $? >"$OUT/2.code"'
    )
    printed = disk.with_name("printed")
    printed.mkdir()
    environment = {**os.environ, "OUT": str(printed)}
    subprocess.run([*namespace, "sh", "-c", script, str(disk), *command], env=environment, check=True, timeout=240)
    read = [{name: (printed / f"{n}.{name}").read_text() for name in ("code", "out", "said")} for n in (1, 2)]
    return [Ended(int(each["code"]), each["out"], each["said"]) for each in read]


@pytest.mark.parametrize(
    ("room", "commits"),
    [pytest.param(40_000, False, id="units", marks=pytest.mark.long), pytest.param(84_000, True, id="table")],
)
def test_a_full_disk_is_exit_75_and_the_rerun_goes_on(
    room: int, commits: bool, tiny_space: Path, tmp_path: Path
) -> None:
    for number in range(TEXTS):
        write_words(tmp_path / "texts" / f"{number:02d}.txt", number)
    disk = tmp_path / "disk"
    disk.mkdir()
    arguments = ["embed", tmp_path / "texts", disk / "c", "--space", tiny_space, "--json"]
    command = [sys.executable, "-m", "batchproj.cli", *map(str, arguments)]
    first, second = twice_on_a_small_disk(disk, room, 64_000_000, command)
    assert (first.code, first.out) == (75, ""), first.said
    assert "no space left" in first.said
    assert "run the same command again" in first.said
    assert ("checking, indexing and switching" in first.said) == commits
    assert second.code == 0, second.said
    report = json.loads(second.out)
    assert (report["run"], report["embedded"], report["quarantined"]) == ("000001", TEXTS, 0)
