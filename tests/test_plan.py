from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from batchproj.collection import manifest
from batchproj.collection.plan import Counts, Plan
from batchproj.collection.snapshot import Fingerprints, Snapshot
from batchproj.collection.unit import parquet_bytes
from batchproj.decode.limits import Limits
from batchproj.errors import TryLater
from batchproj.schema import Modality, Reason, listing_schema
from batchproj.source.objects import item_id, pair_key

TEXT = Fingerprints(feature="f-text", vector="v-text")
IMAGE = Fingerprints(feature="f-image", vector="v-image")


def listing(keys: dict[str, str]) -> pa.RecordBatch:
    rows = [
        {
            "item": item_id(f"file:///d/{key}"),
            "uri": f"file:///d/{key}",
            "key": key,
            "pair": pair_key(key),
            "size": 10,
            "source_version": version,
        }
        for key, version in keys.items()
    ]
    return pa.RecordBatch.from_pylist(rows, schema=listing_schema())


def rows_of(path: Path, rows: list[dict[str, str | None]]) -> str:
    """SQL of a live manifest; each row gives key, version and what differs from an embedded text."""
    full = [
        {
            "item": item_id(f"file:///d/{row['key']}"),
            "key": row["key"],
            "pair": pair_key(row["key"]),
            "source_version": row["version"],
            "status": row.get("status", "embedded"),
            "reason": row.get("reason"),
            "stage": row.get("stage"),
            "modality": row.get("modality", "text"),
            "feature_fp": row.get("feature_fp", "f-text"),
            "vector_fp": row.get("vector_fp", "v-text"),
            "part": row.get("part", "p1"),
            "content_id": row.get("content_id", "c1"),
            "size": 10,
            "features": row.get("features", "u1"),
        }
        for row in rows
    ]
    path.write_bytes(parquet_bytes(pa.Table.from_pylist(full)))
    return manifest.rows([path])


@pytest.fixture
def plan() -> Iterator[Plan]:
    with Plan({Modality.TEXT: TEXT, Modality.IMAGE: IMAGE}, Limits()) as plan:
        yield plan


def test_every_item_gets_one_action(plan: Plan, tmp_path: Path) -> None:
    plan.add_listing(listing({"same.txt": "1", "edited.txt": "2", "new.txt": "9", "bad.txt": "1", "old.txt": "1"}))
    plan.add_listing(listing({"reproject.txt": "1", "movie.mp4": "1", "retry.txt": "1"}))
    rows: list[dict[str, str | None]] = [
        {"key": "same.txt", "version": "1"},
        {"key": "edited.txt", "version": "1"},
        {"key": "gone.txt", "version": "1"},
        {"key": "bad.txt", "version": "1", "status": "quarantined"},
        {"key": "retry.txt", "version": "1", "status": "quarantined", "feature_fp": "older"},
        {"key": "old.txt", "version": "1", "feature_fp": "older"},
        {"key": "reproject.txt", "version": "1", "vector_fp": "older"},
        {
            "key": "movie.mp4",
            "version": "1",
            "status": "quarantined",
            "modality": "video",
            "feature_fp": None,
            "vector_fp": None,
        },
    ]
    plan.load_manifest(rows_of(tmp_path / "m.parquet", rows))
    counts = plan.decide()
    assert counts == Counts(new=1, changed=1, encode=2, project=1, unchanged=1, quarantined=2, deleted=1)
    assert counts.listed == 8
    assert not counts.nothing_to_do


def test_a_second_look_at_the_same_listing_finds_nothing(plan: Plan, tmp_path: Path) -> None:
    plan.add_listing(listing({"a.txt": "1", "b.txt": "1"}))
    plan.load_manifest(rows_of(tmp_path / "m.parquet", [{"key": k, "version": "1"} for k in ("a.txt", "b.txt")]))
    assert plan.decide().nothing_to_do


