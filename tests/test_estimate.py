"""The plan document on real files with a tiny CLIP: what a run would do, without doing any of it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from conftest import write_picture, write_words
from proxy import proxied

from batchproj import calibration, estimate
from batchproj.collection.ledger import Report
from batchproj.embed import Options, Watch, embed
from batchproj.errors import SourceError, UsageError
from batchproj.estimate import PlanDocument, lines, make_plan
from batchproj.objectstore import Folder
from batchproj.project import parse_config
from batchproj.recipe import Pool, Recipe, Units
from batchproj.schema import Modality
from batchproj.space import ResolvedSpace, open_space, resolve

pytestmark = pytest.mark.usefixtures("no_ray")

SMALL_UNITS = Recipe(units=Units(max_items=8))
CATEGORIES = ["new", "moved", "changed", "touched", "retry", "reencode", "reproject", "unchanged", "quarantined"]


def space_of(file: Path) -> ResolvedSpace:
    return resolve(open_space(str(file)))


def plan(
    source: object, collection: object, space: Path, recipe: Recipe = SMALL_UNITS, price: float | None = None
) -> PlanDocument:
    document = make_plan(str(source), str(collection), space_of(space), recipe, price, lambda _: None)
    assert document.listed == sum(getattr(document, name) for name in CATEGORIES)
    return document


def run(source: object, collection: object, space: Path) -> Report:
    return embed(str(source), str(collection), space_of(space), Options(SMALL_UNITS), Watch())


def counts(document: PlanDocument) -> dict[str, int]:
    """The categories that are not empty, and the deleted."""
    return {name: count for name in [*CATEGORIES, "deleted"] if (count := getattr(document, name))}


def tree(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def collection_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_a_first_run_is_calibrated_on_real_objects_and_leaves_no_trace(
    corpus: Path, tmp_path: Path, tiny_space: Path
) -> None:
    before = tree(corpus)
    document = plan(corpus, tmp_path / "c", tiny_space)
    assert not (tmp_path / "c").exists()
    assert tree(corpus) == before
    assert (document.run, counts(document), document.nothing_to_do) == (None, {"new": 24}, False)
    assert (document.source, document.space, document.differences) == (f"file://{corpus}", "tiny", [])
    assert (document.reads, document.encodes, document.projects) == (24, {"image": 12, "text": 12}, 0)
    assert document.read_bytes == sum(file.stat().st_size for file in corpus.rglob("*.*"))
    for measured in document.calibration.values():
        assert measured.sampled == 12
        assert 0 < measured.encode_s_per_item < 5
        assert 0 < measured.read_s_per_item < 5
    assert document.seconds > 0
    assert (document.gpu_hours, document.cost, document.blocked, document.device is None) == (0, None, None, False)


def test_the_space_needed_is_about_what_the_run_adds(tmp_path: Path, tiny_space: Path) -> None:
    for number in range(200):
        write_words(tmp_path / f"words/{number}.txt", number)
    document = plan(tmp_path / "words", tmp_path / "c", tiny_space, Recipe())
    embed(str(tmp_path / "words"), str(tmp_path / "c"), space_of(tiny_space), Options(), Watch())
    assert 0.5 < document.space_bytes / collection_bytes(tmp_path / "c") < 2


def test_without_a_change_there_is_nothing_to_do(corpus: Path, tiny_space: Path, embedded: tuple[Path, Report]) -> None:
    collection, first = embedded
    before = tree(collection)
    document = plan(corpus, collection, tiny_space)
    assert tree(collection) == before
    assert (counts(document), document.run, document.nothing_to_do) == ({"unchanged": 24}, first.run, True)
    assert (document.reads, document.encodes, document.calibration, document.device) == (0, {}, {}, None)
    assert (document.seconds, document.space_bytes) == (0, 0)
    assert lines(document) == ["nothing to do: 24 unchanged; run 000001 stays live"]


def test_every_kind_of_change_has_its_category_and_the_run_does_what_was_planned(
    corpus: Path, tiny_space: Path, embedded: tuple[Path, Report]
) -> None:
    collection, _ = embedded
    write_picture(corpus / "new/item99.png", 99)
    (corpus / "new/broken.png").write_bytes(b"no picture at all")
    (corpus / "d0/item0.txt").write_text("w1 w2")
    os.utime(corpus / "d0/item3.txt")
    (corpus / "d1/item1.png").rename(corpus / "d1/moved.png")
    (corpus / "d2/item2.txt").unlink()
    before = tree(collection)
    document = plan(corpus, collection, tiny_space)
    assert tree(collection) == before
    assert counts(document) == {"new": 2, "moved": 1, "changed": 1, "touched": 1, "unchanged": 20, "deleted": 2}
    assert (document.reads, document.encodes) == (5, {"image": 2, "text": 1})
    assert lines(document)[0] == (
        "2 new, 1 changed, 1 touched, 1 moved, 2 deleted (old names of moved ones too), 20 unchanged"
    )
    assert "encodes at most 2 image, 1 text" in lines(document)[1]
    assert lines(document)[-1] == f"do it: batchproj embed {corpus} {collection}"
    report = run(corpus, collection, tiny_space)
    assert (report.embedded, report.copied, report.unchanged, report.quarantined) == (2, 2, 20, 1)
    assert counts(plan(corpus, collection, tiny_space)) == {"unchanged": 24, "quarantined": 1}


def test_a_changed_encoder_is_named_and_encodes_all_again_and_what_moved_too(
    corpus: Path, tiny_space: Path, embedded: tuple[Path, Report]
) -> None:
    collection, _ = embedded
    (corpus / "d1/item1.png").rename(corpus / "d1/moved.png")
    changed = tiny_space.with_name("estimate-fp32.yaml")
    text = tiny_space.read_text()
    changed.write_text(text.replace("}}\nimage: {encoder: {", "}}\nimage: {encoder: {dtype: fp32, "))
    document = plan(corpus, collection, changed)
    assert counts(document) == {"moved": 1, "reencode": 11, "unchanged": 12, "deleted": 1}
    assert (document.reads, document.encodes, set(document.calibration)) == (12, {"image": 12}, {"image"})
    assert [(d.modality, d.field, d.now) for d in document.differences] == [("image", "encoder.dtype", "fp32")]
    assert lines(document)[0].endswith("; the image encoder changes: encoder.dtype bf16 -> fp32")
    assert lines(document, str(changed), "my recipe.yaml")[-1] == (
        f"do it: batchproj embed {corpus} {collection} --space {changed} --recipe 'my recipe.yaml'"
    )


def test_another_projector_reads_and_encodes_nothing(
    corpus: Path, tiny_space: Path, tmp_path: Path, embedded: tuple[Path, Report]
) -> None:
    collection, _ = embedded
    parse_config({"kind": "linear", "in_dim": 24, "out_dim": 24}).build().save(tmp_path / "image.safetensors")
    changed = tmp_path / "space.yaml"
    projector = "}, projector: {kind: linear, weights: image.safetensors}}\n"
    changed.write_text(tiny_space.read_text().removesuffix("}}\n") + projector)
    document = plan(corpus, collection, changed)
    assert counts(document) == {"reproject": 12, "unchanged": 12}
    assert (document.reads, document.encodes, document.projects, document.calibration) == (0, {}, 12, {})
    assert document.seconds > 0
    assert document.space_bytes > 12 * 2 * 4 * 24
    assert {d.field for d in document.differences} == {"projector"}
    assert "the image projector changes: projector none -> " in lines(document)[0]


def test_objects_of_unclear_name_are_sampled_by_their_content(corpus: Path, tmp_path: Path, tiny_space: Path) -> None:
    for file in corpus.rglob("*.txt"):
        file.rename(file.with_suffix(""))
    document = plan(corpus, tmp_path / "c", tiny_space)
    assert document.encodes == {"image": 12, "unclear": 12}
    assert document.calibration["unclear"].encode_s_per_item > 0


def test_a_modality_stops_being_sampled_when_its_time_is_up(
    corpus: Path, tmp_path: Path, tiny_space: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "BOX_S", 0.0)
    monkeypatch.setattr(calibration, "CHUNK_ITEMS", 5)
    document = plan(corpus, tmp_path / "c", tiny_space)
    assert {modality: each.sampled for modality, each in document.calibration.items()} == {"image": 5, "text": 5}


def test_gpus_that_the_pools_hold_cost_money(corpus: Path, tmp_path: Path, tiny_space: Path) -> None:
    recipe = Recipe(pools={Modality.IMAGE: Pool(workers=4, gpus=0.5)}, units=Units(max_items=6))
    document = plan(corpus, tmp_path / "c", tiny_space, recipe, price=3600.0)
    assert document.gpu_hours == pytest.approx(2 * 0.5 * document.seconds / 3600, abs=1e-3)  # work for two workers
    assert document.cost == pytest.approx(document.gpu_hours * 3600, abs=1)
    assert plan(corpus, tmp_path / "c", tiny_space, price=3600.0).cost == 0


def test_what_embed_would_refuse_is_told(corpus: Path, tiny_space: Path, embedded: tuple[Path, Report]) -> None:
    collection, _ = embedded
    shutil.rmtree(corpus / "d2")
    document = plan(corpus, collection, tiny_space)
    assert document.deleted == 8
    assert document.blocked is not None
    assert "8 of 24 items are no longer in the source" in document.blocked
    assert lines(document)[-1] == f"embed will refuse this: {document.blocked}"


def test_what_cannot_be_planned_is_refused_as_embed_does(corpus: Path, tmp_path: Path, tiny_space: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="nothing to embed"):
        plan(tmp_path / "empty", tmp_path / "c", tiny_space)
    with pytest.raises(SourceError, match="source not found"):
        plan(tmp_path / "missing", tmp_path / "c", tiny_space)
    with pytest.raises(UsageError, match="same folder"):
        plan(corpus, corpus, tiny_space)
    assert not (tmp_path / "c").exists()


def test_a_plan_of_a_bucket_writes_nothing_and_of_an_unchanged_one_reads_no_object(
    s3_endpoint: str, s3_bucket: str, tiny_space: Path
) -> None:
    bucket = s3_bucket.removeprefix("s3://")
    source, collection = f"{s3_bucket}/photos", f"{s3_bucket}/c"
    folder = Folder(source)
    for number in range(6):
        folder.write(f"{number}.txt", f"w{number + 1} w2".encode())
    run(source, collection, tiny_space)
    with proxied(s3_endpoint) as proxy:
        assert plan(source, collection, tiny_space).nothing_to_do
        assert proxy.object_reads(bucket, "photos/") == {}
        folder.write("3.txt", b"w9 w9 w9")
        proxy.clear()
        assert counts(plan(source, collection, tiny_space)) == {"changed": 1, "unchanged": 5}
        assert proxy.object_reads(bucket, "photos/") == {f"/{bucket}/photos/3.txt": 1}
        assert {request.method for request in proxy.requests} <= {"GET", "HEAD"}


def test_rows_that_embed_would_quarantine_are_told(tmp_path: Path, tiny_space: Path) -> None:
    table = tmp_path / "t.jsonl"
    table.write_text('{"id": "a", "text": "w1"}\n{"id": "b", "text": \n{"id": "c", "text": "w2"}\n')
    document = plan(table, tmp_path / "c", tiny_space)
    assert (document.new, document.faulty) == (3, 1)
    assert document.first_fault is not None
    assert document.first_fault.startswith(f"file://{table}#row=2: bad_row: line 2 is not JSON: ")
    assert lines(document)[1] == f"1 of them cannot be read and will be quarantined: {document.first_fault}"
    assert run(table, tmp_path / "c", tiny_space).quarantined == document.faulty
    again = plan(table, tmp_path / "c", tiny_space)
    assert (again.quarantined, again.faulty, again.nothing_to_do) == (1, 0, True)
    table.write_text(table.read_text() + '{"id": "d", "uri": "no/such.png"}\n{"id": "e"}\n')
    third = plan(table, tmp_path / "c", tiny_space)
    assert (third.new, third.faulty) == (2, 2)
    assert "will be quarantined: the first, " in lines(third)[1]


@pytest.mark.parametrize("with_ray", [True, False])
def test_a_few_items_do_not_wait_for_ray(
    with_ray: bool, corpus: Path, tmp_path: Path, tiny_space: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "is_ray_asked_for", lambda: with_ray)
    monkeypatch.setattr(estimate, "START_S", 1_000.0)
    assert (plan(corpus, tmp_path / "c", tiny_space).seconds >= 1_000) is with_ray
