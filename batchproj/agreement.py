"""Whether two ways of asking find the same: the nearest of one set of vectors held against those of another.

Q queries, T texts, k places, K dim of a space; all vectors have unit length. Each query is one of the texts, and
is left out of its own answer.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from batchproj.comparison import CUTOFFS

Array = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_DEEPEST = max(CUTOFFS)
_BLOCK_BYTES = 64 * 2**20  # of scores held at once


def nearest(queries_QK: Array, texts_TK: Array, own_Q: Numbers) -> Numbers:
    """Numbers (Q, k) of the ten texts nearest to each query by cosine, best first, without its own; of all if fewer."""
    depth = min(_DEEPEST, len(texts_TK) - 1)
    found_Qk = np.empty((len(queries_QK), depth), np.int64)
    rows = max(1, _BLOCK_BYTES // (4 * len(texts_TK)))
    for start in range(0, len(queries_QK), rows):
        scores_BT = queries_QK[start : start + rows] @ texts_TK.T
        scores_BT[np.arange(len(scores_BT)), own_Q[start : start + rows]] = -np.inf
        best_Bk = np.argpartition(-scores_BT, depth - 1, axis=1)[:, :depth]
        order_Bk = np.lexsort((best_Bk, -np.take_along_axis(scores_BT, best_Bk, axis=1)))
        found_Qk[start : start + rows] = np.take_along_axis(best_Bk, order_Bk, axis=1)
    return found_Qk


def recalled(wanted_Qk: Numbers, found_Qk: Numbers) -> Floats:
    """Recall@1, 5 and 10 (Q, 3) against another answer: the share of its first 1, 5 and 10 that are among as many here.

    Source: what an index is judged by, Aumüller et al. 2017 (ANN-Benchmarks), arXiv:1807.05614; for adapters between
    encoders Vejendla 2025 (Drift-Adapter), arXiv:2509.23471.
    """
    shares = [(wanted_Qk[:, :k, None] == found_Qk[:, None, :k]).any(axis=2).mean(axis=1) for k in CUTOFFS]
    return np.stack(shares, axis=1)


def by_chance(queries: int, texts: int) -> Floats:
    """The same (Q, 3) when the texts are ranked at random, on average."""
    return np.tile([min(1.0, k / (texts - 1)) for k in CUTOFFS], (queries, 1))