def cut(keys: dict[str, str], max_items: int = 16) -> dict[str, list[str]]:
    """Names of the units a first run over these objects has, and their keys."""
    with Plan({Modality.TEXT: TEXT, Modality.IMAGE: IMAGE}, Limits()) as plan:
        plan.add_listing(listing(keys))
        plan.decide()
        units = list(plan.cut("000001", "embed", plan.to_embed(), max_items, 1_000))
    for unit, inputs in units:
        assert unit.items == inputs.num_rows <= max_items
        assert unit.bytes == 10 * unit.items
    return {unit.name: inputs["key"].to_pylist() for unit, inputs in units}


def test_units_hold_every_item_once_and_one_modality_each() -> None:
    keys = {f"{n:04d}.{ext}": "1" for n in range(60) for ext in ("txt", "png", "unknown")}
    units = cut(keys)
    assert sorted(key for unit in units.values() for key in unit) == sorted(keys)
    assert all(len({key.split(".")[1] for key in unit}) == 1 for unit in units.values())


def test_units_do_not_depend_on_the_order_of_the_listing() -> None:
    keys = {f"{n:04d}.txt": "1" for n in range(100)}
    assert cut(keys) == cut(dict(reversed(keys.items())))


def test_one_more_object_leaves_most_units_as_they_were() -> None:
    keys = {f"{n:04d}.txt": "1" for n in range(400)}
    before, after = cut(keys), cut({**keys, "0200x.txt": "1"})
    assert len(set(after) - set(before)) <= 3


def test_small_units_have_borders_of_their_own_too() -> None:
    keys = {f"{n:04d}.txt": "1" for n in range(400)}
    before, after = cut(keys, 8), cut({**keys, "0200x.txt": "1"}, 8)
    assert len(set(after) - set(before)) <= 3


def test_a_changed_object_changes_its_units_name_alone() -> None:
    keys = {f"{n:04d}.txt": "1" for n in range(400)}
    before, after = cut(keys), cut({**keys, "0200.txt": "2"})
    assert len(set(after) - set(before)) == 1


def test_units_respect_the_byte_limit() -> None:
    with Plan({Modality.TEXT: TEXT}, Limits()) as plan:
        plan.add_listing(listing({f"{n:03d}.txt": "1" for n in range(50)}))
        plan.decide()
        sizes = [unit.bytes for unit, _ in plan.cut("000001", "embed", plan.to_embed(), 512, 70)]
    assert max(sizes) <= 70
    assert sum(sizes) == 500


def test_projecting_again_reads_each_cached_file_once(plan: Plan, tmp_path: Path) -> None:
    keys = {f"{n:03d}.txt": "1" for n in range(40)}
    plan.add_listing(listing(keys))
    rows: list[dict[str, str | None]] = [
        {"key": key, "version": "1", "vector_fp": "older", "features": f"u{n % 2}"} for n, key in enumerate(keys)
    ]
    plan.load_manifest(rows_of(tmp_path / "m.parquet", rows))
    assert plan.decide() == Counts(project=40)
    units = [unit for unit, _ in plan.cut("000002", "project", plan.to_project(), 4, 1_000)]
    assert sorted((unit.cached, unit.items) for unit in units) == [("u0", 20), ("u1", 20)]


@pytest.mark.parametrize(
    ("key", "pair"),
    [
        ("a/frog.spoken.ogg", "a/frog"),
        ("frog.png", "frog"),
        ("a.b/frog", "a.b/frog"),
        ("a/.hidden", "a/.hidden"),
    ],
)
def test_pair_is_the_path_up_to_the_first_dot_of_the_name(key: str, pair: str) -> None:
    assert pair_key(key) == pair


def known(plan: Plan) -> dict[str, list[tuple[str, str]]]:
    """By key: contents and files of features that an object to be read may turn out to be."""
    rows = plan.rows("SELECT key, known FROM known JOIN plan USING (item) ORDER BY key")
    return {key: [(each["content_id"], each["features"]) for each in contents] for key, contents in rows}


