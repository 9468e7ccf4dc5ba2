"""Any text tower as the target: a space is embedded, trained into its text vectors, projected again and searched."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
import soundfile
import torch
import yaml
from conftest import write_picture, write_words
from in_process import command, quiet, run, without_ray
from tiny_text import SAVED, save_clap, save_t5

import batchproj
from batchproj import fit
from batchproj.embed import Options
from batchproj.errors import SpaceError, UsageError
from batchproj.pairs import matrix, paired_rows, paired_samples
from batchproj.project import load, parse_config
from batchproj.recipe import Recipe, Units
from batchproj.schema import Modality
from batchproj.search import Collection
from batchproj.space import Split, open_space, resolve
from batchproj.train import TrainOptions, train

PAIRS = 16
OPTIONS = Options(Recipe(units=Units(max_items=64), read_threads=2))
TRAINING = TrainOptions("linear", split=Split(test_fraction=0.3), fit=fit.Config(max_steps=10, checks=2))


@pytest.fixture(autouse=True)
def _in_process() -> Iterator[None]:
    with without_ray():
        yield


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen pictures, each with a few words."""
    folder = tmp_path_factory.mktemp("pairs")
    for number in range(PAIRS):
        write_picture(folder / f"{number}.png", number)
        write_words(folder / f"{number}.txt", number)
    return folder


def linear(path: Path, in_dim: int, out_dim: int, seed: int = 0) -> dict[str, str]:
    """A projector of random weights, and how a space names it."""
    torch.manual_seed(seed)
    path.parent.mkdir(exist_ok=True)
    parse_config({"kind": "linear", "in_dim": in_dim, "out_dim": out_dim}).build().save(path)
    return {"kind": "linear", "weights": path.name}


def write_space(folder: Path, dim: int, **members: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "space.yaml").write_text(yaml.safe_dump({"name": folder.name, "dim": dim, **members}))
    return folder


@pytest.mark.parametrize(("name", "kind", "dim"), [("t5", "text", 32), ("qwen3", "text", 32), ("clap", "clap", 24)])
def test_trained_into_any_text_tower(
    name: str, kind: str, dim: int, pairs: Path, tiny_clip: Path, tmp_path: Path
) -> None:
    model = SAVED[name](tmp_path / "model")
    image = {
        "encoder": {"kind": "clip", "model": str(tiny_clip)},
        "projector": linear(tmp_path / "space/image.safetensors", 24, dim),
    }
    space = write_space(tmp_path / "space", dim, text={"encoder": {"kind": kind, "model": str(model)}}, image=image)
    collection = tmp_path / "c"
    assert run(pairs, collection, space, OPTIONS).embedded == 2 * PAIRS
    made = train(str(collection), str(tmp_path / "trained"), TRAINING, lambda *_: None, quiet)
    result = made["modality"]["image"]
    assert result["pairs_train"] + result["pairs_test"] == PAIRS
    report = run(pairs, collection, tmp_path / "trained", OPTIONS)
    assert (report.reprojected, report.unchanged, report.encode_calls) == (PAIRS, PAIRS, {})
    opened = batchproj.open(str(collection))
    hits = opened.search((pairs / "3.txt").read_text(), k=2 * PAIRS)
    assert {hit.modality for hit in hits} == {"image", "text"}
    assert (hits[0].uri.endswith("/3.txt"), hits[0].score) == (True, pytest.approx(1, abs=1e-3))
    found = opened.search(image=pairs / "5.png", k=3, modality="image")
    assert found[0].uri.endswith("/5.png")


@pytest.fixture
def projected(pairs: Path, tiny_clip: Path, tmp_path: Path) -> Path:
    """A collection of the pairs in a space of 24 dims, into which a T5 of 64 is projected."""
    model = save_t5(tmp_path / "model", d_model=64)
    space = write_space(
        tmp_path / "space",
        24,
        text={
            "encoder": {"kind": "text", "model": str(model)},
            "projector": linear(tmp_path / "space/text.safetensors", 64, 24),
        },
        image={"encoder": {"kind": "clip", "model": str(tiny_clip)}},
    )
    assert run(pairs, tmp_path / "c", space, OPTIONS).embedded == 2 * PAIRS
    return tmp_path


