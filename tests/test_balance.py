"""Standardised scores: what is measured, what it changes in a mixed search, and what it leaves alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from in_process import command, run

from batchproj import balance
from batchproj.balance import UNKNOWN, Balance, Moments
from batchproj.conditions import Conditions
from batchproj.errors import UsageError
from batchproj.evaluate import evaluate, read_evaluation
from batchproj.gc import gc
from batchproj.objectstore import Folder
from batchproj.schema import Modality
from batchproj.search import Collection
from batchproj.serve.overview import Overview

Array = npt.NDArray[np.float32]


def cone(axis: int, count: int, seed: int) -> Array:
    """Unit vectors (count, 16) around an axis: a modality in a region of its own."""
    rows = np.random.default_rng(seed).normal(0, 0.25, (count, 16))
    rows[:, axis] += 1
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


APART = {Modality.TEXT: cone(0, 120, 0), Modality.IMAGE: cone(1, 120, 1)}


def test_moments_are_those_of_all_scores_but_a_rows_own() -> None:
    measured = balance.measure("000001", APART)
    text, image = APART[Modality.TEXT], APART[Modality.IMAGE]
    assert set(measured.pairs) == {"text->text", "text->image", "image->text", "image->image"}
    assert measured.pairs["text->image"] == pytest.approx(((text @ image.T).mean(), (text @ image.T).std()), abs=1e-6)
    own = (text @ text.T)[~np.eye(120, dtype=bool)]
    assert measured.pairs["text->text"] == pytest.approx((own.mean(), own.std()), abs=1e-6)
    assert measured.pairs["text->text"].mean > measured.pairs["text->image"].mean + 0.2


def test_one_kind_no_longer_fills_the_first_ten() -> None:
    found = balance.shares(balance.measure("000001", APART), APART)
    assert found["text->image"]["plain"] < 0.1
    assert 0.3 < found["text->image"]["balanced"] < 0.7
    for asking in ("text", "image"):
        for how in ("plain", "balanced"):
            assert found[f"{asking}->text"][how] + found[f"{asking}->image"][how] == pytest.approx(1, abs=1e-3)


def test_a_kind_of_one_row_or_of_equal_rows_stays_as_it_is() -> None:
    rows = {Modality.TEXT: cone(0, 1, 0), Modality.IMAGE: np.repeat(cone(1, 1, 1), 5, axis=0)}
    measured = balance.measure("1", rows)
    assert measured.pairs == dict.fromkeys(measured.pairs, UNKNOWN)
    assert measured.standardised("text", "image", 0.25) == 0.25
    assert Balance(run="1", pairs={"a->b": Moments(0.2, 0.1)}).standardised("a", "b", 0.5) == pytest.approx(3)


def test_hits_that_are_all_alike_do_not_fill_a_page() -> None:
    kinds = ["text"] * 30 + ["image", "image", "image", "audio"]
    assert balance.page(kinds, 20) == [*range(16), 30, 31, 32, 33]
    assert balance.page(kinds, 5) == [0, 1, 2, 3, 4]  # no room for one of each in half of it
    assert balance.page(["text"] * 30, 4) == [0, 1, 2, 3]
    assert balance.page([], 4) == []


def test_a_sample_is_bounded_and_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balance, "SAMPLE", 50)
    chosen = balance.sample(APART[Modality.TEXT])
    assert chosen.shape == (50, 16)
    np.testing.assert_array_equal(chosen, balance.sample(APART[Modality.TEXT]))


@pytest.mark.usefixtures("no_ray")
def test_search_ranks_by_what_evaluate_measured(
    corpus: Path, tiny_space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(corpus, tmp_path / "c", tiny_space)
    opened = Collection(str(tmp_path / "c"))
    words = (corpus / "d1/item4.txt").read_text()
    with pytest.raises(UsageError, match=r"run 000001 were not measured yet: batchproj evaluate"):
        opened.search(words, balance=True)
    shown = evaluate(str(tmp_path / "c"))["balance"]
    json.dumps(shown, allow_nan=False)
    measured = balance.read_balance(Folder(str(tmp_path / "c")), opened.snapshot.space)
    assert measured is not None
    assert shown["text->image"]["mean"] == round(measured.pairs["text->image"].mean, 4)

    plain = {hit.id: hit for hit in opened.search(words, k=24)}
    even = opened.search(words, k=24, balance=True)
    assert {hit.id: hit for hit in even}.keys() == plain.keys()
    assert all(hit.score == pytest.approx(plain[hit.id].score, abs=1e-6) for hit in even)  # still the cosine
    ranks = [measured.standardised("text", hit.modality, hit.score) for hit in even]
    assert ranks == sorted(ranks, reverse=True)
    assert [hit.id for hit in even] != list(plain)
    assert {hit.modality for hit in opened.search(words, k=8, balance=True)} == {"text", "image"}
    with pytest.raises(UsageError, match="a larger k, not with an offset"):  # its pages would overlap
        opened.search(words, k=8, offset=8, balance=True)
    worded = opened.search(words, k=8, balance=True, hybrid=True)
    assert {hit.modality for hit in worded} == {"text", "image"}
    image = opened.search(words, k=5, modality="image", balance=True, group=True)
    assert [hit.id for hit in image] == [hit.id for hit in opened.search(words, k=5, modality="image")]

    terms: list[str] = []
    monkeypatch.setattr(
        Conditions, "_where", lambda self, term, own=Conditions._where: terms.append(term) or own(self, term)
    )
    narrowed = opened.search(words, k=24, where=["pair=d1/item4"], balance=True)
    assert {hit.id for hit in narrowed} == {hit.id for hit in even if hit.pair == "d1/item4"} != set()
    assert terms == ["pair=d1/item4"]  # that of a metadata field asks the table, so it is made once


@pytest.mark.usefixtures("no_ray")
def test_the_command_tells_and_switches_and_gc_removes(corpus: Path, tiny_space: Path, tmp_path: Path) -> None:
    run(corpus, tmp_path / "c", tiny_space)
    refused = command("search", tmp_path / "c", "w1 w2", "--balance")
    assert (refused.returncode, "batchproj evaluate" in refused.stderr) == (2, True)
    assert "of the first ten" in command("evaluate", tmp_path / "c").stdout
    found = json.loads(command("search", tmp_path / "c", "w1 w2", "--balance", "--json").stdout)
    assert len(found) == 10
    (corpus / "d0/item0.txt").write_text("w1 w2 w3")
    run(corpus, tmp_path / "c", tiny_space)
    other = tmp_path / "c/balance/of-a-space-that-no-run-has.json"
    other.write_text("{}")
    gc(str(tmp_path / "c"), print, keep=1, apply=True)
    assert not other.exists()
    again = command("search", tmp_path / "c", "w1 w2", "--balance", "--json")  # a run in the same space keeps them
    assert (again.returncode, len(json.loads(again.stdout))) == (0, 10), again.stderr


@pytest.mark.usefixtures("no_ray")
def test_a_kind_that_came_after_the_measuring_is_to_be_measured(corpus: Path, tiny_space: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    shutil.copytree(corpus, texts, ignore=shutil.ignore_patterns("*.png"))
    run(texts, tmp_path / "c", tiny_space)
    assert set(evaluate(str(tmp_path / "c"))["balance"]) == {"text->text"}
    shown = command("evaluate", tmp_path / "c").stdout
    assert "none of two kinds to judge by" in shown
    assert "text->text" not in shown  # of one kind: it fills every page
    assert Collection(str(tmp_path / "c")).search("w1 w2", balance=True)
    shutil.copytree(corpus, texts, dirs_exist_ok=True)
    run(texts, tmp_path / "c", tiny_space)
    with pytest.raises(UsageError, match="not measured yet"):
        Collection(str(tmp_path / "c")).search("w1 w2", balance=True)
    evaluate(str(tmp_path / "c"))
    assert Collection(str(tmp_path / "c")).search("w1 w2", balance=True)


@pytest.mark.usefixtures("no_ray")
def test_a_run_keeps_what_evaluate_found_as_long_as_it_is_kept(corpus: Path, tiny_space: Path, tmp_path: Path) -> None:
    run(corpus, tmp_path / "c", tiny_space)
    folder = Folder(str(tmp_path / "c"))
    assert read_evaluation(folder, "000001") is None
    found = evaluate(str(tmp_path / "c"))
    assert read_evaluation(folder, "000001") == found
    (corpus / "d0/item0.txt").write_text("w1 w2 w3")
    run(corpus, tmp_path / "c", tiny_space)
    told = Overview(Collection(str(tmp_path / "c"))).runs()
    assert [(each["run"], each["live"]) for each in told] == [("000002", True), ("000001", False)]
    assert [each["recall"] for each in told] == [None, found["pairs"]]
    gc(str(tmp_path / "c"), print, keep=1, apply=True)
    assert read_evaluation(folder, "000001") is None
