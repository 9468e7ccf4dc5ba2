"""Two rankings made one."""

from __future__ import annotations

from batchproj.hits import Hit
from batchproj.hybrid import depth, fused


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
    assert depth(1) == 100
    assert depth(50) == 250
