"""The different texts of a collection: what its own encoder has cached of them, and what another one makes of them.

T different texts, R rows that have them, D dim of the cached features, K dim of a space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from batchproj.decode.limits import Limits
from batchproj.decode.text import decode_text
from batchproj.errors import UsageError
from batchproj.features import Features, from_column, gathered
from batchproj.linking import hash_share, linked
from batchproj.media import Segment, TextSpec
from batchproj.pairs import check_finite, each_cached_features
from batchproj.schema import Modality
from batchproj.search import Collection
from batchproj.space import Member, to_vectors

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

MOST = 100_000
"""Different texts that are taken of however many; training looks at some 100,000 in its 400 batches of 256."""

_KEYS = ["text", "content_id", "pair"]

_WINDOW = 256
"""Texts handed to an encoder at once: enough to sort by length, few enough to show how it gets on."""


@dataclass(frozen=True)
class Texts:
    """Each different text once, in order of the words, with its features as they are cached and its live vector (T, K).

    `asked` are the vectors (T, K) as queries, None if they are the live ones, and then `features` are theirs too.
    `pairs`, `contents` and `number` are of the rows that have the texts: pair key, content id, number of the text;
    `of_rows` is how many have any text. A row's text is all of its segment, as the collection's encoder has seen it.
    """

    words: list[str]
    features: Features
    live: Array
    pairs: list[str | None]
    contents: list[str]
    number: list[int]
    asked: Array | None = None
    of_rows: int = 0

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
            self.of_rows,
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
    """The texts of the live run, or `MOST` of them drawn at random; `member` is what made their vectors.

    Features are read file by file, so that memory does not follow their number. Equal objects give equal texts, in
    whatever order they were embedded.

    Raises UsageError where there are none, or their features are missing, damaged or not finite.
    """
    draw, rows = Draw(MOST), 0
    for cached in each_cached_features(collection, Modality.TEXT):
        rows += cached.num_rows
        draw.add(cached.filter(pc.is_valid(cached["text"])))
    if not draw.rows:
        raise no_texts(collection)
    if draw.rows < rows:
        say(f"{rows - draw.rows:,} of {rows:,} rows have no text in them and are left out")
    keys, first = draw.drawn()
    if keys.num_rows < draw.rows:
        say(
            f"{first.num_rows:,} different texts, drawn at random, are taken, which {keys.num_rows:,} of {draw.rows:,} "
            "rows have"
        )
    words = first["text"].to_pylist()
    number = dict(zip(words, range(len(words)), strict=True))
    features = check_finite(from_column(first["feature"]), Modality.TEXT)
    return Texts(
        words,
        features,
        to_vectors(features, member.load_projector()),
        keys["pair"].to_pylist(),
        keys["content_id"].to_pylist(),
        [number[word] for word in keys["text"].to_pylist()],
        of_rows=draw.rows,
    )


class Draw:
    """`most` different texts out of any number, whatever the order they come in: those with the least digests.

    Any text is as likely to be taken, however many rows have it. In memory are the features of twice as many texts
    and the keys of all rows that have them.
    """

    def __init__(self, most: int) -> None:
        self.rows = 0
        self._most = most
        self._least = 1.0  # what is drawn has a share below
        self._keys: list[pa.Table] = []
        self._first: list[pa.Table] = []

    def add(self, rows: pa.Table) -> None:
        """Some rows with columns `text`, `content_id`, `pair` and `feature`."""
        self.rows += rows.num_rows
        shares = pa.array([hash_share(text, "texts") for text in rows["text"].to_pylist()], pa.float64())
        rows = rows.select([*_KEYS, "feature"]).append_column("share", shares)
        self._take(rows.drop_columns("feature"), rows)
        if sum(each.num_rows for each in self._first) > 2 * self._most:
            self._narrow()

    def _take(self, keys: pa.Table, rows: pa.Table) -> None:
        self._keys.append(keys.filter(pc.less(keys["share"], self._least)))
        self._first.append(_one_a_text(rows.filter(pc.less(rows["share"], self._least))))

    def _narrow(self) -> None:
        keys, first = pa.concat_tables(self._keys), _one_a_text(pa.concat_tables(self._first))
        if first.num_rows > self._most:
            self._least = float(np.partition(first["share"].to_numpy(), self._most)[self._most])
        self._keys, self._first = [], []
        self._take(keys, first)

    def drawn(self) -> tuple[pa.Table, pa.Table]:
        """Keys of all rows that have a text drawn, and one row of each text, with its feature; in their order."""
        self._narrow()
        keys = pa.concat_tables(self._keys).sort_by([(name, "ascending") for name in _KEYS])
        return keys, pa.concat_tables(self._first)


def _one_a_text(rows: pa.Table) -> pa.Table:
    """The first row of each text, by the other keys, in the order of the texts."""
    order = pc.sort_indices(rows.select(_KEYS), [(name, "ascending") for name in _KEYS])
    first: dict[str, int] = {}
    for row, word in zip(order.to_pylist(), rows["text"].take(order).to_pylist(), strict=True):
        first.setdefault(word, row)
    return rows.take(pa.array(first.values(), pa.int64()))


def no_texts(collection: Collection) -> UsageError:
    return UsageError(
        f"no texts in {collection.uri}: an adapter is trained on the texts of a collection, embedded with the new "
        "encoder"
    )


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
