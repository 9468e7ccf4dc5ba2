"""The report of a training run, what it says when there is nothing to be proud of, and `train --promote`."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from conftest import write_picture, write_words
from in_process import OPTIONS, command, resolved, without_ray
from runs import damage_features

from batchproj import fit
from batchproj.card import read_card, write_card
from batchproj.comparison import HeldOut
from batchproj.embed import Watch, embed
from batchproj.errors import SpaceError, UsageError
from batchproj.objectstore import Folder
from batchproj.pairs import Samples
from batchproj.promote import promote
from batchproj.recipe import Recipe, Units
from batchproj.report import CHANCE, NEW, REPLACED, RIDGE, compared
from batchproj.schema import Modality
from batchproj.search import Collection
from batchproj.space import Split, open_space, resolve
from batchproj.train import TrainOptions, train

PAIRS = 60
HALF = TrainOptions("linear", split=Split(test_fraction=0.5), fit=fit.Config(max_steps=20, checks=4))


@pytest.fixture(autouse=True)
def _in_process() -> Iterator[None]:
    with without_ray():
        yield


def ignore(*_: object) -> None:
    """For training that nobody watches."""


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory, tiny_space: Path) -> Path:
    """Sixty pairs of noise: there is nothing to be learnt."""
    made = tmp_path_factory.mktemp("promote")
    for number in range(PAIRS):
        write_picture(made / "corpus" / f"{number}.png", number)
        write_words(made / "corpus" / f"{number}.txt", number)
    with without_ray():
        embed(str(made / "corpus"), str(made / "c"), resolved(tiny_space), OPTIONS, Watch())
    return made


@pytest.fixture
def collection(first_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(first_run / "c", tmp_path / "c")
    return tmp_path / "c"


def batchproj(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "batchproj.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit 2, nothing on stdout, one line that says what is wrong."""
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    for word in words:
        assert word in line


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_card_compares_four_both_ways(collection: Path, tmp_path: Path) -> None:
    made = train(str(collection), str(tmp_path / "space"), HALF, ignore, ignore)
    image = read_card(str(tmp_path / "space"))["modality"]["image"]
    assert set(image["competitors"]) == {NEW, REPLACED, RIDGE, CHANCE}
    for name, figures in image["competitors"].items():
        assert {"text->image", "image->text", "mean_recall", "modality_gap"} == set(figures)
        assert (figures["modality_gap"] is None) == (name == CHANCE)
        for way in ("text->image", "image->text"):
            assert figures[way]["n"] == image["pairs_test"]
            for k in (1, 5, 10):
                recall = figures[way][f"r@{k}"]
                assert 0 <= recall["low"] <= recall["value"] <= recall["high"] <= 1
    n = image["pairs_test"]
    assert image["competitors"][CHANCE]["image->text"]["r@5"]["value"] == pytest.approx(5 / n, abs=1e-4)
    assert made["modality"]["image"]["r@10"] == image["competitors"][NEW]["text->image"]["r@10"]["value"]


def test_train_json_has_the_contracts_keys(collection: Path, tmp_path: Path) -> None:
    made = train(str(collection), str(tmp_path / "space"), HALF, ignore, ignore)
    contract = {"projector", "pairs_train", "pairs_test", "r@1", "r@5", "r@10", "baseline_r@10", "seconds"}
    known = {"median_rank", "chance_r@10", "steps"}
    assert set(made) == {"space", "modality"}
    assert set(made["modality"]["image"]) == contract | known


def test_many_held_out_groups_are_drawn_from() -> None:
    numbers = list(range(40))
    rows = np.eye(40, dtype=np.float32)
    samples = Samples(rows, rows, [f"p{n // 2}" for n in numbers], [f"g{n // 2}" for n in numbers], numbers)
    drawn = samples.of_groups(5)
    assert len(set(drawn.groups)) == 5
    assert len(drawn.items) == 10  # whole groups
    assert samples.of_groups(20) is samples
    assert samples.of_groups(5).items == drawn.items


def test_equal_objects_give_equal_weights_in_whatever_order_they_were_embedded(
    first_run: Path, tiny_space: Path, tmp_path: Path
) -> None:
    """Other units, so other files of features in another order."""
    others = replace(OPTIONS, recipe=Recipe(units=Units(max_items=13), read_threads=2))
    embed(str(first_run / "corpus"), str(tmp_path / "c"), resolved(tiny_space), others, Watch())
    for collection, space in ((first_run / "c", "first"), (tmp_path / "c", "second")):
        train(str(collection), str(tmp_path / space), HALF, ignore, ignore)
    first, second = ((tmp_path / space / "image.safetensors").read_bytes() for space in ("first", "second"))
    assert first == second


