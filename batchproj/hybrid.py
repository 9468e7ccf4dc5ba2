"""Two rankings made one: rows near by their vectors, and rows with the words in their text or metadata.

Reciprocal rank fusion, Cormack, Clarke and Büttcher 2009: scores of the two are not comparable, places in a list are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from batchproj.hits import Hit

RANK_CONSTANT = 60
"""How much the first places of a list are worth more than those after them; the authors' own."""

DEPTH, LEAST_ROWS = 5, 100
"""Of each ranking 5 times as many hits as are wanted are fused, and no fewer than 100."""


def depth(wanted: int) -> int:
    """How many hits of each ranking are fused for so many."""
    return max(DEPTH * wanted, LEAST_ROWS)


def fused(near: Sequence[Hit], worded: Sequence[Hit], key: Callable[[Hit], str]) -> list[Hit]:
    """Hits of both rankings, best first by the sum of 1 / (60 + place); `key` says which hits are the same.

    Each is shown by the row that is nearer to the query. `why` tells who brought it up.
    """
    sums: dict[str, float] = {}
    shown: dict[str, Hit] = {}
    for ranking in (near, worded):
        for place, hit in enumerate(ranking, start=1):
            name = key(hit)
            sums[name] = sums.get(name, 0.0) + 1 / (RANK_CONSTANT + place)
            if name not in shown or hit.score > shown[name].score:
                shown[name] = hit
    by_vector, by_words = ({key(hit) for hit in ranking} for ranking in (near, worded))
    order = sorted(shown, key=lambda name: (-sums[name], -shown[name].score, name))
    return [
        replace(
            shown[name],
            why="both" if name in by_vector and name in by_words else "vector" if name in by_vector else "keyword",
        )
        for name in order
    ]
