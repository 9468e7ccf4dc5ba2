"""What no kept run refers to goes, and whatever a kept one needs stays, wherever gc is stopped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from conftest import write_words
from in_process import once, quiet, run, vectors, without_ray

import batchproj
from batchproj import gc as module_gc
from batchproj.errors import CollectionError, TryLater, UsageError
from batchproj.gc import gc
from batchproj.index import VectorTable
from batchproj.objectstore import Folder
from batchproj.switch import rollback
from batchproj.tags import Tags
from batchproj.verify import verify


@pytest.fixture(autouse=True)
def _no_ray() -> Iterator[None]:
    with without_ray():
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("made")


@pytest.fixture
def four_runs(corpus: Path, tiny_space: Path, tmp_path: Path, made: Path) -> Path:
    """A collection after four runs; each changed one text and the last lost an object."""

    def make(folder: Path) -> None:
        run(corpus, folder, tiny_space)
        for number in range(3):
            change(number)
            run(corpus, folder, tiny_space)

    def change(number: int) -> None:
        file = corpus / ("d0/item0.txt" if number < 2 else "d2/item2.txt")  # what the second run made goes first
        write_words(file, 100 + number)
        os.utime(file, (number, number))
        if number == 2:
            (corpus / "d0/item3.png").unlink(missing_ok=True)

    found = once(made / "four-runs", tmp_path / "c", make)
    for number in range(3):
        change(number)
    return found


def tree(collection: Path) -> dict[str, int]:
    """Name and time of writing of every file but the lease's."""
    return {
        str(file.relative_to(collection)): file.stat().st_mtime_ns
        for file in collection.rglob("*")
        if file.is_file() and file.name != "lock.json" and "log" not in file.relative_to(collection).parts
    }


def check_sound(collection: object, live: dict[str, bytes]) -> None:
    found = verify(str(collection), quiet)
    assert found.damaged == []
    assert vectors(collection) == live


def test_a_dry_run_tells_what_goes_and_removes_nothing(four_runs: Path) -> None:
    before = tree(four_runs)
    log = len(list((four_runs / "log").iterdir()))
    would = gc(str(four_runs), quiet, keep=2)
    assert (would.applied, would.runs, would.kept) == (False, ["000001", "000002"], ["000003", "000004"])
    assert tree(four_runs) == before
    assert len(list((four_runs / "log").iterdir())) == log
    done = gc(str(four_runs), quiet, keep=2, apply=True)
    assert done == would.model_copy(update={"applied": True})
    assert set(before) - set(tree(four_runs)) >= set(would.names)


def test_what_kept_runs_need_stays_and_the_rest_goes(corpus: Path, tiny_space: Path, four_runs: Path) -> None:
    live = vectors(four_runs)
    size = sum(file.stat().st_size for file in four_runs.rglob("*") if file.is_file())
    done = gc(str(four_runs), quiet, keep=2, apply=True)
    check_sound(four_runs, live)
    freed = size - sum(file.stat().st_size for file in four_runs.rglob("*") if file.is_file())
    assert 0.8 * done.bytes < freed < 1.2 * done.bytes + 5_000  # the log has grown by a record, the ledger changed
    assert sorted(Tags(Folder(str(four_runs))).runs()) == ["000003", "000004"]
    states = [(entry["run"], entry["state"]) for entry in batchproj.open(str(four_runs)).runs()]
    assert states == [("000001", "collected"), ("000002", "collected"), ("000003", "done"), ("000004", "done")]
    assert not (four_runs / "units").exists()
    assert {file.stem for file in (four_runs / "snapshots").glob("*.json")} == {"000003", "000004"}
    again = gc(str(four_runs), quiet, keep=2, apply=True)
    assert (again.runs, again.files) == ([], 0)
    with pytest.raises(CollectionError, match="keeps no run 000002; kept are, beside the live 000004: 000003"):
        rollback(str(four_runs), "000002", quiet)
    assert rollback(str(four_runs), None, quiet) == ("000004", "000003")
    report = run(corpus, four_runs, tiny_space)
    assert (report.run, report.deleted) == ("000005", 1)
    check_sound(four_runs, live)


