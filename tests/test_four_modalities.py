"""Texts, pictures, sounds and films of one folder: one run, one table, one search that finds all four."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import yaml
from enlivened import enlivened
from films import film
from in_process import command, quiet, run, without_ray
from PIL import Image
from tiny_pictures import save_clip
from tiny_sound import RATE
from tiny_text import save_clap

from batchproj import fit
from batchproj.collection.ledger import Report
from batchproj.embed import Options
from batchproj.evaluate import evaluate
from batchproj.recipe import Recipe, Units
from batchproj.schema import Modality
from batchproj.search import Collection
from batchproj.space import Split
from batchproj.train import TrainOptions, train

KINDS = [str(modality) for modality in Modality]
SUBJECTS = 6
"""What an item can be of: a word, a colour, a pitch."""
COLOURS = np.array([[220, 40, 40], [40, 200, 60], [50, 60, 230], [230, 220, 50], [200, 60, 210], [70, 220, 220]])
FAULTY = {"0.txt": "blank_text", "0.png": "truncated", "0.wav": "truncated", "0.mp4": "truncated"}
OPTIONS = Options(Recipe(units=Units(max_items=250), read_threads=2))


def about(subject: int) -> str:
    """Words of a text; random weights take nothing as said once."""
    return " ".join([f"w{subject + 1}"] * 6)


def write_four(home: Path, number: int) -> None:
    """A text, a picture, a sound of 0.5 s and a film of 1 to 2 s of one subject, and in one pair."""
    home.mkdir(parents=True, exist_ok=True)
    rng, subject = np.random.default_rng(number), number % SUBJECTS
    (home / f"{number}.txt").write_text(f"{about(subject)} w{rng.integers(7, 14)}")

    def shown(width: int, height: int) -> Any:
        return np.clip(COLOURS[subject] + rng.normal(0, 25, (height, width, 3)), 0, 255).astype(np.uint8)

    Image.fromarray(shown(40 + number % 23, 36 + number % 17)).save(home / f"{number}.png")
    tone = np.sin(np.arange(RATE // 2) * 2 * np.pi * 250 * 1.7**subject / RATE)
    soundfile.write(home / f"{number}.wav", tone * 0.2 + rng.normal(0, 0.02, RATE // 2), RATE)
    frames = [shown(48 + 2 * (number % 9), 40)] * (10 + number % 11)
    (home / f"{number}.mp4").write_bytes(film(frames, options={"preset": "ultrafast"}))


def write_corpus(folder: Path, each: int) -> None:
    """So many of each kind, and one more of each that is faulty."""
    for number in range(each):
        write_four(folder / f"{number % 7}", number)
    (folder / "bad").mkdir()
    (folder / "bad/0.txt").write_text(" \n")
    for name in ("0.png", "0.wav", "0.mp4"):
        whole = (folder / "0" / name).read_bytes()
        (folder / "bad" / name).write_bytes(whole[: len(whole) // 2])


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLIP for texts, pictures and frames, CLAP for sounds, trained on other items into the texts' vectors."""
    home = tmp_path_factory.mktemp("space")
    clip, clap = (str(enlivened(save(home / save.__name__))) for save in (save_clip, save_clap))
    kinds = {"text": ("clip", clip), "image": ("clip", clip), "audio": ("clap", clap), "video": ("clip", clip)}
    members: dict[str, Any] = {
        name: {"encoder": {"kind": kind, "model": model, "dtype": "fp32"}, "projector": {"kind": "linear"}}
        for name, (kind, model) in kinds.items()
    }
    del members["text"]["projector"]
    members["video"]["segments"] = {"frames": 2}
    (home / "space.yaml").write_text(yaml.safe_dump({"name": "four", "dim": 24, **members}))
    for number in range(10_000, 10_060):
        write_four(home / "corpus", number)
    with without_ray():
        run(home / "corpus", home / "c", home, OPTIONS)
        options = TrainOptions("linear", split=Split(test_fraction=0.2), fit=fit.Config(max_steps=100, checks=2))
        train(str(home / "c"), str(home / "trained"), options, lambda *_: None, quiet)
    return home / "trained"


def check_accounts(report: Report, collection: Path, each: int) -> None:
    """Every item is in the table or in quarantine, once, and was encoded once if it could be decoded."""
    assert (report.items, report.embedded, report.quarantined) == (4 * each + 4, 4 * each, 4)
    assert report.encode_calls == dict.fromkeys(KINDS, each)
    rows = Collection(str(collection)).table()
    assert Counter(rows["modality"].to_pylist()) == dict.fromkeys(KINDS, each)
    assert len(set(rows["id"].to_pylist())) == 4 * each
    assert set(Counter(rows["pair"].to_pylist()).values()) == {4}
    bad = pq.read_table(collection / "quarantine" / f"{report.run}.parquet").to_pylist()
    assert {row["uri"].rpartition("/")[2]: row["reason"] for row in bad} == FAULTY


def check_spread(shown: dict[str, dict[str, float]]) -> None:
    """`evaluate` tells of every pair of kinds how its scores are spread, and who fills the first ten."""
    assert set(shown) == {f"{a}->{b}" for a, b in itertools.product(KINDS, KINDS)}
    assert all(told["std"] > 0 for told in shown.values())
    for asking in KINDS:
        for how in ("share@10", "balanced_share@10"):
            assert sum(shown[f"{asking}->{asked}"][how] for asked in KINDS) == pytest.approx(1, abs=1e-3)


def found(collection: Path, words: str, *more: str) -> list[dict[str, Any]]:
    done = command("search", collection, words, "-k", "20", "--json", *more)
    assert done.returncode == 0, done.stderr
    hits: list[dict[str, Any]] = json.loads(done.stdout)
    assert len(hits) == 20
    return hits


@pytest.mark.usefixtures("no_ray")
def test_a_few_of_each_kind(space: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", 6)
    report = run(tmp_path / "corpus", tmp_path / "c", space, OPTIONS)
    check_accounts(report, tmp_path / "c", 6)
    check_spread(evaluate(str(tmp_path / "c"))["balance"])
    assert {hit["modality"] for hit in found(tmp_path / "c", "w3 w8", "--balance")} == set(KINDS)
    again = run(tmp_path / "corpus", tmp_path / "c", space, OPTIONS)
    assert (again.unchanged, again.quarantined, again.encode_calls) == (24, 4, {})


@pytest.mark.long
@pytest.mark.timeout(1_800)
def test_two_thousand_items(space: Path, tmp_path: Path, ray_here: None) -> None:
    write_corpus(tmp_path / "corpus", 500)
    report = run(tmp_path / "corpus", tmp_path / "c", space, OPTIONS)
    check_accounts(report, tmp_path / "c", 500)
    shown = evaluate(str(tmp_path / "c"))["balance"]
    check_spread(shown)
    largest = {how: max(shown[f"text->{asked}"][how] for asked in KINDS) for how in ("share@10", "balanced_share@10")}
    assert largest["balanced_share@10"] < largest["share@10"]
    for subject in range(SUBJECTS):
        kinds = Counter(hit["modality"] for hit in found(tmp_path / "c", about(subject), "--balance"))
        assert min(kinds[kind] for kind in KINDS) >= 2
        plain = Counter(hit["modality"] for hit in found(tmp_path / "c", about(subject)))
        assert set(plain) < set(KINDS)
