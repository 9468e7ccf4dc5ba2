"""How well one set of vectors finds another: pure functions of arrays.

N queries, M candidates, K dim of the space; all vectors have unit length.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

_BLOCK_BYTES = 64 * 2**20  # of scores held at once, whatever N and M


def retrieval(
    queries_NK: Array, query_pairs: Sequence[str], candidates_MK: Array, candidate_pairs: Sequence[str]
) -> dict[str, float]:
    """Rank the candidates for each query by cosine: {"n", "r@1", "r@5", "r@10", "median_rank"}.

    A query is right at the rank of its best candidate of the same pair; `n` counts the queries that
    have one, the others are left out. A rank counts the wrong candidates that score as high or
    higher, so equal vectors gain nothing. Without any query to count, all but `n` are NaN.
    """
    ranks = best_ranks(queries_NK, query_pairs, candidates_MK, candidate_pairs)
    if not len(ranks):
        return {"n": 0, "r@1": np.nan, "r@5": np.nan, "r@10": np.nan, "median_rank": np.nan}
    recall = {f"r@{k}": float(np.mean(ranks <= k)) for k in (1, 5, 10)}
    return {"n": len(ranks), **recall, "median_rank": float(np.median(ranks))}


def best_ranks(
    queries_NK: Array, query_pairs: Sequence[str], candidates_MK: Array, candidate_pairs: Sequence[str]
) -> npt.NDArray[np.int64]:
    """Rank, from 1, of the best candidate of each query's pair; queries without one are left out."""
    numbers = {pair: number for number, pair in enumerate(dict.fromkeys(candidate_pairs))}
    candidate_numbers = np.fromiter((numbers[pair] for pair in candidate_pairs), np.int64, len(candidate_pairs))
    query_numbers = np.fromiter((numbers.get(pair, -1) for pair in query_pairs), np.int64, len(query_pairs))
    counted = np.flatnonzero(query_numbers >= 0)
    ranks = np.empty(len(counted), np.int64)
    rows = max(1, _BLOCK_BYTES // (4 * max(1, len(candidate_numbers))))
    for start in range(0, len(counted), rows):
        block = counted[start : start + rows]
        scores = queries_NK[block] @ candidates_MK.T
        right = query_numbers[block, None] == candidate_numbers
        best = np.max(scores, axis=1, where=right, initial=-np.inf, keepdims=True)
        ranks[start : start + rows] = 1 + np.count_nonzero((scores >= best) & ~right, axis=1)
    return ranks


def modality_gap(a_NK: Array, b_MK: Array) -> float:
    """Distance between the centroids of two sets of unit vectors: 0 to 2.

    Source: Liang et al. 2022, Mind the Gap, arXiv:2203.02053.
    """
    return float(np.linalg.norm(a_NK.mean(axis=0, dtype=np.float64) - b_MK.mean(axis=0, dtype=np.float64)))