def test_text_may_have_a_projector(projected: Path, pairs: Path) -> None:
    """Its features are the encoder's 64 dims; what others are trained into are the 24 of the space."""
    collection = Collection(str(projected / "c"))
    rows = paired_rows(collection)
    own = paired_samples(collection, rows, Modality.TEXT)
    samples = paired_samples(collection, rows, Modality.IMAGE)
    assert own is not None
    assert samples is not None
    assert np.asarray(own.features).shape == (PAIRS, 64)
    assert samples.targets.shape == (PAIRS, 24)
    projector = load(projected / "space" / "text.safetensors")
    wanted = dict(zip(own.pairs, projector.project(own.features), strict=True))
    np.testing.assert_array_equal(samples.targets, [wanted[pair] for pair in samples.pairs])
    assert collection.search((pairs / "3.txt").read_text(), k=1)[0].uri.endswith("/3.txt")

    train(str(collection.uri), str(projected / "trained"), TRAINING, lambda *_: None, quiet)
    kept = yaml.safe_load((projected / "trained" / "space.yaml").read_text())
    assert set(kept["text"]) == {"encoder", "cache", "projector"}
    assert (projected / "trained/text.safetensors").read_bytes() == (projected / "space/text.safetensors").read_bytes()
    before = vectors(collection, "text")
    report = run(pairs, projected / "c", projected / "trained", OPTIONS)
    assert (report.reprojected, report.unchanged, report.encode_calls) == (PAIRS, PAIRS, {})
    after = Collection(str(projected / "c"))
    np.testing.assert_array_equal(vectors(after, "text"), before)
    assert after.search((pairs / "3.txt").read_text(), k=1)[0].uri.endswith("/3.txt")


def vectors(collection: Collection, modality: str) -> Any:
    rows = collection.table().sort_by("id").to_pylist()
    return np.array([row["vector"] for row in rows if row["modality"] == modality], np.float32)


def test_another_text_projector_is_projected_from_the_cache_and_judged(projected: Path, pairs: Path) -> None:
    """Ridge regression from the texts' features to the images' vectors finds more than a projector at random."""
    collection = Collection(str(projected / "c"))
    own = paired_samples(collection, rows := paired_rows(collection), Modality.TEXT)
    assert own is not None
    images = rows.filter(pc.equal(rows["modality"], "image"))
    wanted = dict(zip(images["pair"].to_pylist(), matrix(images["vector"]), strict=True))
    good = projected / "good"
    document = yaml.safe_load((projected / "space" / "space.yaml").read_text())
    file = linear(good / "text.safetensors", 64, 24)
    by_heart = load(good / "text.safetensors")
    features = np.asarray(own.features, np.float32)
    weights = np.linalg.lstsq(features, np.stack([wanted[pair] for pair in own.pairs]), rcond=None)[0]
    with torch.no_grad():
        for name, parameter in by_heart.named_parameters():
            parameter.copy_(torch.from_numpy(weights.T) if name.endswith("weight") else torch.zeros(24))
    by_heart.save(good / "text.safetensors")
    write_space(good, 24, text={**document["text"], "projector": file}, image=document["image"])
    report = run(pairs, projected / "c", good, OPTIONS)
    assert (report.reprojected, report.unchanged, report.encode_calls) == (PAIRS, PAIRS, {})
    with pytest.raises(UsageError, match="'space' is worse than the live one for image"):
        run(pairs, projected / "c", projected / "space", OPTIONS)


def test_sounds_are_found_by_words_in_claps_own_space(tmp_path: Path) -> None:
    """No projector: both towers end in one space. Five seconds are three windows of two."""
    model = save_clap(tmp_path / "model")
    encoder = {"encoder": {"kind": "clap", "model": str(model)}}
    space = write_space(tmp_path / "space", 24, text=encoder, audio=encoder)
    (tmp_path / "corpus").mkdir()
    write_words(tmp_path / "corpus" / "0.txt", 0)
    for number, seconds in enumerate((1.0, 5.0)):
        samples = np.random.default_rng(number).normal(0, 0.1, int(seconds * 22_050))
        soundfile.write(tmp_path / "corpus" / f"{number}.wav", samples, 22_050)
    assert run(tmp_path / "corpus", tmp_path / "c", space, OPTIONS).encode_calls == {"audio": 4, "text": 1}
    opened = batchproj.open(str(tmp_path / "c"))
    assert len(opened.search("w1 w2", k=9, modality="audio")) == 4
    best = opened.search(audio=tmp_path / "corpus" / "1.wav", k=3, modality="audio")
    assert {hit.uri.rsplit("/", 1)[-1] for hit in best} == {"1.wav"}
    assert sorted((hit.start, hit.end) for hit in best) == [(0, 2), (2, 4), (4, 5)]