def test_another_split_of_the_replaced_space_is_said(collection: Path, tmp_path: Path) -> None:
    train(str(collection), str(tmp_path / "space"), HALF, ignore, ignore)
    card = read_card(str(tmp_path / "space"))
    for then, flattered in ((None, False), ((0, 0.5), False), ((0, 0.7), False), ((0, 0.2), True), ((1, 0.5), True)):
        split = None if then is None else {"seed": then[0], "test_fraction": then[1]}
        write_card(Folder(str(tmp_path / "again")), {**card, "replaced_split": split})
        assert ("may flatter" in (tmp_path / "again/README.md").read_text()) == flattered


def test_the_learning_curve_is_a_picture_that_the_card_shows(collection: Path, tmp_path: Path) -> None:
    train(str(collection), str(tmp_path / "space"), HALF, ignore, ignore)
    assert "](image.svg)" in (tmp_path / "space/README.md").read_text()
    picture = ElementTree.parse(tmp_path / "space/image.svg")
    lines = picture.findall("{http://www.w3.org/2000/svg}polyline")
    checks = read_card(str(tmp_path / "space"))["modality"]["image"]["history"]
    assert [len(line.attrib["points"].split()) for line in lines] == [len(checks)] * 2


def test_a_head_that_is_worth_nothing_is_called_so_and_not_promoted(collection: Path, tmp_path: Path) -> None:
    before = files(collection)
    done = batchproj("train", collection, "--out", tmp_path / "space", "--test-fraction", 0.5, "--promote", "--json")
    made = json.loads(done.stdout)  # the training itself is done
    assert (set(made), made["promoted"]) == ({"space", "modality", "promoted"}, None)
    done.stdout = ""
    refused(done, "not promoted: image: not better than chance, mean recall 0.", str(tmp_path / "space"))
    assert files(collection) == before
    card = read_card(str(tmp_path / "space"))["modality"]["image"]
    assert any("not told apart from chance" in said or "worse than chance" in said for said in card["verdict"])
    assert "**Not to be promoted**: not better than chance" in (tmp_path / "space/README.md").read_text()


def test_a_promoted_space_is_projected_from_the_cache(collection: Path, tmp_path: Path, first_run: Path) -> None:
    train(str(collection), str(tmp_path / "space"), HALF, ignore, ignore)
    card = read_card(str(tmp_path / "space"))
    card["modality"]["image"]["shortcomings"] = []  # as if there had been something to learn
    (tmp_path / "space/card.json").write_text(json.dumps(card))
    said: list[str] = []
    report = promote(str(collection), str(tmp_path / "space"), Watch(step=said.append))
    assert (report.reprojected, report.unchanged, report.embedded, report.encode_calls) == (PAIRS, PAIRS, 0, {})
    assert Collection(str(collection)).split == Split(test_fraction=0.5)


def test_options_of_train_that_make_no_sense_are_refused_before_it_begins(collection: Path, tmp_path: Path) -> None:
    done = command("train", collection, "--out", tmp_path / "space", "--reverse", "--promote")
    refused(done, "--reverse makes no space that could be promoted", "one of --reverse and --promote")
    assert command("train", collection, "--out", tmp_path / "space", "--seed", -5).returncode == 2
    assert not (tmp_path / "space").exists()


def test_a_space_without_a_card_is_not_promoted(collection: Path, tiny_space: Path) -> None:
    with pytest.raises(SpaceError, match=r"no card\.json"):
        promote(str(collection), str(tiny_space.parent), Watch())


def unit(rows: int, dims: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, dims)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def judged(new_noise: float, ridge_noise: float, replaced_noise: float, count: int = 100) -> dict[str, Any]:
    """What is said of three projectors that come near the captions, each by its own noise."""
    names = [str(number) for number in range(count)]
    held_out = HeldOut(names, unit(count, 32, seed=1), names)

    def near(noise: float, seed: int) -> Any:
        moved = held_out.captions + noise * unit(count, 32, seed)
        return held_out.answers((moved / np.linalg.norm(moved, axis=1, keepdims=True)).astype(np.float32))

    answers = {NEW: near(new_noise, 2), RIDGE: near(ridge_noise, 3), REPLACED: near(replaced_noise, 4)}
    return compared(Modality.IMAGE, held_out, {**answers, CHANCE: held_out.chance()})


def test_what_is_said_follows_from_the_figures() -> None:
    better = judged(new_noise=1.0, ridge_noise=2.5, replaced_noise=3.0)
    assert better["shortcomings"] == []
    assert all(said.startswith("better than") for said in better["verdict"])
    behind_ridge = judged(new_noise=2.5, ridge_noise=1.0, replaced_noise=9.0)
    assert any("worse than ridge regression" in said for said in behind_ridge["verdict"])
    assert [said.partition(",")[0] for said in behind_ridge["shortcomings"]] == ["not better than ridge regression"]
    behind_live = judged(new_noise=2.5, ridge_noise=9.0, replaced_noise=1.0)
    assert [said.partition(",")[0] for said in behind_live["shortcomings"]] == ["worse than the projector it replaces"]
    by_luck = judged(new_noise=1.0, ridge_noise=2.5, replaced_noise=3.0, count=9)
    assert by_luck["shortcomings"] == ["9 held-out pairs tell nothing, at least 10 are needed"]


