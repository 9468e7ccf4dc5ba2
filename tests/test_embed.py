"""The main job on real files with a tiny CLIP: what is embedded, what is left alone, what is visible.

Without Ray but for some tests, whose runs give the same as the first one of `embedded`.
"""

from __future__ import annotations

import contextlib
import os
import pydoc
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_picture, write_words
from in_process import stopped_when_its_units_are_done, without_ray

import batchproj
from batchproj import execution, objectstore, run_checks
from batchproj.collection import commit, layout, lease, manifest
from batchproj.collection.ledger import Report
from batchproj.collection.plan import Plan
from batchproj.collection.unit import Receipt, Unit, finish, read_inputs
from batchproj.decode.limits import Limits
from batchproj.embed import Options, Watch
from batchproj.embed import embed as run_embed
from batchproj.errors import CollectionError, SourceError, TryLater, UsageError
from batchproj.index import connect
from batchproj.objectstore import Folder
from batchproj.recipe import Index, Recipe, Units
from batchproj.schema import outcome_schema, vector_schema
from batchproj.search import Collection
from batchproj.source.objects import item_id
from batchproj.space import open_space, resolve
from batchproj.stages import Job
from batchproj.switch import rollback

through_ray = pytest.mark.usefixtures("ray_here")

SMALL_UNITS = Recipe(units=Units(max_items=8))


@pytest.fixture(autouse=True)
def _no_ray(request: pytest.FixtureRequest) -> Iterator[None]:
    asked = any("ray_here" in mark.args for mark in request.node.iter_markers("usefixtures"))
    with contextlib.nullcontext() if asked else without_ray():
        yield


def embed(source: object, collection: object, space: Path, recipe: Recipe = SMALL_UNITS, **options: bool) -> Report:
    return run_embed(str(source), str(collection), resolve(open_space(str(space))), Options(recipe, **options), Watch())


def vectors(collection: object, root: object) -> dict[str, bytes]:
    """Bytes of every live vector, by path below the root of the source."""
    table = batchproj.open(str(collection)).table()
    prefix = str(root) if "://" in str(root) else f"file://{root}"
    keys = [uri.removeprefix(prefix).lstrip("/") for uri in table["uri"].to_pylist()]
    found = dict(zip(keys, (np.float32(v).tobytes() for v in table["vector"].to_pylist()), strict=True))
    assert len(found) == table.num_rows
    return found


def check_whole(collection: object, report: Report) -> None:
    """Parquet, Lance and the report agree; every vector is a unit vector; every id is unique."""
    opened = Collection(str(collection))
    table = opened.table()
    lance = opened._table.to_arrow()
    assert table.schema.equals(vector_schema(opened.dim))
    assert lance.schema.equals(table.schema)
    assert table.num_rows == lance.num_rows == report.rows
    assert sorted(table["id"].to_pylist()) == sorted(set(lance["id"].to_pylist()))
    norms = np.linalg.norm(np.stack(table["vector"].to_numpy()), axis=1)
    np.testing.assert_allclose(norms, 1, atol=1e-5)
    accounted = report.embedded + report.reprojected + report.copied + report.unchanged + report.quarantined
    assert accounted == report.items


def test_first_run_embeds_everything_once(corpus: Path, embedded: tuple[Path, Report]) -> None:
    collection, report = embedded
    assert (report.items, report.embedded, report.rows) == (24, 24, 24)
    assert report.encode_calls == {"text": 12, "image": 12}
    check_whole(collection, report)
    rows = batchproj.open(str(collection)).table().to_pylist()
    row = next(row for row in rows if row["uri"].endswith("d1/item4.txt"))
    words = (corpus / "d1/item4.txt").read_text()
    assert row["uri"] == f"file://{corpus}/d1/item4.txt"
    assert (row["pair"], row["modality"], row["segment"], row["text"]) == ("d1/item4", "text", 0, words)
    assert (row["start"], row["end"], row["id"], row["run"]) == (0, len(words), row["item"], report.run)


def test_second_run_reads_nothing_and_writes_nothing(
    corpus: Path, tiny_space: Path, embedded: tuple[Path, Report]
) -> None:
    collection, first = embedded
    for file in corpus.rglob("*.txt"):  # other bytes under the listed size and time: only a read would notice
        info = file.stat()
        file.write_text("x" * info.st_size)
        os.utime(file, ns=(info.st_atime_ns, info.st_mtime_ns))
    before = {path: path.stat().st_mtime_ns for path in collection.rglob("*")}
    second = embed(corpus, collection, tiny_space)
    assert {path: path.stat().st_mtime_ns for path in collection.rglob("*")} == before
    assert (second.run, second.unchanged, second.embedded, second.commit) == (first.run, 24, 0, None)
    assert second.encode_calls == {}


