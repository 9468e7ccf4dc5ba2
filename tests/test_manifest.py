"""A run adds what it changed to the manifest, and all that read it see what a whole one would say."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_picture, write_words
from in_process import OPTIONS, quiet, run, vectors, without_ray

from batchproj.collection import manifest
from batchproj.collection.snapshot import Part, Snapshot
from batchproj.embed import Options
from batchproj.errors import BatchprojError, CollectionError
from batchproj.explain import explain
from batchproj.forget import forget
from batchproj.gc import gc
from batchproj.index import VectorTable, live_snapshot
from batchproj.objectstore import Folder
from batchproj.recipe import Recipe, Units
from batchproj.switch import rollback
from batchproj.verify import verify

SMALL_PARTS = Options(Recipe(units=Units(max_items=2), read_threads=2))
"""A change of one item writes a part of two again, and so two rows of the manifest."""


@pytest.fixture(autouse=True)
def _no_ray() -> Iterator[None]:
    with without_ray():
        yield


@pytest.fixture(autouse=True)
def _never_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "CHANGED_SHARE", 1.0)


def live(collection: Path) -> Snapshot:
    found = live_snapshot(Folder(str(collection)))
    assert found is not None
    return found


def items(collection: Path, scratch: Path) -> list[dict[str, object]]:
    """The rows of the live manifest, by item."""
    scratch.mkdir()
    files = manifest.fetch(Folder(str(collection)), live(collection), scratch)
    rows: list[dict[str, object]] = duckdb.sql(manifest.rows(files)).to_arrow_table().sort_by("item").to_pylist()
    return rows


def change(corpus: Path, step: int) -> None:
    """Every kind of change: content, touch, rename, delete, new, a bad file and its mending."""
    if step == 0:
        write_words(corpus / "d0/item0.txt", 100)
        (corpus / "d1/item1.png").unlink()
        write_words(corpus / "d9/new.txt", 200)
        (corpus / "d9/bad.png").write_bytes(b"no picture")
    elif step == 1:
        (corpus / "d9/new.txt").rename(corpus / "d9/renamed.txt")
        write_picture(corpus / "d9/bad.png", 77)
        os.utime(corpus / "d2/item2.txt", (5, 5))
    else:
        (corpus / "d9/renamed.txt").unlink()
        write_picture(corpus / "d1/item1.png", 78)  # back under the name of one that was gone
        (corpus / "d0/item0.txt").write_bytes(b"")


def test_the_newest_row_counts_and_what_is_gone_is_not_there(tmp_path: Path) -> None:
    def file(number: int, rows: list[tuple[str, str]]) -> Path:
        columns = {"item": [item for item, _ in rows], "status": [status for _, status in rows]}
        pq.write_table(pa.table({**columns, "part": [f"p{number}"] * len(rows)}), tmp_path / f"{number}.parquet")
        return tmp_path / f"{number}.parquet"

    embedded, gone = "embedded", "gone"
    files = [
        file(0, [("a", embedded), ("b", embedded), ("c", embedded)]),
        file(1, [("a", embedded), ("b", gone), ("d", embedded)]),
        file(2, [("a", embedded), ("d", gone), ("b", "quarantined")]),
    ]
    found = sorted(duckdb.sql(manifest.rows(files)).fetchall())
    assert found == [("a", embedded, "p2"), ("b", "quarantined", "p2"), ("c", embedded, "p0")]
    assert sorted(duckdb.sql(manifest.rows(files[:2])).fetchall()) == [
        *[("a", embedded, "p1"), ("c", embedded, "p0"), ("d", embedded, "p1")]
    ]
    assert duckdb.sql(manifest.rows(files[:1])).fetchall() == [(item, embedded, "p0") for item in "abc"]


def test_the_changes_together_say_what_a_whole_manifest_says(
    corpus: Path, tiny_space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adding, whole = tmp_path / "adding", tmp_path / "whole"
    run(corpus, adding, tiny_space, SMALL_PARTS)
    shutil.copytree(adding, whole)
    for step in range(3):
        change(corpus, step)
        one = run(corpus, adding, tiny_space, SMALL_PARTS)
        with monkeypatch.context() as patched:
            patched.setattr(manifest, "CHANGED_SHARE", 0.0)
            other = run(corpus, whole, tiny_space, SMALL_PARTS)
        assert one.model_copy(update={"seconds": 0, "items_per_s": {}, "commit": 0}) == other.model_copy(
            update={"seconds": 0, "items_per_s": {}, "commit": 0}
        )
        assert [file.name for file in live(adding).manifest] == [f"{n:06d}" for n in range(1, step + 3)]
        assert [file.name for file in live(whole).manifest] == [f"{step + 2:06d}"]
        assert items(adding, tmp_path / f"a{step}") == items(whole, tmp_path / f"w{step}")
        tables = [pq.read_table(c / f"quarantine/{one.run}.parquet") for c in (adding, whole)]
        assert tables[0].equals(tables[1])
        assert vectors(adding) == vectors(whole)
    assert verify(str(adding), quiet).damaged == []


def test_a_commit_writes_what_changed_and_compares_the_keys_of_what_changed(
    corpus: Path, tiny_space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(corpus, tmp_path / "c", tiny_space, SMALL_PARTS)
    write_words(corpus / "d9/new.txt", 200)
    (corpus / "d1/item1.png").unlink()
    read: list[int] = []
    ids = VectorTable.ids

    def counted(self: VectorTable, version: int, without: int | None = None) -> pa.RecordBatchReader:
        table = ids(self, version, without).read_all()
        read.append(table.num_rows)
        return table.to_reader()

    monkeypatch.setattr(VectorTable, "ids", counted)
    report = run(corpus, tmp_path / "c", tiny_space, SMALL_PARTS)
    assert (report.embedded, report.deleted, report.unchanged) == (1, 1, 23)
    new = live(tmp_path / "c").manifest[1]
    assert new.rows in (2, 3)  # new, gone, and perhaps a neighbour whose part has another name
    # the one fragment of the first run lost a row: 24 rows before, 23 after and the new one
    assert read == [24, 24]
    write_words(corpus / "d9/newer.txt", 201)
    run(corpus, tmp_path / "c", tiny_space, SMALL_PARTS)
    assert read[2:] == [1, 0]
    assert live(tmp_path / "c").manifest[2].rows == 1


def test_a_wrong_key_among_the_new_rows_is_seen(
    corpus: Path, tiny_space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(corpus, tmp_path / "c", tiny_space)
    before = vectors(tmp_path / "c")
    write_words(corpus / "d9/new.txt", 200)
    rows = VectorTable._rows

    def misnamed(self: VectorTable, part: Part) -> pa.Table:
        table = rows(self, part)
        field = table.schema.field("id")
        return table.set_column(0, field, pa.array(["another"] * table.num_rows, field.type))

    with monkeypatch.context() as patched:
        patched.setattr(VectorTable, "_rows", misnamed)
        with pytest.raises(BatchprojError, match=r"the Lance table has row \w+ \d times, the manifest \d times"):
            run(corpus, tmp_path / "c", tiny_space)
    assert vectors(tmp_path / "c") == before
    assert run(corpus, tmp_path / "c", tiny_space).rows == len(before) + 1


@pytest.mark.parametrize(("setting", "value"), [("CHANGED_SHARE", 0.1), ("MOST_FILES", 2)])
def test_many_changes_or_files_are_followed_by_a_whole_one(
    setting: str, value: float, corpus: Path, tiny_space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, setting, value)
    run(corpus, tmp_path / "c", tiny_space)
    files = []
    for number in range(4):
        write_words(corpus / f"d9/new{number}.txt", 200 + number)
        run(corpus, tmp_path / "c", tiny_space)
        files.append([int(file.name) for file in live(tmp_path / "c").manifest])
    # a tenth of 24 to 28 items are two new ones
    assert files == ([[1, 2], [1, 2, 3], [4], [4, 5]] if setting == "CHANGED_SHARE" else [[1, 2], [3], [3, 4], [5]])


def test_gc_keeps_the_files_that_a_kept_run_builds_on_and_forgets_their_runs(
    corpus: Path, tiny_space: Path, tmp_path: Path
) -> None:
    collection = tmp_path / "c"
    run(corpus, collection, tiny_space)
    for step in range(2):
        change(corpus, step)
        run(corpus, collection, tiny_space)
    expected, before = vectors(collection), items(collection, tmp_path / "before")
    done = gc(str(collection), quiet, keep=1, apply=True)
    assert (done.kept, done.runs) == (["000003"], ["000001", "000002"])
    left = {file.name for file in (collection / "snapshots").iterdir()}
    assert left == {"000003.json", *(f"{number:06d}.manifest.parquet" for number in (1, 2, 3))}
    assert verify(str(collection), quiet).damaged == []
    assert (vectors(collection), items(collection, tmp_path / "after")) == (expected, before)
    again = gc(str(collection), quiet, keep=1, apply=True)
    assert (again.runs, again.files) == ([], 0)
    change(corpus, 2)
    assert run(corpus, collection, tiny_space).run == "000004"
    assert verify(str(collection), quiet).damaged == []


def test_damage_to_a_file_is_damage_to_every_run_that_builds_on_it(
    corpus: Path, tiny_space: Path, tmp_path: Path
) -> None:
    collection = tmp_path / "c"
    run(corpus, collection, tiny_space)
    change(corpus, 0)
    run(corpus, collection, tiny_space)
    base = collection / "snapshots/000001.manifest.parquet"
    data = base.read_bytes()
    for damage in (data[:-8], None):
        base.unlink() if damage is None else base.write_bytes(damage)
        found = verify(str(collection), quiet)
        assert [(each.kind, each.file, each.runs) for each in found.damaged] == [
            ("manifest", "snapshots/000001.manifest.parquet", ["000001", "000002"])
        ]
    base.write_bytes(data)
    (collection / "snapshots/000002.manifest.parquet").unlink()
    assert verify(str(collection), quiet).of("000001") == []
    assert rollback(str(collection), None, quiet) == ("000002", "000001")
    assert run(corpus, collection, tiny_space).run == "000003"
    assert [file.name for file in live(collection).manifest] == ["000001", "000003"]
    assert verify(str(collection), quiet).of("000003") == []


def test_a_manifest_with_other_bytes_is_refused_before_anything_follows_from_it(
    corpus: Path, tiny_space: Path, tmp_path: Path
) -> None:
    collection = tmp_path / "c"
    run(corpus, collection, tiny_space)
    write_words(corpus / "d9/new.txt", 200)
    run(corpus, collection, tiny_space)
    changes = collection / "snapshots/000002.manifest.parquet"
    pq.write_table(pq.read_table(changes).slice(0, 0), changes)  # sound Parquet, of an attempt that lost its lease
    write_words(corpus / "d9/newer.txt", 201)
    for use in (
        lambda: run(corpus, collection, tiny_space),
        lambda: explain(str(collection), str(corpus / "d9/new.txt")),
    ):
        with pytest.raises(CollectionError, match=r"snapshots/000002.manifest.parquet of .* is damaged; .* verify"):
            use()
    assert rollback(str(collection), None, quiet) == ("000002", "000001")
    assert run(corpus, collection, tiny_space).rows == 26
    assert verify(str(collection), quiet).of("000003") == []


def test_explain_and_forget_look_into_every_file(corpus: Path, tiny_space: Path, tmp_path: Path) -> None:
    collection = tmp_path / "c"
    run(corpus, collection, tiny_space)
    change(corpus, 0)
    run(corpus, collection, tiny_space, OPTIONS)
    told = explain(str(collection), str(corpus / "d0/item0.txt"))
    assert (told.status, told.now, told.made_by) == ("embedded", "unchanged", "000002")
    assert explain(str(collection), str(corpus / "d2/item2.txt")).made_by == "000001"
    with pytest.raises(BatchprojError, match="has no item"):
        explain(str(collection), str(corpus / "d1/item1.png"))
    # gone from the source, but the first file has its name still
    done = forget(str(collection), str(corpus / "d1/item1.png"), quiet)
    assert "snapshots/000001.manifest.parquet" in done.held_by
    assert [file.name for file in live(collection).manifest] == ["000003"]
    assert verify(str(collection), quiet).damaged == []
