"""Every damaged byte is named, and what can be made again is made again from what is left."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import write_words
from in_process import OPTIONS, once, quiet, resolved, run, vectors, without_ray

import batchproj
from batchproj import retry
from batchproj.collection.snapshot import Snapshot, read_snapshot
from batchproj.embed import Watch
from batchproj.errors import BatchprojError, CollectionError, DamagedFile, SpaceError, TryLater, UsageError
from batchproj.explain import explain
from batchproj.forget import forget
from batchproj.gc import gc
from batchproj.index import connect, live_snapshot
from batchproj.objectstore import Folder
from batchproj.project.linear import Config as LinearConfig
from batchproj.repair import Repair, repair
from batchproj.schema import Modality
from batchproj.switch import rollback
from batchproj.tags import Tags
from batchproj.verify import Damage, verify
from batchproj.verify import _Check as Check


@pytest.fixture(autouse=True)
def _no_ray() -> Iterator[None]:
    with without_ray():
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where collections that many tests start from are made once."""
    return tmp_path_factory.mktemp("made")


@pytest.fixture
def collection(corpus: Path, tiny_space: Path, tmp_path: Path, made: Path) -> Path:
    """A collection after its first run."""
    return once(made / "one-run", tmp_path / "c", lambda folder: run(corpus, folder, tiny_space))


def damaged(collection: Path) -> list[Damage]:
    return verify(str(collection), quiet).damaged


def mend(collection: Path, space: Path | None = None) -> Repair:
    return repair(str(collection), OPTIONS, Watch(), resolved(space) if space else None)


def snapshot(collection: Path) -> Snapshot:
    live = live_snapshot(Folder(str(collection)))
    assert live is not None
    return live


def snapshot_uri(collection: Path) -> str:
    """Some item of the manifest."""
    uri: str = pq.read_table(collection / "snapshots/000002.manifest.parquet")["uri"][0].as_py()
    return uri


def flip(file: Path, at: float = 0.5) -> None:
    """Turn one byte over, somewhere in the file."""
    data = bytearray(file.read_bytes())
    data[int(len(data) * at)] ^= 0xFF
    file.write_bytes(data)


def flip_vector(collection: Path, vector: bytes) -> Path:
    """Turn one byte of a vector over in the table's data: it still reads as a number."""
    for file in (collection / "vectors.lance" / "data").iterdir():
        data = file.read_bytes()
        if (place := data.find(vector)) >= 0:
            file.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            return file
    raise AssertionError("no file of the table has this vector")


def a_part(collection: Path) -> Path:
    return sorted((collection / "parquet").iterdir())[0]


def a_feature_file(collection: Path) -> Path:
    return sorted((collection / "features").rglob("*.parquet"))[0]


def table_file(collection: Path) -> Path:
    return next((collection / "vectors.lance" / "data").iterdir())


@pytest.fixture
def two_runs(corpus: Path, tiny_space: Path, tmp_path: Path, made: Path) -> Path:
    """A collection after runs 000001 and 000002, which differ in one text and share most files."""

    def make(folder: Path) -> None:
        write_words(corpus / "d0/item0.txt", 0)
        run(corpus, folder, tiny_space)
        change()
        assert run(corpus, folder, tiny_space).run == "000002"

    def change() -> None:
        write_words(corpus / "d0/item0.txt", 100)
        os.utime(corpus / "d0/item0.txt", (1, 1))

    found = once(made / "two-runs", tmp_path / "c", make)
    change()
    return found


def test_a_whole_collection_is_clean_and_everything_was_read(two_runs: Path) -> None:
    found = verify(str(two_runs), quiet)
    assert (found.damaged, found.runs, found.live) == ([], ["000001", "000002"], "000002")
    sizes = [
        file.stat().st_size
        for folder in ("parquet", "features", "quarantine")
        for file in (two_runs / folder).rglob("*.parquet")
    ]
    manifests = [file.stat().st_size for file in (two_runs / "snapshots").glob("*.parquet")]
    assert found.bytes == sum(sizes) + sum(manifests)
    assert found.rows >= 25
    assert found.model_dump()["collection"] == f"file://{two_runs}"