@through_ray
def test_only_what_changed_is_done(corpus: Path, tiny_space: Path, embedded: tuple[Path, Report]) -> None:
    collection, _ = embedded
    before = vectors(collection, corpus)
    for file in sorted(corpus.rglob("*.*"))[2:20]:  # other bytes under the listed size and time
        info = file.stat()
        file.write_bytes(b"x" * info.st_size)
        os.utime(file, ns=(info.st_atime_ns, info.st_mtime_ns))
    write_words(corpus / "d0/item0.txt", 100)
    write_picture(corpus / "new/item99.png", 99)
    (corpus / "d1/item1.png").unlink()
    report = embed(corpus, collection, tiny_space)
    assert (report.embedded, report.unchanged, report.deleted, report.rows) == (2, 22, 1, 24)
    assert report.encode_calls == {"text": 1, "image": 1}
    check_whole(collection, report)
    after = vectors(collection, corpus)
    assert {key for key in before if after.get(key) != before[key]} == {"d0/item0.txt", "d1/item1.png"}
    assert set(after) - set(before) == {"new/item99.png"}
    assert embed(corpus, collection, tiny_space).commit is None


def test_bytes_that_are_embedded_already_are_read_and_not_encoded(
    corpus: Path, tiny_space: Path, embedded: tuple[Path, Report]
) -> None:
    collection, _ = embedded
    before = vectors(collection, corpus)
    os.utime(corpus / "d0/item0.txt")  # touched
    (corpus / "d1/item1.png").rename(corpus / "d1/moved.png")
    shutil.copy(corpus / "d2/item2.txt", corpus / "d0/copied.txt")
    report = embed(corpus, collection, tiny_space)
    assert (report.copied, report.embedded, report.deleted, report.unchanged) == (3, 0, 1, 22)
    assert sum(report.encode_calls.values()) == 0
    check_whole(collection, report)
    before["d1/moved.png"] = before.pop("d1/item1.png")
    before["d0/copied.txt"] = before["d2/item2.txt"]
    assert vectors(collection, corpus) == before
    rows = {row["uri"].rpartition("/")[2]: row for row in batchproj.open(str(collection)).table().to_pylist()}
    assert (rows["moved.png"]["pair"], rows["copied.txt"]["text"]) == ("d1/moved", rows["item2.txt"]["text"])
    assert embed(corpus, collection, tiny_space).commit is None


def test_a_renamed_folder_is_no_mass_deletion(corpus: Path, tiny_space: Path, embedded: tuple[Path, Report]) -> None:
    collection, _ = embedded
    (corpus / "d2").rename(corpus / "renamed")
    report = embed(corpus, collection, tiny_space)
    assert (report.copied, report.deleted, report.encode_calls) == (8, 8, {"image": 0, "text": 0})


def test_the_ledger_tells_what_a_run_did_and_what_made_it_necessary(
    corpus: Path, tiny_space: Path, embedded: tuple[Path, Report]
) -> None:
    collection, first = embedded
    space = tiny_space.with_name("fp32.yaml")
    space.write_text(tiny_space.read_text().replace("kind: clip,", "kind: clip, dtype: fp32,"))
    report = embed(corpus, collection, space)
    assert report.encode_calls == {"image": 12, "text": 12}
    entries = batchproj.open(str(collection)).runs()
    assert [(entry["run"], entry["state"], entry["attempts"]) for entry in entries] == [
        ("000001", "done", 1),
        ("000002", "done", 1),
    ]
    told = {(each["modality"], each["field"]): (each["before"], each["now"]) for each in entries[1]["differences"]}
    assert told == {(m, "encoder.dtype"): ("bf16", "fp32") for m in ("image", "text")}
    assert entries[1]["user"]
    assert entries[1]["host"]
    assert (entries[1]["parent"], entries[1]["commit"]) == (first.run, report.commit)