def test_a_projector_may_still_be_to_be_trained(pairs: Path, tiny_clip: Path, tmp_path: Path) -> None:
    """A text tower of another width than the images' needs nothing beforehand: embed, train, embed again."""
    model = save_t5(tmp_path / "model", d_model=64)
    image = {"encoder": {"kind": "clip", "model": str(tiny_clip)}, "projector": {"kind": "linear"}}
    space = write_space(tmp_path / "space", 64, text={"encoder": {"kind": "text", "model": str(model)}}, image=image)
    collection = tmp_path / "c"
    assert run(pairs, collection, space, OPTIONS).embedded == 2 * PAIRS
    assert run(pairs, collection, space, OPTIONS).unchanged == 2 * PAIRS  # the same weights again
    again = command("embed", pairs, collection)
    assert "Random weights project image: batchproj train" in again.stdout
    assert np.linalg.matrix_rank(matrix(Collection(str(collection)).table()["vector"])) > PAIRS
    train(str(collection), str(tmp_path / "trained"), TRAINING, lambda *_: None, quiet)
    assert "Random weights" not in command("embed", pairs, collection, "--space", tmp_path / "trained").stdout
    report = run(pairs, collection, tmp_path / "trained", OPTIONS)
    assert (report.reprojected, report.unchanged) == (0, 2 * PAIRS)


def test_another_width_without_a_projector_says_how_to_begin(tiny_clip: Path, tmp_path: Path) -> None:
    space = write_space(tmp_path / "space", 64, image={"encoder": {"kind": "clip", "model": str(tiny_clip)}})
    with pytest.raises(SpaceError, match=r"gives 24 dimensions and the space has 64.*'projector: \{kind: linear\}'"):
        resolve(open_space(str(space)))


def test_projectors_that_cannot_be_begun_with(tiny_clip: Path, tmp_path: Path) -> None:
    encoder = {"encoder": {"kind": "clip", "model": str(tiny_clip)}}
    text = write_space(tmp_path / "a", 64, text={**encoder, "projector": {"kind": "linear"}})
    with pytest.raises(SpaceError, match=r"a, text: text is what others are trained into, .* must name its weights"):
        resolve(open_space(str(text)))
    misspelt = write_space(tmp_path / "b", 64, image={**encoder, "projector": {"kind": "linaer"}})
    with pytest.raises(SpaceError, match="b, image: no projector kind 'linaer': did you mean 'linear'"):
        resolve(open_space(str(misspelt)))


def test_a_modality_with_too_few_pairs_is_left_out_and_named(pairs: Path, tiny_clip: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    shutil.copytree(pairs, corpus)
    for number in range(3):
        soundfile.write(corpus / f"{number}.wav", np.sin(np.arange(4_800) * (number + 1) / 20), 48_000)
    tower = {"encoder": {"kind": "clip", "model": str(tiny_clip)}}
    heard = {"encoder": {"kind": "clap", "model": str(save_clap(tmp_path / "clap"))}, "projector": {"kind": "linear"}}
    space = write_space(tmp_path / "space", 24, text=tower, image=tower, audio=heard)
    collection = tmp_path / "c"
    assert run(corpus, collection, space, OPTIONS).embedded == 2 * PAIRS + 3
    said: list[str] = []
    made = train(str(collection), str(tmp_path / "trained"), TRAINING, lambda *_: None, said.append)
    assert list(made["modality"]) == ["image"]
    assert [line for line in said if line.startswith("left out is audio: ")]
    alone = dataclasses.replace(TRAINING, modality=Modality.AUDIO)
    with pytest.raises(UsageError, match=r"^audio: [0-3] pairs to train on"):
        train(str(collection), str(tmp_path / "none"), alone, lambda *_: None, quiet)
    assert not (tmp_path / "none").exists()
