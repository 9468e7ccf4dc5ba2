"""Which items belong together, and on which side of training and judging they fall."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt


def split(
    pair_keys: Sequence[str], content_ids: Sequence[str], test_fraction: float = 0.2, seed: int = 0
) -> npt.NDArray[np.bool_]:
    """Which items (N,) are for testing.

    Items of one pair or of one content stay on one side, and so do all that are linked through
    them. The side is decided by a hash of the smallest pair key among the linked, so that a pair
    falls on the same side in every corpus where it is linked to the same others.
    """
    components = linked(pair_keys, content_ids)
    key_of: dict[int, str] = {}
    for number, key in zip(components, pair_keys, strict=True):
        key_of[number] = min(key, key_of.get(number, key))
    tested = {number: hash_share(key, seed) < test_fraction for number, key in key_of.items()}
    return np.array([tested[number] for number in components], dtype=np.bool_)


def linked(*labelings: Sequence[Hashable]) -> list[int]:
    """Number of the component of each item, where items that share any label are linked."""
    parent = list(range(len(labelings[0])))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    for labels in labelings:
        first: dict[Hashable, int] = {}
        for item, label in enumerate(labels):
            parent[root(item)] = root(first.setdefault(label, item))
    return [root(item) for item in range(len(parent))]


def hash_share(key: str, seed: object) -> float:
    """A number in [0, 1) that looks random, and is the same everywhere."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8]) / 2**64
