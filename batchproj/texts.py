"""The different texts of a collection: what its own encoder has cached of them, and what another one makes of them.

T different texts, R rows that have them, D dim of the cached features, K dim of a space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import torch

from batchproj.decode.limits import Limits
from batchproj.decode.text import decode_text
from batchproj.errors import UsageError
from batchproj.features import Features, from_column, gathered
from batchproj.linking import linked
from batchproj.media import Segment, TextSpec
from batchproj.pairs import cached_features, check_finite, held_out_pairs
from batchproj.schema import Modality
from batchproj.search import Collection
from batchproj.space import Member, Split, to_vectors

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

MOST = 100_000
"""Different texts that are taken, so that all of them fit in memory."""

_WINDOW = 256
"""Texts handed to an encoder at once: enough to sort by length, few enough to show how it gets on."""


@dataclass(frozen=True)
class Texts:
    """Each different text once, in order of the words, with its features as they are cached and its live vector (T, K).

    `asked` are the vectors (T, K) as queries, None if they are the live ones, and then `features` are theirs too.
    `pairs`, `contents` and `number` are of the rows that have the texts: pair key, content id, number of the text.
    A row's text is all of its segment, as the collection's encoder has seen it.
    """

    words: list[str]
    features: Features
    live: Array
    pairs: list[str | None]
    contents: list[str]
    number: list[int]
    asked: Array | None = None

    @property
    def queries(self) -> Array:
        return self.live if self.asked is None else self.asked

    def __len__(self) -> int:
        return len(self.words)

    def where(self, mask_T: Mask) -> Texts:
        place = dict(zip(np.flatnonzero(mask_T).tolist(), range(len(self)), strict=False))
        rows = [row for row, number in enumerate(self.number) if number in place]
        return Texts(
            [word for word, kept in zip(self.words, mask_T, strict=True) if kept],
            self.features[mask_T],
            self.live[mask_T],
            [self.pairs[row] for row in rows],
            [self.contents[row] for row in rows],
            [place[self.number[row]] for row in rows],
            None if self.asked is None else self.asked[mask_T],
        )

    def held_out(self, pairs: set[str]) -> Mask:
        """Which texts (T,) training must not see: those of which every row belongs to one of these pairs."""
        mask = np.ones(len(self), np.bool_)
        mask[[number for number, pair in zip(self.number, self.pairs, strict=True) if pair not in pairs]] = False
        return mask

    def alike(self, old_TK: Array, tested_T: Mask) -> Mask:
        """Which of the tested texts (T,) equal one that is not tested, to their own encoder or to the old one."""
        found = np.zeros(len(self), np.bool_)
        for side in (self.features, old_TK):
            seen = {own.tobytes() for own in side[~tested_T]}
            found |= np.array([own.tobytes() in seen for own in side], np.bool_)
        return found & tested_T

    def linked(self, pairs: Sequence[str | None] = (), contents: Sequence[str] = ()) -> tuple[list[str], list[str]]:
        """For each text, and each item with these pair keys and contents, the group of what belongs together."""
        keys = [pair if pair is not None else f"\0{row}" for row, pair in enumerate([*self.pairs, *pairs])]
        numbers = [*self.number, *range(len(self), len(self) + len(pairs))]
        group = dict(zip(numbers, map(str, linked(keys, [*self.contents, *contents], numbers)), strict=True))
        return [group[number] for number in range(len(self))], [group[len(self) + item] for item in range(len(pairs))]


def collected(collection: Collection, member: Member, say: Callable[[str], None]) -> Texts:
    """The texts of the live run, in memory; `member` is what made their vectors.

    Equal objects give equal texts, in whatever order they were embedded.

    Raises UsageError where there are none, or their features are missing, damaged or not finite.
    """
    cached = cached_features(collection, Modality.TEXT)
    rows = None if cached is None else cached.filter(pc.is_valid(cached["text"]))
    if cached is None or rows is None or not rows.num_rows:
        raise no_texts(collection)
    if rows.num_rows < cached.num_rows:
        say(f"{cached.num_rows - rows.num_rows:,} of {cached.num_rows:,} rows have no text in them and are left out")
    keys = rows.select(["text", "content_id", "pair"])
    order = pc.sort_indices(keys, [(name, "ascending") for name in keys.column_names])
    keys = keys.take(order)
    first: dict[str, int] = {}
    words = keys["text"].to_pylist()
    for row, word in zip(order.to_pylist(), words, strict=True):
        first.setdefault(word, row)
    number = dict(zip(first, range(len(first)), strict=True))
    features = check_finite(from_column(rows["feature"])[list(first.values())], Modality.TEXT)
    texts = Texts(
        list(first),
        features,
        to_vectors(features, member.load_projector()),
        keys["pair"].to_pylist(),
        keys["content_id"].to_pylist(),
        [number[word] for word in words],
    )
    if len(texts) <= MOST:
        return texts
    say(f"{MOST:,} of {len(texts):,} different texts, drawn at random, are taken")
    mask = np.zeros(len(texts), np.bool_)
    mask[np.random.default_rng(0).choice(len(texts), MOST, replace=False)] = True
    return texts.where(mask)


def no_texts(collection: Collection) -> UsageError:
    return UsageError(
        f"no texts in {collection.uri}: an adapter is trained on the texts of a collection, embedded with the new "
        "encoder"
    )


def held_out(collection: Collection, how: Split) -> set[str]:
    """Pair keys of the test part, as every other training on this collection divides them."""
    rows = collection.dataset().to_table(columns=["pair", "content_id"], filter=pc.field("pair").is_valid())
    return held_out_pairs(rows, how)


def as_queries(texts: Texts, member: Member, progress: Callable[[int, int], None]) -> Texts:
    """The texts with features and vectors as queries; the same, and nothing is encoded, where that is no difference."""
    if not member.tells_queries:
        return texts
    embedder = member.load(torch.get_num_threads(), for_queries=True)
    rows: list[Any] = []
    for start in range(0, len(texts), _WINDOW):
        rows.extend(embedder.encode([Segment(word) for word in texts.words[start : start + _WINDOW]]))
        progress(len(rows), len(texts))
    features = check_finite(gathered(rows, member.dim, member.cache), Modality.TEXT)
    return replace(texts, features=features, asked=embedder.project(features))


def encoded(
    words: list[str], member: Member, progress: Callable[[int, int], None], *, for_queries: bool = True
) -> Array:
    """Vectors (T, K) of texts as a query, or an item, gets them: the mean over the pieces of what is too long for one.

    NaN where the encoder gives none. Runs on torch's present number of threads.
    """
    embedder = member.load(torch.get_num_threads(), for_queries=for_queries)
    assert isinstance(embedder.spec, TextSpec)
    found: list[Array] = []
    for start in range(0, len(words), _WINDOW):
        pieces = [decode_text(word.encode(), embedder.spec, Limits()) for word in words[start : start + _WINDOW]]
        with np.errstate(invalid="ignore"):
            vectors = embedder.project(embedder.encode([segment for own in pieces for segment in own]))
        ends = np.cumsum([len(own) for own in pieces])
        found += [_mean(vectors[end - len(own) : end]) for end, own in zip(ends, pieces, strict=True)]
        progress(len(found), len(words))
    return np.stack(found)


def _mean(vectors_NK: Array) -> Array:
    mean_K: Array = vectors_NK.mean(axis=0)
    return mean_K if len(vectors_NK) == 1 else mean_K / np.linalg.norm(mean_K).astype(np.float32)
