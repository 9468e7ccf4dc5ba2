"""From cached features to a better space: training, projecting again, evaluating, refusing."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
import yaml

import batchproj
from batchproj import fit, project
from batchproj.embed import Options, Report, Watch, embed, usual_space
from batchproj.errors import CollectionError, UsageError
from batchproj.evaluate import evaluate
from batchproj.pairs import Samples, held_out_pairs, matrix, paired_rows
from batchproj.recipe import Recipe, Units
from batchproj.schema import Modality
from batchproj.search import Collection
from batchproj.space import Split, open_space, resolve
from batchproj.train import TrainOptions, train

pytestmark = pytest.mark.usefixtures("no_ray")

QUICK = fit.Config(max_steps=20, checks=4)


def ignore(*_: object) -> None:
    """For training that nobody watches."""


def options(projector: str = "linear", test_fraction: float = 0.3) -> TrainOptions:
    return TrainOptions(projector, split=Split(test_fraction=test_fraction), fit=QUICK)


def test_a_trained_space_is_projected_from_the_cache(
    corpus: Path, tmp_path: Path, embedded: tuple[Path, Report]
) -> None:
    collection, _ = embedded
    before = batchproj.open(str(collection)).table()
    made = train(str(collection), str(tmp_path / "space"), options(), ignore, ignore)
    (result,) = made["modality"].values()
    assert result["pairs_train"] + result["pairs_test"] == 12
    assert {"projector", "r@1", "r@5", "r@10", "baseline_r@10", "seconds"} <= set(result)
    assert "| image | linear |" in (tmp_path / "space" / "README.md").read_text()

    for file in corpus.rglob("*.png"):
        file.write_bytes(b"")  # the features are cached: nobody may look
    listed = resolve(open_space(str(tmp_path / "space")))
    restore_times(corpus, before)
    report = embed(str(corpus), str(collection), listed, Options(Recipe(units=Units(max_items=8))), Watch())
    assert (report.reprojected, report.unchanged, report.embedded, report.quarantined) == (12, 12, 0, 0)
    assert report.encode_calls == {}
    # a plain rerun keeps to this space
    assert resolve(open_space(usual_space(str(collection)))).fingerprint == listed.fingerprint
    assert usual_space(str(tmp_path / "new")) == "builtin"
    after = Collection(str(collection))
    rows = after.table()
    assert after._table.count_rows() == rows.num_rows == 24
    old, new = ({row["id"]: row for row in table.to_pylist()} for table in (before, rows))
    assert old.keys() == new.keys()
    for key, row in new.items():
        same = np.array_equal(row["vector"], old[key]["vector"])
        assert same == (row["modality"] == "text")
        assert (row["fingerprint"] == old[key]["fingerprint"]) == (row["modality"] == "text")
        assert np.linalg.norm(row["vector"]) == pytest.approx(1, abs=1e-5)


def restore_times(corpus: Path, before: object) -> None:
    """Make emptied files look like the listed ones: the version is size and time."""
    for row in before.to_pylist():  # type: ignore[attr-defined]
        size, _, mtime_ns = row["source_version"].partition("-")
        path = Path(row["uri"].removeprefix("file://"))
        with path.open("r+b") as file:
            file.truncate(int(size))
        os.utime(path, ns=(int(mtime_ns), int(mtime_ns)))


def test_same_seed_same_weights(embedded: tuple[Path, Report], tmp_path: Path) -> None:
    for name in ("a", "b"):
        train(str(embedded[0]), str(tmp_path / name), options("mlp"), ignore, ignore)
    assert (tmp_path / "a/image.safetensors").read_bytes() == (tmp_path / "b/image.safetensors").read_bytes()


def test_a_reverse_projector_finds_features_by_text(embedded: tuple[Path, Report], tmp_path: Path) -> None:
    out = tmp_path / "reverse"
    made = train(str(embedded[0]), str(out), replace(options(), reverse=True), ignore, ignore)
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "card.json",
        "image.reverse.safetensors",
        "image.svg",
    ]
    assert made["modality"]["image"]["pairs_train"] + made["modality"]["image"]["pairs_test"] == 12
    collection = Collection(str(embedded[0]))
    texts = collection.table().filter(pc.equal(collection.table()["modality"], "text"))
    features = project.load(out / "image.reverse.safetensors").project(matrix(texts["vector"]))
    assert features.shape == (12, 24)
    card = json.loads((out / "card.json").read_text())["modality"]["image"]
    assert set(card["competitors"]) == {"new", "ridge", "chance"}
    assert "the other way" in (out / "README.md").read_text()
    with pytest.raises(UsageError, match="expected linear or mlp, not transformer"):
        train(str(embedded[0]), str(out), replace(options("transformer"), reverse=True), ignore, ignore)


def test_reversed_samples_ask_for_the_items_of_their_captions() -> None:
    features = np.array([[3, 0], [0, 2], [0, 2]], np.float16)
    captions = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    samples = Samples(features, captions, ["a", "b", "b"], ["0", "1", "1"], [0, 1, 1]).reversed()
    np.testing.assert_array_equal(samples.features, captions)
    np.testing.assert_array_equal(samples.targets, [[1, 0], [0, 1], [0, 1]])
    held_out = samples.held_out()
    assert (len(held_out.item_groups), len(held_out.captions)) == (3, 2)  # texts, different items
    perfect = held_out.answers(np.array([[1, 0], [0, 1], [0, 1]], np.float32)[samples.one_an_item()])
    assert perfect.to_item[:, 0].tolist() == [1, 1]


def test_evaluate_counts_held_out_pairs_both_ways(embedded: tuple[Path, Report]) -> None:
    result = evaluate(str(embedded[0]))
    assert set(result["pairs"]) == {"text->image", "image->text"}
    assert result["pairs"]["text->image"]["n"] == 12
    assert result["ann_recall@10"] == 1.0
    assert set(result["modality_gap"]) == {"image-text"}
    json.dumps(result, allow_nan=False)


def test_after_training_only_the_held_out_pairs_are_judged(
    corpus: Path, embedded: tuple[Path, Report], tmp_path: Path
) -> None:
    collection = Collection(str(embedded[0]))
    held_out = held_out_pairs(paired_rows(collection), Split(test_fraction=0.3))
    assert 0 < len(held_out) < 12
    made = train(str(embedded[0]), str(tmp_path / "space"), options(), ignore, ignore)
    assert made["modality"]["image"]["pairs_test"] == len(held_out)
    settings = Options(Recipe(units=Units(max_items=8)))
    embed(str(corpus), str(embedded[0]), resolve(open_space(str(tmp_path / "space"))), settings, Watch())
    judged = evaluate(str(embedded[0]))
    assert judged["held_out"] is True
    assert judged["pairs"]["text->image"]["n"] == len(held_out)
    assert yaml.safe_load((tmp_path / "space/space.yaml").read_text())["split"] == {"seed": 0, "test_fraction": 0.3}


def test_nothing_to_train_is_one_line_and_writes_nothing(
    embedded: tuple[Path, Report], tmp_path: Path, corpus: Path, tiny_space: Path
) -> None:
    with pytest.raises(UsageError, match="asked for audio"):
        train(str(embedded[0]), str(tmp_path / "space"), TrainOptions(modality=Modality.AUDIO), ignore, ignore)
    with pytest.raises(UsageError, match="no projector kind 'linaer'"):
        train(str(embedded[0]), str(tmp_path / "space"), options("linaer"), ignore, ignore)
    assert not (tmp_path / "space").exists()


def test_a_query_by_another_encoder_is_refused(embedded: tuple[Path, Report]) -> None:
    """The snapshot's fingerprint is what made the rows; the models at hand give another one."""
    collection = embedded[0]
    snapshot = next((collection / "snapshots").glob("*.json"))
    document = json.loads(snapshot.read_text())
    document["fingerprints"]["text"]["vector"] = "0" * 64
    snapshot.write_text(json.dumps(document))
    with pytest.raises(CollectionError, match="text encoder at hand has fingerprint"):
        batchproj.open(str(collection)).search("w1 w2")


