"""Recall, ranks and the modality gap, on arrays small enough to check by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from batchproj import recall
from batchproj.recall import best_ranks, modality_gap, retrieval

AXES = np.eye(4, dtype=np.float32)


def unit(rows: int, dims: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, dims)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_ranks_count_what_scores_higher() -> None:
    query = np.array([[0.8, 0.6, 0, 0]], dtype=np.float32)
    assert best_ranks(query, ["a"], AXES, ["a", "b", "c", "d"]).tolist() == [1]
    assert best_ranks(query, ["b"], AXES, ["a", "b", "c", "d"]).tolist() == [2]


def test_the_best_of_several_positives_counts() -> None:
    query = np.array([[0.8, 0.6, 0, 0]], dtype=np.float32)
    assert best_ranks(query, ["x"], AXES, ["other", "x", "x", "x"]).tolist() == [2]


def test_ties_with_wrong_candidates_count_against() -> None:
    same = np.repeat(AXES[:1], 5, axis=0)
    assert best_ranks(AXES[:1], ["a"], same, ["a", "b", "c", "d", "e"]).tolist() == [5]


def test_queries_without_a_candidate_are_left_out() -> None:
    found = retrieval(AXES[:2], ["a", "lonely"], AXES, ["a", "b", "c", "d"])
    assert found == {"n": 1, "r@1": 1.0, "r@5": 1.0, "r@10": 1.0, "median_rank": 1.0}


def test_nothing_to_count_is_not_a_score() -> None:
    found = retrieval(AXES[:1], ["lonely"], AXES, ["a", "b", "c", "d"])
    assert found["n"] == 0
    assert math.isnan(found["r@10"])


def test_recall_at_k_and_median() -> None:
    """Query i points at axis 0, its own candidate comes i-th."""
    candidates = np.array([[math.cos(t), math.sin(t)] for t in np.linspace(0, 1.5, 12)], dtype=np.float32)
    queries = np.repeat(np.array([[1, 0]], dtype=np.float32), 12, axis=0)
    names = [str(number) for number in range(12)]
    found = retrieval(queries, names, candidates, names)
    assert found == {"n": 12, "r@1": 1 / 12, "r@5": 5 / 12, "r@10": 10 / 12, "median_rank": 6.5}


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, candidates = unit(50, 8, seed=1), unit(40, 8, seed=2)
    pairs = [str(number % 20) for number in range(50)]
    whole = best_ranks(queries, pairs, candidates, pairs[:40])
    monkeypatch.setattr(recall, "_BLOCK_BYTES", 4 * 40 * 7)  # seven queries a block
    np.testing.assert_array_equal(best_ranks(queries, pairs, candidates, pairs[:40]), whole)


def test_modality_gap_is_between_centroids() -> None:
    assert modality_gap(AXES[:1], AXES[1:2]) == pytest.approx(math.sqrt(2))
    assert modality_gap(AXES[:2], AXES[[1, 0]]) == 0.0