FILES: dict[str, Callable[[Path], Path]] = {
    "part": a_part,
    "features": a_feature_file,
    "manifest": lambda collection: collection / "snapshots/000001.manifest.parquet",
    "quarantine": lambda collection: collection / "quarantine/000001.parquet",
    "snapshot": lambda collection: collection / "snapshots/000001.json",
    "ledger": lambda collection: collection / "runs/000001.json",
    "table": table_file,
    "space": lambda collection: next((collection / "spaces").rglob("space.yaml")),
}


@pytest.mark.parametrize("how", ["cut", "gone"])
def test_damage_is_named_by_its_file(how: str, collection: Path) -> None:
    """One kind of file after the other, each made good again before the next."""
    for kind, find in FILES.items():
        file = find(collection)
        data = file.read_bytes()
        if how == "cut":
            file.write_bytes(data[: len(data) // 2])
        else:
            file.unlink()
        found = damaged(collection)
        file.write_bytes(data)
        assert [(each.kind, each.file, each.runs) for each in found] == [
            (kind, str(file.relative_to(collection)), ["000001"])
        ], (kind, found)
    assert damaged(collection) == []


def test_one_changed_byte_is_found_wherever_it_is(collection: Path) -> None:
    kinds = ("part", "features", "manifest", "quarantine")
    for kind in kinds:
        flip(FILES[kind](collection))
    assert sorted(each.kind for each in damaged(collection)) == sorted(kinds)
    assert all("sha256" in each.what for each in damaged(collection))


def test_one_changed_bit_of_a_vector_in_the_table_is_found(two_runs: Path) -> None:
    file = flip_vector(two_runs, next(iter(vectors(two_runs).values())))
    found = damaged(two_runs)
    assert [each.file for each in found] == [str(file.relative_to(two_runs))]
    assert "1 rows differ from the parts" in found[0].what
    assert found[0].runs == ["000001", "000002"]


def test_rows_that_the_table_lost_or_has_twice_are_found(collection: Path) -> None:
    table = connect(Folder(str(collection))).open_table("vectors")
    row = table.to_arrow().slice(3, 1)
    table.delete(f"id = '{row['id'][0]}'")
    tags = Tags(Folder(str(collection)))
    tags.keep("000001", table.version)
    tags.point(table.version)
    (lost, tag) = damaged(collection)
    assert "the log says" in lost.what + tag.what
    assert f"misses 1 rows, first {row['id'][0]}" in lost.what + tag.what
    table.add(row)
    table.add(row)
    tags.keep("000001", table.version)
    tags.point(table.version)
    assert "has twice 1 rows" in " ".join(each.what for each in damaged(collection))


def test_a_run_that_is_not_finished_is_no_damage(
    corpus: Path, tiny_space: Path, collection: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_words(corpus / "d0/item0.txt", 100)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("batchproj.collection.lease.Lease.append", stop)  # all but the switch is done
        with pytest.raises(KeyboardInterrupt):
            run(corpus, collection, tiny_space)
    assert (collection / "snapshots/000002.json").exists()
    found = verify(str(collection), quiet)
    assert (found.damaged, found.runs, found.live) == ([], ["000001"], "000001")


def test_nothing_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CollectionError, match="no collection"):
        verify(str(tmp_path), quiet)
    assert list(tmp_path.iterdir()) == []


# --- repair ------------------------------------------------------------------------------------


def spoil(corpus: Path) -> None:
    """Objects under their listed size and time, but with other bytes: whoever read one would fail to embed it."""
    for file in corpus.rglob("*.*"):
        info = file.stat()
        file.write_bytes(b"\0" * info.st_size)
        os.utime(file, ns=(info.st_atime_ns, info.st_mtime_ns))


def test_a_damaged_part_is_projected_again_and_nothing_is_read(corpus: Path, two_runs: Path) -> None:
    before = vectors(two_runs)
    live = snapshot(two_runs)
    part = next(part for part in live.parts if part.name in {file.name for file in live.features})
    flip(two_runs / f"parquet/{part.name}.parquet")
    spoil(corpus)
    done = mend(two_runs)
    assert done.report is not None
    assert (done.report.reprojected, done.report.embedded, done.report.quarantined) == (part.rows, 0, 0)
    assert not any(done.report.encode_calls.values())
    assert done.now.of(done.now.live) == []
    assert vectors(two_runs) == before


def test_damaged_features_are_encoded_again_and_only_they(two_runs: Path, corpus: Path) -> None:
    before = vectors(two_runs)
    file = snapshot(two_runs).features[0]
    (two_runs / f"features/{file.fingerprint}/{file.name}.parquet").unlink()
    done = mend(two_runs)
    assert done.report is not None
    assert done.report.embedded == sum(done.report.encode_calls.values()) <= file.rows
    assert done.report.reprojected == 0
    assert done.report.unchanged == 24 - done.report.embedded
    assert done.now.of(done.now.live) == []
    assert vectors(two_runs) == before


def test_a_repair_does_nothing_else_and_does_not_look_at_the_source(
    two_runs: Path, corpus: Path, tiny_space: Path
) -> None:
    live = batchproj.open(str(two_runs))
    file = live.snapshot.features[0]
    path = two_runs / f"features/{file.fingerprint}/{file.name}.parquet"
    held = set(pq.read_table(path)["item"].to_pylist())
    flip(path)
    elsewhere = next(row for row in live.table().to_pylist() if row["item"] not in held)
    Path(elsewhere["uri"].removeprefix("file://")).unlink()
    write_words(corpus / "new.txt", 500)
    done = mend(two_runs)
    assert done.report is not None
    assert (done.report.items, done.report.embedded, done.report.deleted) == (24, len(held), 0)
    assert done.now.of(done.now.live) == []
    after = run(corpus, two_runs, tiny_space)
    assert (after.embedded, after.deleted, after.unchanged) == (1, 1, 23)


def linear_space(collection: Path, folder: Path) -> Path:
    """The space of a collection with a projector in it."""
    LinearConfig(in_dim=24, out_dim=24).build().save(folder / "linear.safetensors")
    live = batchproj.open(str(collection)).space
    member = {
        "encoder": live.members[Modality.TEXT].config.model_dump(exclude_none=True),
        "projector": {"kind": "linear", "weights": "linear.safetensors"},
    }
    (folder / "other.yaml").write_text(yaml.safe_dump({"dim": 24, "text": member, "image": member}))
    return folder / "other.yaml"


@pytest.mark.parametrize("how", ["a flipped byte", "other values"])
def test_damaged_features_are_named_and_not_projected_again(
    how: str, two_runs: Path, corpus: Path, tmp_path: Path
) -> None:
    other = linear_space(two_runs, tmp_path)
    for file in (two_runs / "features").rglob("*.parquet"):
        if how == "a flipped byte":
            flip(file)
        else:  # a whole file, of other values
            rows = pq.read_table(file)
            turned = pc.list_flatten(rows["feature"]).to_numpy() * np.float16(-1)
            feature = pa.FixedSizeListArray.from_arrays(pa.array(turned), 24)
            at = rows.schema.get_field_index("feature")
            pq.write_table(rows.set_column(at, rows.schema.field(at), feature), file)
    with pytest.raises(BatchprojError, match=r"features/.* is damaged; run: batchproj verify .* --repair"):
        run(corpus, two_runs, other)
    assert snapshot(two_runs).run == "000002"


def test_a_damaged_snapshot_is_one_line(tmp_path: Path) -> None:
    Folder(str(tmp_path)).write("snapshots/000001.json", b'{"run": 1}')
    with pytest.raises(DamagedFile, match=r"^snapshots/000001.json is damaged; run: batchproj verify \S+$"):
        read_snapshot(Folder(str(tmp_path)), "000001")


def test_without_its_snapshot_a_run_can_only_be_left(two_runs: Path, corpus: Path, tiny_space: Path) -> None:
    (two_runs / "snapshots/000002.json").write_text("{")
    for use in (lambda: run(corpus, two_runs, tiny_space), lambda: gc(str(two_runs), quiet)):
        with pytest.raises(CollectionError, match=r"snapshots/000002.json of .* is damaged; go back with: .* rollback"):
            use()
    assert rollback(str(two_runs), None, quiet) == ("000002", "000001")
    assert run(corpus, two_runs, tiny_space).embedded == 1  # what the other had made is not known any more


@pytest.mark.parametrize("how", ["damaged", "gone"])
def test_the_manifest_of_a_run_that_was_left_is_not_needed(
    how: str, two_runs: Path, corpus: Path, tiny_space: Path
) -> None:
    manifest = two_runs / "snapshots/000002.manifest.parquet"
    rollback(str(two_runs), "000001", quiet)
    if how == "damaged":
        manifest.write_bytes(b"PAR1")
    else:
        manifest.unlink()
    report = run(corpus, two_runs, tiny_space)
    assert (report.run, report.embedded, report.unchanged) == ("000003", 1, 23)


def test_a_repair_takes_no_sound_vectors_away_when_the_source_is_not_there(two_runs: Path, corpus: Path) -> None:
    before = vectors(two_runs)
    file = snapshot(two_runs).features[0]
    (two_runs / f"features/{file.fingerprint}/{file.name}.parquet").unlink()
    away = corpus.with_name("away")
    corpus.rename(away)
    try:
        with pytest.raises(UsageError, match=r"their vectors are sound; nothing was made visible; first run: .* embed"):
            mend(two_runs)
    finally:
        away.rename(corpus)
    assert vectors(two_runs) == before
    assert mend(two_runs).now.of("000003") == []


def test_a_repair_keeps_to_the_space(two_runs: Path, tmp_path: Path) -> None:
    flip(two_runs / f"parquet/{snapshot(two_runs).parts[0].name}.parquet")
    with pytest.raises(SpaceError, match=r"makes other vectors than run 000002 has; to change to it run: .* embed"):
        mend(two_runs, linear_space(two_runs, tmp_path))


@pytest.mark.parametrize("folder", ["parquet", "features"])
def test_whoever_meets_a_damaged_file_names_it_and_the_way_out(folder: str, two_runs: Path) -> None:
    for file in (two_runs / folder).rglob("*.parquet"):
        flip(file)
    uri = snapshot_uri(two_runs)
    with pytest.raises(BatchprojError, match=rf"{folder}/.*; run: batchproj verify .*--repair"):
        forget(str(two_runs), uri, quiet)
    if folder == "parquet":
        with pytest.raises(BatchprojError, match=r"parquet/.* is damaged; run: batchproj verify"):
            explain(str(two_runs), uri)


def test_a_table_without_versions_is_damage_and_no_new_collection(
    two_runs: Path, corpus: Path, tiny_space: Path
) -> None:
    for file in (two_runs / "vectors.lance/_versions").iterdir():
        file.unlink()
    for use in (lambda: batchproj.open(str(two_runs)), lambda: run(corpus, two_runs, tiny_space)):
        with pytest.raises(CollectionError, match=r"has no versions; run: batchproj verify .* --repair"):
            use()


def test_rollback_needs_no_ledger(two_runs: Path) -> None:
    (two_runs / "runs/000002.json").write_text("{")
    assert rollback(str(two_runs), None, quiet) == ("000002", "000001")
    (two_runs / "runs/000001.json").unlink()
    assert rollback(str(two_runs), "000002", quiet) == ("000001", "000002")


def test_a_signal_is_no_damage(two_runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DuckDB makes an error of its own of the exception that a handler raises inside it."""

    def interrupted(*_: object) -> None:
        monkeypatch.setattr(retry, "_abandoned", True)
        raise RuntimeError("Query interrupted")

    monkeypatch.setattr(Check, "_check_file", interrupted)
    with pytest.raises(TryLater, match="stopped"):
        verify(str(two_runs), quiet)


@pytest.mark.parametrize("what", ["a value", "half the file", "the newest version", "a tag", "quarantine", "part too"])
def test_a_damaged_table_is_made_from_the_parts(what: str, corpus: Path, two_runs: Path) -> None:
    before = vectors(two_runs)
    versions = sorted((two_runs / "vectors.lance/_versions").glob("*.manifest"))
    match what:
        case "a value" | "part too":
            flip_vector(two_runs, next(iter(before.values())))
            if what == "part too":
                flip(a_part(two_runs))
        case "half the file":
            os.truncate(table_file(two_runs), 500)
        case "the newest version":
            os.truncate(versions[0], 20)  # names count down
        case "a tag":
            (two_runs / "vectors.lance/_refs/tags/live.json").write_text("{")
        case "quarantine":
            flip(two_runs / "quarantine/000002.parquet")
    spoil(corpus)
    assert verify(str(two_runs), quiet).of("000002")
    done = mend(two_runs)
    assert done.now.of(done.now.live) == []
    assert vectors(two_runs) == before
    if done.report is not None:
        assert (done.report.embedded, done.report.quarantined) == (0, 0)
    assert damaged(two_runs) == done.now.damaged


def test_a_live_version_that_is_not_the_newest_is_made_again_and_gc_still_works(two_runs: Path) -> None:
    rollback(str(two_runs), "000001", quiet)
    before = vectors(two_runs)
    version = Tags(Folder(str(two_runs))).live()
    os.truncate(two_runs / f"vectors.lance/_versions/{2**64 - 1 - (version or 0)}.manifest", 20)
    assert [(each.kind, each.runs) for each in damaged(two_runs)] == [("table", ["000001"])]
    done = mend(two_runs)
    assert (done.report, done.now.damaged, done.now.runs) == (None, [], ["000001", "000002"])
    assert vectors(two_runs) == before
    assert gc(str(two_runs), quiet, keep=1, apply=True).runs == ["000002"]
    assert damaged(two_runs) == []


def test_what_cannot_be_made_again_is_said_plainly(two_runs: Path) -> None:
    flip(two_runs / "snapshots/000002.manifest.parquet")
    with pytest.raises(
        BatchprojError, match=r"000002.manifest.*cannot be made again; go back with: .* 000001, or embed"
    ):
        mend(two_runs)
    assert rollback(str(two_runs), "000001", quiet) == ("000002", "000001")
    assert verify(str(two_runs), quiet).of("000001") == []
    (two_runs / "snapshots/000001.json").write_text("{")
    with pytest.raises(BatchprojError, match=r"000001\.json.*cannot be made again; embed into a new collection"):
        mend(two_runs)


def test_damage_of_an_earlier_run_is_left_alone(two_runs: Path) -> None:
    flip(two_runs / "quarantine/000001.parquet")
    done = mend(two_runs)
    assert (done.report, [each.runs for each in done.now.damaged]) == (None, [["000001"]])


def test_a_damaged_space_is_asked_for(two_runs: Path, tiny_space: Path) -> None:
    next((two_runs / "spaces").rglob("space.yaml")).write_text("dim: [")
    with pytest.raises(SpaceError, match="--space"):
        mend(two_runs)
    done = mend(two_runs, tiny_space)
    assert (done.report, done.now.damaged) == (None, [])


def test_a_damaged_ledger_entry_is_written_again(two_runs: Path) -> None:
    (two_runs / "runs/000002.json").write_text("{")
    done = mend(two_runs)
    assert (done.report, done.now.damaged) == (None, [])
    assert [entry["state"] for entry in batchproj.open(str(two_runs)).runs()] == ["done", "done"]
