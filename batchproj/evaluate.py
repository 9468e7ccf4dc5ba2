"""How good a collection's space and index are: recall per modality pair, ANN recall, modality gap, balance."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchproj import balance
from batchproj.collection import layout
from batchproj.errors import BatchprojError
from batchproj.objectstore import Folder
from batchproj.pairs import held_out_pairs, matrix, paired_rows
from batchproj.recall import modality_gap, retrieval
from batchproj.schema import Modality
from batchproj.search import Collection
from batchproj.space import Split

ANN_QUERIES = 50
"""Queries per modality that are answered through the index and by an exact scan."""


@dataclass(frozen=True)
class Rows:
    """Vectors (n, K) of one modality and their pair keys."""

    vectors: npt.NDArray[np.float32]
    pairs: list[str]


_FEWEST_ROWS = 20
"""Held-out rows of a modality from which on they alone are measured."""


def evaluate(uri: str) -> dict[str, Any]:
    """The contract's document for the run that is live.

    Recall is on the pairs held out when the space was trained, all pairs if its file has no
    `split`: every item asks among the items of the other modality. A query is right when any item
    of its pair is among the first K. The vectors of all paired rows are held in memory. `balance` has
    mean and standard deviation of the scores of each pair, and its share of the first ten in a mixed
    search without and with them; they are stored for `search --balance`, and the document for who asks
    later how good the run is (`read_evaluation`).
    """
    collection = Collection(uri)
    rows = paired_rows(collection)
    how = collection.split
    by_modality = _by_modality(rows, how)
    found = {
        "run": collection.run,
        "held_out": how is not None,
        "pairs": _recalls(by_modality),
        "ann_recall@10": _ann_recall(collection, by_modality),
        "modality_gap": {
            f"{a}-{b}": round(modality_gap(by_modality[a].vectors, by_modality[b].vectors), 4)
            for a, b in permutations(by_modality, 2)
            if a < b
        },
        "balance": _balance(collection, by_modality),
    }
    with suppress(BatchprojError):  # of a collection that may only be read the figures are shown all the same
        Folder(collection.uri).write(layout.evaluation(collection.run), json.dumps(found).encode())
    return found


def read_evaluation(folder: Folder, run: str) -> dict[str, Any] | None:
    """What `evaluate` found for a run; None if it was not evaluated."""
    try:
        found: dict[str, Any] = json.loads(folder.read(layout.evaluation(run)))
    except (FileNotFoundError, ValueError):
        return None
    return found


def _balance(collection: Collection, by_modality: dict[Modality, Rows]) -> dict[str, dict[str, float]]:
    measurable = [modality for modality, rows in by_modality.items() if len(rows.vectors) >= _FEWEST_ROWS]
    found = {
        modality: by_modality[modality].vectors if modality in measurable else _some(collection, modality)
        for modality in collection.snapshot.fingerprints
    }
    rows = {modality: balance.sample(vectors) for modality, vectors in found.items() if len(vectors)}
    measured = balance.measure(collection.run, rows)
    with suppress(BatchprojError):
        balance.write_balance(Folder(collection.uri), collection.snapshot.space, measured)
    effect = balance.shares(measured, rows)
    return {
        pair: {"mean": round(mean, 4), "std": round(std, 4), "share@10": effect[pair]["plain"]}
        | {"balanced_share@10": effect[pair]["balanced"]}
        for pair, (mean, std) in measured.pairs.items()
    }


def _some(collection: Collection, modality: Modality) -> npt.NDArray[np.float32]:
    """Vectors of a modality that has too few held-out pairs to tell how scores are spread: its first rows."""
    wanted = pa.compute.field("modality") == str(modality)
    return matrix(collection.dataset().scanner(columns=["vector"], filter=wanted).head(balance.SAMPLE)["vector"])


def _by_modality(rows: pa.Table, how: Split | None) -> dict[Modality, Rows]:
    if how is not None:
        held_out = pa.array(sorted(held_out_pairs(rows, how)), pa.string())
        rows = rows.filter(pa.compute.is_in(rows["pair"], held_out))
    found = {}
    for modality in Modality:
        own = rows.filter(pa.compute.equal(rows["modality"], str(modality)))
        if own.num_rows:
            found[modality] = Rows(matrix(own["vector"]), own["pair"].to_pylist())
    return found


def _recalls(by_modality: dict[Modality, Rows]) -> dict[str, dict[str, float]]:
    """Recall of each ordered pair of modalities that share at least one pair key."""
    found = {}
    for (a, asking), (b, asked) in permutations(by_modality.items(), 2):
        scores = retrieval(asking.vectors, asking.pairs, asked.vectors, asked.pairs)
        if scores["n"]:
            found[f"{a}->{b}"] = {**scores, "chance_r@10": min(1.0, 10 / len(set(asked.pairs)))}
    return found


def _ann_recall(collection: Collection, by_modality: dict[Modality, Rows]) -> float | None:
    """Share of the ten exact neighbours that a search through the index finds; None without rows."""
    shares = []
    for rows in by_modality.values():
        for vector in rows.vectors[:: max(1, len(rows.vectors) // ANN_QUERIES)][:ANN_QUERIES]:
            exact = {hit.id for hit in collection.nearest(vector, k=10, exact=True)}
            found = {hit.id for hit in collection.nearest(vector, k=10)}
            shares.append(len(exact & found) / len(exact))
    return round(float(np.mean(shares)), 4) if shares else None


def held_out_rows(collection: Collection, modality: Modality) -> list[dict[str, Any]]:
    """Rows of a modality, by pair key, that training has not seen; all rows without a split."""
    rows = paired_rows(collection)
    if collection.split is not None:
        rows = rows.filter(pa.compute.is_in(rows["pair"], pa.array(sorted(held_out_pairs(rows, collection.split)))))
    own = rows.filter(pa.compute.equal(rows["modality"], str(modality))).select(["uri", "pair", "text"])
    found: list[dict[str, Any]] = own.sort_by("pair").to_pylist()
    return found