def test_rollback_shows_an_earlier_run_and_the_next_one_has_a_new_number_and_encodes_nothing_twice(
    corpus: Path, tiny_space: Path, embedded: tuple[Path, Report]
) -> None:
    collection, _ = embedded
    before = vectors(collection, corpus)
    write_words(corpus / "d0/item0.txt", 100)
    embed(corpus, collection, tiny_space)
    assert rollback(str(collection), None, print) == ("000002", "000001")
    assert vectors(collection, corpus) == before
    with pytest.raises(CollectionError, match="keeps no run before the first"):
        rollback(str(collection), None, print)
    with pytest.raises(CollectionError, match="keeps no run 000009; kept are, beside the live 000001: 000002"):
        rollback(str(collection), "000009", print)
    report = embed(corpus, collection, tiny_space)
    assert (report.run, report.copied, report.unchanged) == ("000003", 1, 23)
    assert not any(report.encode_calls.values())  # the run that was left had encoded it
    check_whole(collection, report)
    assert rollback(str(collection), "000002", print) == ("000003", "000002")
    assert len(batchproj.open(str(collection)).runs()) == 3


def test_a_reader_keeps_the_run_it_opened(corpus: Path, tiny_space: Path, embedded: tuple[Path, Report]) -> None:
    collection, _ = embedded
    reader = batchproj.open(str(collection))
    (corpus / "d0/item0.txt").unlink()
    embed(corpus, collection, tiny_space)
    assert reader.table().num_rows == 24
    assert len(reader.nearest(np.ones(24, np.float32), k=50)) == 24
    assert len(batchproj.open(str(collection)).nearest(np.ones(24, np.float32), k=50)) == 23


def test_content_decides_the_modality(corpus: Path, tmp_path: Path, tiny_space: Path) -> None:
    shutil.copy(corpus / "d0/item0.png", corpus / "picture.txt")
    shutil.copy(corpus / "d1/item1.png", corpus / "picture_without_extension")
    shutil.copy(corpus / "d1/item1.txt", corpus / "words_without_extension")
    report = embed(corpus, tmp_path / "c", tiny_space)
    assert (report.embedded, report.quarantined) == (27, 0)
    assert report.encode_calls == {"text": 13, "image": 14}
    found = vectors(tmp_path / "c", corpus)
    assert found["picture.txt"] == found["d0/item0.png"]
    assert found["picture_without_extension"] == found["d1/item1.png"]


@through_ray
def test_bad_files_are_rows_and_their_neighbours_do_not_notice(
    corpus: Path, tmp_path: Path, tiny_space: Path, embedded: tuple[Path, Report]
) -> None:
    (corpus / "d0/aaa.png").write_bytes((corpus / "d0/item0.png").read_bytes()[:200])
    (corpus / "d0/page.jpg").write_text("<html>404</html>")
    (corpus / "d1/empty.txt").touch()
    (corpus / "d1/blank.txt").write_text(" \n\t ")
    (corpus / "d1/latin.txt").write_bytes("w1 caf\xe9".encode("latin-1"))
    (corpus / "d2/noise.bin").write_bytes(bytes(range(256)))
    (corpus / "d2/sound.wav").write_bytes(
        b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x40\x1f\0\0\x80\x3e\0\0\2\0\x10\0data\0\0\0\0"
    )
    report = embed(corpus, tmp_path / "mixed", tiny_space)
    assert (report.embedded, report.quarantined) == (24, 7)
    check_whole(tmp_path / "mixed", report)
    assert vectors(tmp_path / "mixed", corpus) == vectors(embedded[0], corpus)
    bad = pq.read_table(tmp_path / "mixed" / "quarantine" / f"{report.run}.parquet").to_pylist()
    assert {row["uri"].rpartition("/")[2]: row["reason"] for row in bad} == {
        "aaa.png": "truncated",
        "page.jpg": "wrong_type",
        "empty.txt": "empty",
        "blank.txt": "blank_text",
        "latin.txt": "invalid_utf8",
        "noise.bin": "unknown_type",
        "sound.wav": "no_encoder",
    }
    again = embed(corpus, tmp_path / "mixed", tiny_space)
    assert (again.unchanged, again.quarantined, again.commit) == (24, 7, None)


def test_a_mended_file_leaves_quarantine(corpus: Path, tmp_path: Path, tiny_space: Path) -> None:
    good = (corpus / "d0/item0.png").read_bytes()
    (corpus / "d0/item0.png").write_bytes(good[:150])
    assert embed(corpus, tmp_path / "c", tiny_space).quarantined == 1
    (corpus / "d0/item0.png").write_bytes(good)
    report = embed(corpus, tmp_path / "c", tiny_space)
    assert (report.embedded, report.quarantined, report.unchanged, report.rows) == (1, 0, 23, 24)
    check_whole(tmp_path / "c", report)