def test_what_an_object_may_turn_out_to_be_is_found_by_name_version_and_size(plan: Plan, tmp_path: Path) -> None:
    plan.add_listing(listing({"touched.txt": "2", "moved.txt": "7", "same.txt": "1", "other.png": "8"}))
    rows: list[dict[str, str | None]] = [
        {"key": "touched.txt", "version": "1", "content_id": "c-touched", "features": "u1"},
        {"key": "gone.txt", "version": "7", "content_id": "c-moved", "features": "u2"},
        {"key": "same.txt", "version": "1", "content_id": "c-same", "features": "u3"},
        {"key": "older.txt", "version": "1", "content_id": "c-older", "feature_fp": "older"},
    ]
    plan.load_manifest(rows_of(tmp_path / "m.parquet", rows))
    counts = plan.decide()
    assert (counts.new, counts.changed, counts.unchanged, counts.deleted, counts.moved) == (2, 1, 1, 2, 1)
    everything = [("c-moved", "u2"), ("c-same", "u3"), ("c-touched", "u1")]  # all are of one size
    assert known(plan) == {"touched.txt": everything, "moved.txt": everything, "other.png": everything}
    likely = {(each.action, each.likely): each.items for each in plan.differences()}
    assert likely == {("changed", "touched"): 1, ("new", "moved"): 1, ("new", None): 1, ("unchanged", None): 1}


def test_a_size_that_many_contents_share_says_nothing(plan: Plan, tmp_path: Path) -> None:
    plan.add_listing(listing({"touched.txt": "2", "new.txt": "3"}))
    rows: list[dict[str, str | None]] = [
        {"key": f"{number}.txt", "version": "1", "content_id": f"c{number}"} for number in range(20)
    ]
    rows.append({"key": "touched.txt", "version": "1", "content_id": "c-touched"})
    plan.load_manifest(rows_of(tmp_path / "m.parquet", rows))
    plan.decide()
    assert known(plan) == {"touched.txt": [("c-touched", "u1")]}


def test_damaged_files_are_made_again_from_what_is_left(plan: Plan, tmp_path: Path) -> None:
    keys = ["part.txt", "features.txt", "both.txt", "fine.txt"]
    plan.add_listing(listing(dict.fromkeys(keys, "1")))
    rows: list[dict[str, str | None]] = [
        {"key": "part.txt", "version": "1", "part": "bad-part", "features": "u1"},
        {"key": "features.txt", "version": "1", "part": "p1", "features": "bad-features"},
        {"key": "both.txt", "version": "1", "part": "bad-part", "features": "bad-features"},
        {"key": "fine.txt", "version": "1"},
    ]
    plan.load_manifest(rows_of(tmp_path / "m.parquet", rows))
    plan.redo(["parquet/bad-part.parquet", "features/fp/bad-features.parquet"])
    assert plan.decide() == Counts(project=1, encode=2, unchanged=1)


def test_a_forgotten_item_is_not_listed(plan: Plan) -> None:
    plan.add_listing(listing({"a.txt": "1", "b.txt": "1"}))
    plan.forget([item_id("file:///d/b.txt")])
    assert plan.decide() == Counts(new=1)


def test_what_was_too_large_is_tried_again_under_other_limits(tmp_path: Path) -> None:
    row = {"key": "a.txt", "version": "1", "status": "quarantined", "reason": "too_large"}
    found = []
    for limits in (Limits(), Limits(text_bytes=5)):
        with Plan({Modality.TEXT: TEXT}, limits) as plan:
            plan.add_listing(listing({"a.txt": "1"}))
            plan.load_manifest(rows_of(tmp_path / "m.parquet", [row]))
            found.append(plan.decide(live_run()))
    assert found == [Counts(quarantined=1), Counts(retry=1)]


BAD: list[dict[str, str | None]] = [
    {"key": "cut.png", "reason": "truncated", "stage": "decode", "modality": "image", "feature_fp": "f-image"},
    {"key": "page.png", "reason": "wrong_type", "stage": "decode", "modality": None, "feature_fp": None},
    {"key": "noise", "reason": "unknown_type", "stage": "decode", "modality": None, "feature_fp": None},
    {"key": "film.mp4", "reason": "no_encoder", "stage": "decode", "modality": "video", "feature_fp": None},
    {"key": "nan.txt", "reason": "not_finite", "stage": "encode", "modality": "text", "feature_fp": "f-text"},
    {"key": "name.txt", "reason": "bad_name", "stage": "read", "modality": None, "feature_fp": None},
    {"key": "away.txt", "reason": "forbidden", "stage": "read", "modality": None, "feature_fp": None},
]
"""Of every stage; only the last one is tried again by itself."""


