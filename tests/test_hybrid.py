"""Two rankings made one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import WORDS
from in_process import run

from batchproj.errors import UsageError
from batchproj.hits import Hit
from batchproj.hybrid import DEPTH, fused
from batchproj.search import Collection


def hit(id: str, score: float, item: str | None = None) -> Hit:
    return Hit(id, item or id, f"file:///{id}", "text", score, 0, None, None, None, None)


def test_what_both_found_comes_first_and_scores_stay() -> None:
    near = [hit("a", 0.9), hit("b", 0.8), hit("c", 0.7)]
    worded = [hit("d", 0.1), hit("c", 0.7)]
    found = fused(near, worded, lambda each: each.id)
    assert [(each.id, each.why, each.score) for each in found] == [
        ("c", "both", 0.7),  # 1/63 + 1/62
        ("a", "vector", 0.9),
        ("d", "keyword", 0.1),  # as far up as a, and less near
        ("b", "vector", 0.8),
    ]


def test_an_item_is_shown_by_its_nearer_row() -> None:
    found = fused([hit("x-0", 0.9, "x")], [hit("x-3", 0.2, "x"), hit("y", 0.1)], lambda each: each.item)
    assert [(each.id, each.why) for each in found] == [("x-0", "both"), ("y", "keyword")]


def test_without_words_it_is_the_vectors_ranking() -> None:
    near = [hit("a", 0.9), hit("b", 0.8)]
    assert fused(near, [], lambda each: each.id) == near


def test_an_item_counts_once_in_each_ranking_however_many_segments_it_has() -> None:
    near = [hit("y", 0.9), hit("x-0", 0.8, "x")]
    worded = [hit("y", 0.9), *(hit(f"x-{number}", 0.1, "x") for number in range(9)), hit("z", 0.05)]
    found = fused(near, worded, lambda each: each.item)
    assert [(each.id, each.why) for each in found] == [("y", "both"), ("x-0", "both"), ("z", "keyword")]


@pytest.mark.usefixtures("no_ray")
def test_pages_are_parts_of_one_list(tiny_space: Path, tmp_path: Path) -> None:
    drawn = np.random.default_rng(0)
    rows = [{"id": str(number), "text": " ".join(drawn.choice(WORDS[1:], 4))} for number in range(DEPTH + 300)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(tmp_path / "t.jsonl", tmp_path / "c", tiny_space)
    opened = Collection(str(tmp_path / "c"))
    words = " ".join(WORDS[1:3])
    whole = [each.id for each in opened.search(words, k=DEPTH, hybrid=True)]
    pages = [
        each.id for offset in range(0, DEPTH, 100) for each in opened.search(words, k=100, offset=offset, hybrid=True)
    ]
    assert pages == whole
    assert len(set(pages)) == DEPTH
    with pytest.raises(UsageError, match="expected 0 to 900 for k 100"):
        opened.search(words, k=100, offset=901, hybrid=True)