def test_the_live_run_stays_however_old(four_runs: Path) -> None:
    rollback(str(four_runs), "000001", quiet)
    live = vectors(four_runs)
    assert gc(str(four_runs), quiet, keep=2, apply=True).kept == ["000001", "000004"]
    assert gc(str(four_runs), quiet, keep=1, apply=True).kept == ["000001"]
    check_sound(four_runs, live)
    versions = set(VectorTable(Folder(str(four_runs))).versions())
    assert len(versions) <= 2  # the live one, and Lance's newest, which is the same again
    with pytest.raises(UsageError, match="keep 0 runs"):
        gc(str(four_runs), quiet, keep=0)


def test_a_reader_of_a_kept_run_does_not_notice(four_runs: Path) -> None:
    reader = batchproj.open(str(four_runs))
    gc(str(four_runs), quiet, keep=1, apply=True)
    assert len(reader.nearest(np.ones(24, np.float32), k=50)) == reader.table().num_rows == 23


class Stopped(BaseException):
    """Nothing catches this, as nothing catches kill -9."""


STEPS = [
    "gc.tags",
    "gc.ledger",
    "gc.snapshots",
    "gc.quarantine",
    "gc.parquet",
    "gc.features",
    "gc.units",
    "gc.table",
]


def test_stopped_after_any_step_the_collection_is_whole_and_the_next_gc_goes_on(
    four_runs: Path, tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = vectors(four_runs)
    ends = []
    for step in STEPS:
        copy = once(made / "four-runs", tmp_path / step, lambda _: None)

        def stop(name: str, at: str = step) -> None:
            if name == at:
                raise Stopped

        with monkeypatch.context() as patched:
            patched.setattr(module_gc, "failpoint", stop)
            with pytest.raises(Stopped):
                gc(str(copy), quiet, keep=2, apply=True)
        check_sound(copy, live)
        assert gc(str(copy), quiet, keep=2, apply=True).kept == ["000003", "000004"]
        check_sound(copy, live)
        states = [entry["state"] for entry in batchproj.open(str(copy)).runs()]
        assert states == ["collected", "collected", "done", "done"]
        ends.append({name for name in tree(copy) if not name.startswith("vectors.lance")})
    assert all(end == ends[0] for end in ends)


def test_what_an_unfinished_run_has_done_is_not_done_again(
    corpus: Path, tiny_space: Path, four_runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_words(corpus / "d0/new.txt", 77)

    def stop(*_: object) -> None:
        raise Stopped

    with monkeypatch.context() as patched:
        patched.setattr("batchproj.collection.manifest.write", stop)
        with pytest.raises(Stopped):
            run(corpus, four_runs, tiny_space)
    kept = {name: at for name, at in tree(four_runs).items() if name.startswith("units/000005")}
    assert kept
    (four_runs / "parquet/.0123.part").write_bytes(b"left by a write that was killed")
    done = gc(str(four_runs), quiet, keep=1, apply=True)
    assert "parquet/.0123.part" in done.names
    assert {name: at for name, at in tree(four_runs).items() if name.startswith("units/")} == kept
    report = run(corpus, four_runs, tiny_space)
    assert (report.run, report.embedded) == ("000005", 1)
    assert {name: at for name, at in tree(four_runs).items() if name in kept} == kept
    check_sound(four_runs, vectors(four_runs))


def test_a_taken_over_gc_removes_nothing_more(four_runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchproj.collection.lease.Lease.superseded", lambda _: object())
    with pytest.raises(TryLater, match="taken over"):
        gc(str(four_runs), quiet, keep=1, apply=True)
    assert (four_runs / "snapshots/000001.json").exists()


def test_nothing_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CollectionError, match="no collection"):
        gc(str(tmp_path), quiet)


def test_in_a_bucket(four_runs: Path, s3_bucket: str) -> None:
    live = vectors(four_runs)
    fsspec.filesystem("s3").put(f"{four_runs}/", f"{s3_bucket}/c/", recursive=True)
    assert gc(f"{s3_bucket}/c", quiet, keep=2, apply=True).runs == ["000001", "000002"]
    check_sound(f"{s3_bucket}/c", live)
    assert gc(f"{s3_bucket}/c", quiet, keep=2).files == 0
