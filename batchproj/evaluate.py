"""How good a collection's space and index are: recall per modality pair, ANN recall, modality gap."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchproj.recall import modality_gap, retrieval
from batchproj.schema import Modality
from batchproj.search import Collection
from batchproj.split import test_pairs

ANN_QUERIES = 100
"""Queries per modality that the index is asked and an exact scan answers too."""


@dataclass(frozen=True)
class Rows:
    """Vectors (n, K) of one modality that belong to a pair, and their pair keys."""

    vectors: npt.NDArray[np.float32]
    pairs: list[str]


def evaluate(uri: str) -> dict[str, Any]:
    """The contract's document for the run that is live.

    Recall counts the pairs held out when the space was trained, or all pairs if its space file has
    no `split`; a query is right when any item of its pair is among the first K of that modality.
    Vectors of the evaluated pairs are held in memory.
    """
    collection = Collection(uri)
    rows = collection.dataset().to_table(columns=["modality", "pair", "vector", "content_id"])
    rows = rows.filter(pa.compute.is_valid(rows["pair"]))
    split = collection.space.space.split
    held_out = None if split is None else test_pairs(rows["pair"], rows["content_id"], split.test_fraction, split.seed)
    by_modality = _by_modality(rows, held_out)
    return {
        "run": collection.run,
        "held_out": split is not None,
        "pairs": {
            f"{a}->{b}": retrieval(by_modality[a].vectors, by_modality[a].pairs, by_modality[b].vectors, by_modality[b].pairs)
            for a, b in permutations(by_modality, 2)
        },
        "ann_recall@10": _ann_recall(collection, by_modality),
        "modality_gap": {
            f"{a}-{b}": modality_gap(by_modality[a].vectors, by_modality[b].vectors)
            for a, b in permutations(by_modality, 2)
            if a < b
        },
    }
