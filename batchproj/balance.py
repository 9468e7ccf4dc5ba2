"""Scores made comparable across kinds: standardised by how alike items of two kinds are anyway.

Each encoder and projector leaves its vectors in a region of its own (the modality gap), so that to a
text any text can be nearer than the right image, and one kind fills a mixed page. A score is
therefore measured against the scores that a query of its kind gets among items of the other kind.
A, B rows of two modalities, K dim of the space; all vectors have unit length.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from batchproj.collection import layout
from batchproj.objectstore import Folder
from batchproj.schema import Modality

Array = npt.NDArray[np.float32]

SAMPLE = 1_000
"""Rows of a modality that are taken, so that what is measured costs the same for any collection."""
SHOWN = 10
_SMALLEST_STD = 1e-6


class Moments(NamedTuple):
    """Mean and standard deviation of the scores of one kind of query among one kind of item."""

    mean: float
    std: float


UNKNOWN = Moments(0.0, 1.0)
"""Where there are no two different scores to measure: they stay as they are."""


class Balance(BaseModel):
    """`balance/<space>.json`: the moments of modality pairs, by `text->image` and so on, as `run` had them.

    They are those of the space: another run in it has other rows, and the same regions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    run: str
    pairs: dict[str, Moments]

    def knows(self, asked: str) -> bool:
        """Whether there were items of this modality to measure."""
        return f"{asked}->{asked}" in self.pairs

    def standardised(self, asking: str, asked: str, score: float) -> float:
        """By how many standard deviations a score is above the mean of its pair."""
        moments = self.pairs.get(f"{asking}->{asked}", UNKNOWN)
        return (score - moments.mean) / moments.std


def sample(vectors: Array) -> Array:
    """At most `SAMPLE` of the rows, the same each time."""
    if len(vectors) <= SAMPLE:
        return vectors
    chosen: Array = vectors[np.sort(np.random.default_rng(0).choice(len(vectors), SAMPLE, replace=False))]
    return chosen


def measure(run: str, rows: Mapping[Modality, Array]) -> Balance:
    """The moments of every ordered pair of modalities; no row is laid against itself."""
    pairs = {f"{a}->{b}": _moments(_scores(rows, a, b)) for a, b in product(rows, rows)}
    return Balance(run=run, pairs=pairs)


def shares(balance: Balance, rows: Mapping[Modality, Array]) -> dict[str, dict[str, float]]:
    """Who fills the first ten: for each ordered pair the share of the item's kind, {"plain", "balanced"}."""
    found: dict[str, dict[str, float]] = {}
    for asking in rows:
        plain = {asked: _scores(rows, asking, asked) for asked in rows}
        moments = {asked: balance.pairs[f"{asking}->{asked}"] for asked in rows}
        even = {asked: (scores - moments[asked].mean) / moments[asked].std for asked, scores in plain.items()}
        for asked in rows:
            share = {"plain": _share(plain, asked), "balanced": _share(even, asked)}
            found[f"{asking}->{asked}"] = {name: round(value, 4) for name, value in share.items()}
    return found


def _scores(rows: Mapping[Modality, Array], asking: Modality, asked: Modality) -> Array:
    """Cosines (A, B); those of a row with itself are -inf."""
    scores: Array = rows[asking] @ rows[asked].T
    if asking == asked:
        np.fill_diagonal(scores, -np.inf)
    return scores


def _moments(scores_AB: Array) -> Moments:
    counted = scores_AB[np.isfinite(scores_AB)].astype(np.float64)
    if len(counted) < 2 or counted.std() < _SMALLEST_STD:
        return UNKNOWN
    return Moments(float(counted.mean()), float(counted.std()))


def _share(scores: Mapping[Modality, Array], asked: Modality) -> float:
    """Of the first ten of each query, how many are of one modality."""
    names = np.repeat(np.arange(len(scores)), [each.shape[1] for each in scores.values()])
    every = np.concatenate(list(scores.values()), axis=1)
    first = np.argsort(-every, axis=1, kind="stable")[:, : min(SHOWN, every.shape[1] - 1)]
    return float(np.mean(names[first] == list(scores).index(asked))) if first.size else 0.0


def write_balance(folder: Folder, space: str, balance: Balance) -> None:
    folder.write(layout.balance(space), balance.model_dump_json().encode())


def read_balance(folder: Folder, space: str) -> Balance | None:
    """None if no run in the space of this fingerprint was measured."""
    try:
        return Balance.model_validate_json(folder.read(layout.balance(space)))
    except (FileNotFoundError, ValidationError):
        return None
