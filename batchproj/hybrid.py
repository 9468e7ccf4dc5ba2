"""Two rankings made one: rows near by their vectors, and rows with the words in their text or metadata.

Reciprocal rank fusion, Cormack, Clarke and Büttcher 2009: scores of the two are not comparable, places in a list are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from batchproj.hits import Hit

RANK_CONSTANT = 60
"""How much the first places of a list are worth more than those after them; the authors' own."""

DEPTH = 1_000
"""How many hits of each ranking are fused, whichever page is asked for: so the pages are parts of one list."""


def fused(near: Sequence[Hit], worded: Sequence[Hit], key: Callable[[Hit], str]) -> list[Hit]:
    """Hits of both rankings, best first by the sum of 1 / (60 + place); `key` says which hits are the same.

    What is the same counts once in a ranking, at its best place. Each is shown by the row that is nearer to the query.
    `why` tells who brought it up.
    """
    sums: dict[str, float] = {}
    shown: dict[str, Hit] = {}
    places = [dict.fromkeys(map(key, ranking)) for ranking in (near, worded)]
    for names in places:
        for place, name in enumerate(names, start=1):
            sums[name] = sums.get(name, 0.0) + 1 / (RANK_CONSTANT + place)
    for hit in (*near, *worded):
        if (name := key(hit)) not in shown or hit.score > shown[name].score:
            shown[name] = hit
    by_vector, by_words = places
    order = sorted(shown, key=lambda name: (-sums[name], -shown[name].score, name))
    return [
        replace(
            shown[name],
            why="both" if name in by_vector and name in by_words else "vector" if name in by_vector else "keyword",
        )
        for name in order
    ]