# Bad input: one line each, exit 2, nothing written.


def made_of(folder: Path, space: Path, pictures: int, texts: int, words: str | None = None) -> Path:
    for number in range(pictures):
        write_picture(folder / "corpus" / f"{number}.png", number)
    for number in range(texts):
        write_words(folder / "corpus" / f"{number}.txt", number)
        if words is not None:
            (folder / "corpus" / f"{number}.txt").write_text(words)
    embed(str(folder / "corpus"), str(folder / "c"), resolved(space), OPTIONS, Watch())
    return folder / "c"


@pytest.mark.parametrize(
    ("pictures", "texts", "words", "said"),
    [
        (3, 0, None, "no pairs of image and text"),
        (1, 1, None, "expected at least 4"),
        (12, 12, "w1 w2", "all captions of the 12 pairs of image are equal"),
    ],
    ids=["no pairs", "one pair", "equal captions"],
)
def test_pairs_that_cannot_be_trained_on(
    pictures: int, texts: int, words: str | None, said: str, tmp_path: Path, tiny_space: Path
) -> None:
    collection = made_of(tmp_path, tiny_space, pictures, texts, words)
    before = files(tmp_path)
    with pytest.raises(UsageError, match=said):
        train(str(collection), str(tmp_path / "space"), HALF, ignore, ignore)
    assert files(tmp_path) == before
    assert not (tmp_path / "space").exists()


def test_options_that_cannot_be(collection: Path, tmp_path: Path) -> None:
    refused(batchproj("train", collection, "--out", tmp_path / "space", "--loss", "triplet"), "'info_nce', 'sigmoid'")
    for options, said in (
        (replace(HALF, projector="linaer"), "no projector kind 'linaer': did you mean 'linear'?"),
        (replace(HALF, modality=Modality.AUDIO), "asked for audio"),
    ):
        with pytest.raises(UsageError, match=re.escape(said)):
            train(str(collection), str(tmp_path / "space"), options, ignore, ignore)
    assert not (tmp_path / "space").exists()


def test_nan_in_features(collection: Path, tmp_path: Path) -> None:
    damage_features(collection, Modality.IMAGE, np.nan)
    with pytest.raises(UsageError, match=r"NaN or infinity in 1 of 60 cached features of image"):
        train(str(collection), str(tmp_path / "space"), HALF, ignore, ignore)
    assert not (tmp_path / "space").exists()


def test_features_of_another_fingerprint(collection: Path, tmp_path: Path) -> None:
    fingerprint = Collection(str(collection)).snapshot.fingerprints[Modality.IMAGE].feature
    (collection / "features" / fingerprint).rename(collection / "features" / ("0" * 64))
    with pytest.raises(UsageError, match=rf"cached features of image with fingerprint {fingerprint[:12]}.*--repair"):
        train(str(collection), str(tmp_path / "space"), HALF, ignore, ignore)
    assert not (tmp_path / "space").exists()


def test_a_projector_of_another_width(tmp_path: Path, tiny_space: Path) -> None:
    """K of the projector is not K of the space: refused before a run begins."""
    from batchproj.project.linear import Config

    (tmp_path / "narrow").mkdir()
    (tmp_path / "narrow/image.safetensors").write_bytes(Config(in_dim=24, out_dim=20).build().to_bytes())
    lines = tiny_space.read_text().splitlines()
    lines[-1] = lines[-1][:-1] + ", projector: {kind: linear, weights: image.safetensors}}"
    (tmp_path / "narrow/space.yaml").write_text("\n".join(lines))
    with pytest.raises(SpaceError, match="maps 24 to 20 dimensions, needed is 24 to 24"):
        resolve(open_space(str(tmp_path / "narrow")))


def test_an_out_folder_that_is_not_ours_to_write(collection: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    for out, said in (("mine", "holds files that are no space's (thesis.tex)"), ("file/space", "there is a file")):
        with pytest.raises(UsageError) as refusal:
            train(str(collection), str(tmp_path / out), HALF, ignore, ignore)
        assert said in str(refusal.value)
    assert files(tmp_path / "mine") == {"thesis.tex": b"x"}
    before = files(collection)
    with pytest.raises(UsageError, match="lies inside the collection"):
        train(str(collection), str(collection / "space"), HALF, ignore, ignore)
    assert files(collection) == before
    with pytest.raises(UsageError, match="cannot be written"):
        train(str(collection), "/proc/space", HALF, ignore, ignore)


def test_an_earlier_space_may_be_written_over(collection: Path, tmp_path: Path) -> None:
    for _ in range(2):
        train(str(collection), str(tmp_path / "space"), HALF, ignore, ignore)
    names = {"space.yaml", "card.json", "README.md", "image.safetensors", "image.svg"}
    assert {path.name for path in (tmp_path / "space").iterdir()} == names