def live_run(**made: Any) -> Snapshot:
    fingerprints = {Modality.TEXT: TEXT, Modality.IMAGE: IMAGE}
    return Snapshot(run="1", parent=None, source="", space="", dim=1, listed=1, **{"fingerprints": fingerprints} | made)


def tried_again(path: Path, live: Snapshot, members: dict[Modality, Fingerprints], **wanted: Any) -> set[str]:
    """Keys of `BAD` that a run with these encoders and the decoder `pillow 2` would read again."""
    with Plan(members, Limits(), {"pillow": "2"}) as plan:
        plan.add_listing(listing({str(row["key"]): "1" for row in BAD}))
        bad: list[dict[str, str | None]] = [{**row, "version": "1", "status": "quarantined"} for row in BAD]
        plan.load_manifest(rows_of(path, bad))
        counts = plan.decide(live, **wanted)
        assert counts.listed == len(BAD) == counts.retry + counts.encode + counts.quarantined
        return {key for (key,) in plan.rows("SELECT key FROM plan WHERE action IN ('retry', 'encode')")}


OTHER_IMAGE = Fingerprints(feature="g-image", vector="w-image")
VIDEO = Fingerprints(feature="f-video", vector="v-video")
KNOWN_NOW = {"pillow": "2"}


@pytest.mark.parametrize(
    ("live", "members", "expected"),
    [
        ({"decoders": KNOWN_NOW}, {}, set()),
        # an older collection does not say, and its decoders may have been wrong
        ({"decoders": {}}, {}, {"cut.png", "page.png", "noise"}),
        ({"decoders": {"pillow": "1"}}, {}, {"cut.png", "page.png", "noise"}),
        ({"decoders": KNOWN_NOW}, {Modality.IMAGE: OTHER_IMAGE}, {"cut.png", "page.png", "noise"}),
        ({"decoders": KNOWN_NOW}, {Modality.VIDEO: VIDEO}, {"film.mp4", "noise"}),
        ({"decoders": KNOWN_NOW}, {Modality.TEXT: VIDEO}, {"nan.txt", "name.txt", "noise"}),
    ],
    ids=["nothing", "unknown decoders", "decoders", "image encoder", "a video encoder", "text encoder"],
)
def test_what_may_have_another_outcome_is_tried_again(
    live: dict[str, Any], members: dict[Modality, Fingerprints], expected: set[str], tmp_path: Path
) -> None:
    members = {Modality.TEXT: TEXT, Modality.IMAGE: IMAGE} | members
    assert tried_again(tmp_path / "m.parquet", live_run(**live), members) == expected | {"away.txt"}


def test_what_is_asked_for_is_tried_again_and_a_repair_tries_nothing(tmp_path: Path) -> None:
    members = {Modality.TEXT: TEXT, Modality.IMAGE: IMAGE}
    live = live_run(decoders=KNOWN_NOW)
    asked = tried_again(tmp_path / "m.parquet", live, members, retry=[Reason.TRUNCATED, Reason.NO_ENCODER])
    assert asked == {"cut.png", "film.mp4", "away.txt"}
    assert tried_again(tmp_path / "m.parquet", live_run(), members, retry=list(Reason)) == {row["key"] for row in BAD}
    assert tried_again(tmp_path / "m.parquet", live_run(decoders={"pillow": "1"}), members, retry=None) == set()


def test_a_full_temporary_disk_is_a_matter_of_trying_later() -> None:
    with pytest.raises(TryLater, match="no space left for temporary files"), Plan({}, Limits()):
        raise duckdb.IOException('Could not write file "plan.duckdb": No space left on device')