@through_ray
def test_bucket_and_folder_give_the_same_vectors(
    corpus: Path, tiny_space: Path, s3_bucket: str, embedded: tuple[Path, Report]
) -> None:
    fsspec.filesystem("s3").put(str(corpus) + "/", f"{s3_bucket}/photos/", recursive=True)
    collection, local = embedded
    remote = embed(f"{s3_bucket}/photos", f"{s3_bucket}/photos.batchproj", tiny_space)
    assert remote.model_dump(include={"items", "embedded", "rows"}) == local.model_dump(
        include={"items", "embedded", "rows"}
    )
    check_whole(f"{s3_bucket}/photos.batchproj", remote)
    assert vectors(f"{s3_bucket}/photos.batchproj", f"{s3_bucket}/photos") == vectors(collection, corpus)
    assert embed(f"{s3_bucket}/photos", f"{s3_bucket}/photos.batchproj", tiny_space).commit is None
    found = batchproj.open(f"{s3_bucket}/photos.batchproj").search(image=corpus / "d0/item3.png", k=1)
    assert found[0].uri == f"{s3_bucket}/photos/d0/item3.png"


def test_units_done_by_a_stopped_run_are_not_done_again(corpus: Path, tmp_path: Path, tiny_space: Path) -> None:
    with stopped_when_its_units_are_done():
        embed(corpus, tmp_path / "c", tiny_space)
    with pytest.raises(UsageError):
        batchproj.open(str(tmp_path / "c"))
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "c" / "units").rglob("done.json")}
    assert written
    report = embed(corpus, tmp_path / "c", tiny_space)
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert (report.run, report.embedded) == ("000001", 24)
    check_whole(tmp_path / "c", report)


def test_an_index_is_built_from_the_recipes_size_on(tmp_path: Path, tiny_space: Path) -> None:
    for number in range(300):
        write_words(tmp_path / "texts" / f"{number}.txt", number)
    recipe = Recipe(index=Index(min_rows=256, unindexed_rows=0))
    embed(tmp_path / "texts", tmp_path / "c", tiny_space, recipe)
    opened = Collection(str(tmp_path / "c"))
    assert {index.columns[0] for index in opened._table.list_indices()} == {"vector", "modality", "item", "text"}
    words = (tmp_path / "texts" / "7.txt").read_text()
    assert opened.search(words, k=1)[0].text == words
    for number in range(300, 310):
        write_words(tmp_path / "texts" / f"{number}.txt", number)
    report = embed(tmp_path / "texts", tmp_path / "c", tiny_space, recipe)
    assert report.encode_calls == {"text": 10}
    opened = Collection(str(tmp_path / "c"))
    assert opened._table.index_stats("vector_idx").num_unindexed_rows == 0
    assert opened.search((tmp_path / "texts" / "305.txt").read_text(), k=1)[0].score > 0.999


def test_the_table_is_tidied_by_thresholds_and_no_reader_notices(
    corpus: Path, tiny_space: Path, embedded: tuple[Path, Report]
) -> None:
    collection, _ = embedded
    recipe = Recipe(index=Index(small_fragments=3, spare_versions=4))
    reader = batchproj.open(str(collection))
    before = reader.table().sort_by("id")
    fragments = []
    for number in range(4):
        write_words(corpus / "d0/item0.txt", 100 + number)
        report = embed(corpus, collection, tiny_space, recipe)
        check_whole(collection, report)
        table = Collection(str(collection))._table
        fragments.append(table.stats()["fragment_stats"]["num_fragments"])
        table.checkout_latest()
        assert len(table.list_versions()) <= 1 + 2 * (number + 2) + 4
    assert min(fragments[1:]) < 4
    assert reader._table.to_arrow().sort_by("id").equals(before)


def test_vanished_items_are_not_deleted_unless_meant(
    corpus: Path, tiny_space: Path, embedded: tuple[Path, Report]
) -> None:
    collection, _ = embedded
    shutil.rmtree(corpus / "d2")
    with pytest.raises(UsageError, match="8 of 24 items"):
        embed(corpus, collection, tiny_space)
    assert batchproj.open(str(collection)).table().num_rows == 24
    report = embed(corpus, collection, tiny_space, allow_mass_delete=True)
    assert (report.deleted, report.rows) == (8, 16)
    check_whole(collection, report)


