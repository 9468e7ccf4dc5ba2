"""Scores made comparable across kinds: standardised by how alike items of two kinds are anyway.

Each encoder and projector leaves its vectors in a region of its own (the modality gap), so that to a
text any text can be nearer than the right image, and one kind fills a mixed page. A score is
therefore measured against the scores that a query of its kind gets among items of the other kind;
and no kind is without its part of a page (`page`).
A, B rows of two modalities, K dim of the space; all vectors have unit length.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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


def page(kinds: Sequence[str], k: int) -> list[int]:
    """Which `k` are shown of hits of these kinds that come best first, in that order.

    Half of the page is shared out evenly among the kinds, if it has room for one of each; the rest goes by score. For
    a query may have many hits of one kind that are all alike, and whatever the scores are measured against, those come
    one after the other.
    """
    own = k // (2 * max(1, len(set(kinds))))
    counts = Counter[str]()
    sure: list[int] = []
    others: list[int] = []
    for place, kind in enumerate(kinds):
        counts[kind] += 1
        (sure if counts[kind] <= own else others).append(place)
    return sorted([*sure, *others[: k - len(sure)]])


def shares(balance: Balance, rows: Mapping[Modality, Array]) -> dict[str, dict[str, float]]:
    """Who fills the first ten: for each ordered pair the share of the item's kind, {"plain", "balanced"}."""
    found: dict[str, dict[str, float]] = {}
    for asking in rows:
        scores = {asked: _best(_scores(rows, asking, asked)) for asked in rows}
        moments = {asked: balance.pairs[f"{asking}->{asked}"] for asked in rows}
        even = {asked: (own - moments[asked].mean) / moments[asked].std for asked, own in scores.items()}
        plain, balanced = _shares(scores, lambda _: list(range(SHOWN))), _shares(even, lambda kinds: page(kinds, SHOWN))
        for asked in rows:
            found[f"{asking}->{asked}"] = {"plain": round(plain[asked], 4), "balanced": round(balanced[asked], 4)}
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


def _best(scores_AB: Array) -> Array:
    """The scores of each query that can come among the first ten, (A, 10) at most."""
    best: Array = -np.sort(-scores_AB, axis=1)[:, :SHOWN]
    return best


def _shares(scores: Mapping[Modality, Array], chosen: Callable[[list[str]], list[int]]) -> dict[Modality, float]:
    """Of what is chosen for each query, from kinds best first, how much is of each modality."""
    kinds = np.repeat([str(asked) for asked in scores], [each.shape[1] for each in scores.values()])
    counts = Counter[str]()
    for row in np.concatenate(list(scores.values()), axis=1):
        order = np.argsort(-row, kind="stable")
        names = kinds[order[np.isfinite(row[order])]].tolist()
        counts.update(names[place] for place in chosen(names) if place < len(names))
    return {asked: counts[str(asked)] / max(1, counts.total()) for asked in scores}


def write_balance(folder: Folder, space: str, balance: Balance) -> None:
    folder.write(layout.balance(space), balance.model_dump_json().encode())


def read_balance(folder: Folder, space: str) -> Balance | None:
    """None if no run in the space of this fingerprint was measured."""
    try:
        return Balance.model_validate_json(folder.read(layout.balance(space)))
    except (FileNotFoundError, ValidationError):
        return None