def test_search_filters_and_limits(embedded: tuple[Path, Report], corpus: Path) -> None:
    opened = batchproj.open(str(embedded[0]))
    words = (corpus / "d0/item3.txt").read_text()
    assert {hit.modality for hit in opened.search(words, k=24)} == {"text", "image"}
    assert {hit.modality for hit in opened.search(words, k=24, modality="image")} == {"image"}
    found = opened.search(words, k=24, where=["pair=d0/item3"])
    assert sorted(hit.modality for hit in found) == ["image", "text"]
    assert opened.search(words, where=["pair=x' OR 1=1 --"]) == []
    assert {hit.text for hit in found if hit.modality == "text"} == {words}
    for wrong, message in [
        ({"k": 0}, "expected 1 to"),
        ({"modality": "smell"}, "no modality 'smell'"),
        ({"where": ["nonsense=1"]}, "columns are"),
        ({"where": ["segment=x"]}, "is a number"),
        ({"image": corpus / "d0/item3.txt"}, "is text, not image"),
        ({"image": corpus / "nothing.png"}, "no file at"),
    ]:
        with pytest.raises(UsageError, match=message):
            opened.search(None if "image" in wrong else words, **wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="give a query"):
        opened.search()
    with pytest.raises(UsageError, match="no encoder for audio"):
        opened.search(audio=corpus / "d0/item3.png")