def test_a_source_that_became_empty_deletes_nothing_unless_meant(
    corpus: Path, tiny_space: Path, embedded: tuple[Path, Report]
) -> None:
    collection, _ = embedded
    shutil.rmtree(corpus)
    corpus.mkdir()
    with pytest.raises(UsageError, match=r"24 of 24 items .* --allow-mass-delete"):
        embed(corpus, collection, tiny_space)
    report = embed(corpus, collection, tiny_space, allow_mass_delete=True)
    assert (report.deleted, report.rows) == (24, 0)
    assert batchproj.open(str(collection)).table().num_rows == 0


def test_an_empty_source_is_refused_and_nothing_is_written(tmp_path: Path, tiny_space: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="nothing to embed"):
        embed(tmp_path / "empty", tmp_path / "c", tiny_space)
    assert not (tmp_path / "c").exists()


def test_a_collection_inside_its_source_is_not_embedded(corpus: Path, tiny_space: Path) -> None:
    assert embed(corpus, corpus / "index", tiny_space).items == 24
    assert embed(corpus, corpus / "index", tiny_space).commit is None
    with pytest.raises(UsageError, match="inside the collection"):
        embed(corpus / "index" / "parquet", corpus / "index", tiny_space)


def test_interrupted_table_writes_are_undone(corpus: Path, tiny_space: Path, embedded: tuple[Path, Report]) -> None:
    """Rows that a killed run left in the newest version, unseen, do not come to light with the next."""
    collection, _ = embedded
    table = connect(Folder(str(collection))).open_table("vectors")
    table.delete("modality = 'text'")
    table.add(table.to_arrow().slice(0, 1).set_column(0, table.schema.field(0), [["left-over"]]))
    write_words(corpus / "d0/item0.txt", 100)
    report = embed(corpus, collection, tiny_space)
    assert report.rows == 24
    check_whole(collection, report)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("batchproj.collection.commit", "next_parts"),
        ("batchproj.collection.manifest", "write"),
        ("batchproj.index.VectorTable", "apply"),
        ("batchproj.embed", "write_snapshot"),
        ("batchproj.collection.ledger", "write_entry"),
        ("batchproj.tags.Tags", "keep"),
        ("batchproj.collection.lease.Lease", "append"),
        ("batchproj.tags.Tags", "point"),
    ],
)
def test_a_stop_after_any_step_of_the_commit_is_made_good(
    module: str,
    name: str,
    corpus: Path,
    tiny_space: Path,
    embedded: tuple[Path, Report],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    collection, _ = embedded
    expected = vectors(collection, corpus)
    (corpus / "d1/item1.png").unlink()
    (corpus / "d2/item2.txt").unlink()
    holder = pydoc.locate(module)
    step = getattr(holder, name)

    def stop_afterwards(*arguments: object) -> None:
        step(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(holder, name, stop_afterwards)
        with pytest.raises(KeyboardInterrupt):
            embed(corpus, collection, tiny_space)
    seen = len(vectors(collection, corpus))
    assert seen == (22 if name == "point" else 24)
    report = embed(corpus, collection, tiny_space)
    assert report.rows == 22
    check_whole(collection, report)
    del expected["d1/item1.png"], expected["d2/item2.txt"]
    assert vectors(collection, corpus) == expected
    assert [entry["run"] for entry in batchproj.open(str(collection)).runs()] == ["000001", "000002"]


def test_a_listing_that_is_cut_off_is_repeated_and_not_believed(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(s3_bucket)
    for number in range(10):
        folder.write(f"d/{number}.txt", b"x")
    monkeypatch.setattr(objectstore.listing, "LIST_PAGE", 4)
    fs, _ = objectstore.filesystem(s3_bucket)
    asked, answered = [], fs.call_s3

    def fails_once(method: str, **where: object) -> object:
        asked.append(where.get("ContinuationToken"))
        if len(asked) == 2:
            raise ConnectionResetError("cut")
        return answered(method, **where)

    monkeypatch.setattr(fs, "call_s3", fails_once)
    assert [len(page) for page in objectstore.list_objects(f"{s3_bucket}/d")] == [4, 4, 2]
    assert len(asked) == 4


def test_objects_that_may_be_listed_but_not_read_stop_the_run(corpus: Path, tmp_path: Path, tiny_space: Path) -> None:
    """Whole corpora do not become forbidden one by one: that is the credentials' fault."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(execution, "run_units", forbidden_units)
        with pytest.raises(UsageError, match="24 of 24 objects may be listed but not read"):
            embed(corpus, tmp_path / "c", tiny_space)
    with pytest.raises(UsageError):
        batchproj.open(str(tmp_path / "c"))
    assert embed(corpus, tmp_path / "c", tiny_space).embedded == 24  # the rights were mended


def forbidden_units(job: Job, units: list[Unit], progress: object) -> Iterator[Receipt]:
    """What the workers return when every read is denied."""
    for unit in units:
        items = read_inputs(job.folder, unit)["item"].to_pylist()
        rows = [
            {"item": i, "status": "quarantined", "reason": "forbidden", "stage": "read", "segments": 0} for i in items
        ]
        receipt = Receipt(unit=unit, embedded=0, quarantined=len(items), deferred=0, encoded=0, busy_s=0, part=None)
        yield finish(job.folder, receipt, pa.Table.from_pylist(rows, schema=outcome_schema()))


def test_a_forbidden_object_is_tried_in_every_run_and_commits_none(
    corpus: Path, tiny_space: Path, embedded: tuple[Path, Report]
) -> None:
    collection, _ = embedded
    write_words(corpus / "new.txt", 50)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(execution, "run_units", forbidden_units)
        patched.setattr(run_checks, "MASS_FORBIDDEN", 1.0)
        assert embed(corpus, collection, tiny_space).quarantined == 1
        again = embed(corpus, collection, tiny_space)
        assert (again.run, again.unchanged, again.quarantined, again.commit) == ("000002", 24, 1, None)
    report = embed(corpus, collection, tiny_space)
    assert (report.run, report.embedded, report.quarantined) == ("000003", 1, 0)


def test_a_forbidden_object_is_retried(corpus: Path, tmp_path: Path, tiny_space: Path) -> None:
    with Plan({}, Limits()) as plan:
        plan.insert("listing", pa.table({"item": ["a"], "key": ["a.txt"], "source_version": ["1"]}))
        plan.insert(
            "manifest",
            pa.table({"item": ["a"], "source_version": ["1"], "status": ["quarantined"], "reason": ["forbidden"]}),
        )
        assert plan.decide().retry == 1


def test_a_manifest_written_in_shards_is_the_same(
    corpus: Path, tiny_space: Path, embedded: tuple[Path, Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    collection, _ = embedded
    monkeypatch.setattr(manifest, "SHARD_ITEMS", 5)
    write_words(corpus / "d0/item0.txt", 100)
    (corpus / "d1/item1.png").unlink()
    report = embed(corpus, collection, tiny_space)
    check_whole(collection, report)
    manifests = [pq.read_table(collection / "snapshots" / f"00000{run}.manifest.parquet") for run in (1, 2)]
    assert len(set(manifests[1]["item"].to_pylist())) == manifests[1].num_rows == 23
    before, after = ({row["item"]: row for row in table.to_pylist()} for table in manifests)
    assert {item for item, row in after.items() if row["content_id"] != before[item]["content_id"]} == {
        item_id(f"file://{corpus}/d0/item0.txt")
    }
    assert embed(corpus, collection, tiny_space).commit is None


@pytest.mark.parametrize(
    ("module", "step"), [(commit, "next_parts"), (manifest, "write_quarantine"), (commit, "check_keys")]
)
def test_a_run_that_was_taken_over_while_it_committed_shows_nothing_and_writes_nothing_more(
    module: ModuleType,
    step: str,
    corpus: Path,
    tiny_space: Path,
    embedded: tuple[Path, Report],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    collection, _ = embedded
    before = vectors(collection, corpus)
    folder = Folder(str(collection))
    (corpus / "d1/item1.png").unlink()
    done = getattr(module, step)

    def taken_over_afterwards(*arguments: object) -> object:
        result = done(*arguments)
        newest = lease.head(folder)
        assert newest is not None
        other = newest.model_copy(update={"number": newest.number + 1, "token": "other", "kind": "lease"})
        assert folder.create(layout.log(other.number), other.model_dump_json().encode())
        return result

    with monkeypatch.context() as patched:
        patched.setattr(module, step, taken_over_afterwards)
        with pytest.raises(TryLater, match="taken over"):
            embed(corpus, collection, tiny_space)
    assert vectors(collection, corpus) == before
    assert not folder.exists(layout.snapshot("000002"))
