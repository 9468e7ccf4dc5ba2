"""Pairs of a collection, as training takes them, and the part of them that it must not see."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from batchproj.collection.cache import each_live_features
from batchproj.comparison import HeldOut
from batchproj.errors import BatchprojError, TryLater, UsageError
from batchproj.features import Features, from_column
from batchproj.linking import linked, split
from batchproj.objectstore import Folder
from batchproj.schema import Modality
from batchproj.search import Collection
from batchproj.space import Split
from batchproj.token_features import TokenFeatures

T = TypeVar("T")
Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Samples:
    """Features of items with the vector (N, K) of a caption of their pair; an item has a sample per caption.

    `groups` says what is right for each other: items of one pair or of equal content, with all their
    captions. `items` is the number of a sample's item.
    """

    features: Features | Array
    targets: Array
    pairs: list[str]
    groups: list[str]
    items: list[int]

    def where(self, mask: Mask) -> Samples:
        pairs, groups, items = _where(self.pairs, mask), _where(self.groups, mask), _where(self.items, mask)
        return Samples(self.features[mask], self.targets[mask], pairs, groups, items)

    def of_groups(self, most: int) -> Samples:
        """All samples of at most so many groups, drawn at random, the same each time."""
        groups = sorted(set(self.groups))
        if len(groups) <= most:
            return self
        drawn = {groups[number] for number in np.random.default_rng(0).choice(len(groups), most, replace=False)}
        return self.where(np.array([group in drawn for group in self.groups], np.bool_))

    def one_an_item(self) -> Mask:
        """The first sample of each item."""
        mask = np.zeros(len(self.items), np.bool_)
        mask[np.unique(self.items, return_index=True)[1]] = True
        return mask

    def reversed(self) -> Samples:
        """Captions' vectors (N, K) with the unit features (N, D) of their items: the other way round."""
        pooled = self.features.mean() if isinstance(self.features, TokenFeatures) else self.features
        features = np.asarray(pooled, np.float32)
        lengths = np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
        _, captions = np.unique(self.targets, axis=0, return_inverse=True)
        return Samples(self.targets, features / lengths, self.pairs, self.groups, captions.tolist())

    def held_out(self) -> HeldOut:
        """What projectors are judged on: these items, in order of `one_an_item`, and their different captions."""
        captions, first, caption = np.unique(self.targets, axis=0, return_index=True, return_inverse=True)
        groups = [str(group) for group in linked(self.groups, caption.tolist())]
        return HeldOut(_where(groups, self.one_an_item()), captions, [groups[number] for number in first])


def paired_rows(collection: Collection) -> pa.Table:
    """Live rows that belong to a pair: id, uri, modality, pair, text, vector, content_id; all in memory."""
    columns = ["id", "uri", "modality", "pair", "text", "vector", "content_id"]
    return collection.dataset().to_table(columns=columns, filter=pc.field("pair").is_valid())


def held_out_pairs(rows: pa.Table, how: Split) -> set[str]:
    """Pair keys of the test part; items linked by pair or by equal content stay on one side."""
    pairs = rows["pair"].to_pylist()
    tested = split(pairs, rows["content_id"].to_pylist(), how.test_fraction, how.seed)
    return {pair for pair, test in zip(pairs, tested, strict=True) if test}


def paired_samples(collection: Collection, rows: pa.Table, modality: Modality) -> Samples | None:
    """Every item of the modality with every caption of its pair; None without any pair.

    Raises UsageError where the captions or the cached features cannot be trained on.
    """
    captions: dict[str, list[int]] = {}
    texts = rows.filter(pc.equal(rows["modality"], str(Modality.TEXT)))
    for number, pair in enumerate(texts["pair"].to_pylist()):
        captions.setdefault(pair, []).append(number)
    cached = cached_features(collection, modality)
    links = [
        (number, caption, pair)
        for number, pair in enumerate(cached["pair"].to_pylist() if cached is not None else [])
        for caption in captions.get(pair, ())
    ]
    if cached is None or not links:
        return None
    links = _in_order(links, cached["content_id"].to_pylist(), texts["content_id"].to_pylist())
    items = [number for number, _, _ in links]
    features = check_finite(from_column(cached["feature"])[items], modality)
    targets = matrix(texts["vector"])[[caption for _, caption, _ in links]]
    _check_captions(targets, modality)
    pairs = [pair for _, _, pair in links]
    contents = cached["content_id"].take(pa.array(items)).to_pylist()
    return Samples(features, targets, pairs, [str(group) for group in linked(pairs, contents)], items)


def _in_order(
    links: list[tuple[int, int, str]], contents: list[str], captions: list[str]
) -> list[tuple[int, int, str]]:
    """By pair and contents, so that equal objects give equal weights, in whatever order they were embedded."""
    return sorted(links, key=lambda link: (link[2], contents[link[0]], captions[link[1]]))


def matrix(column: pa.ChunkedArray) -> Array:
    """A fixed-size list column as (n, width) float32."""
    values = column.combine_chunks()
    rows: Array = values.flatten().to_numpy().reshape(-1, values.type.list_size).astype(np.float32, copy=False)
    return rows


def cached_features(collection: Collection, modality: Modality) -> pa.Table | None:
    """Features of the live items of a modality (`schema.feature_schema`), None without any; all in memory.

    Raises UsageError where they are missing or damaged.
    """
    files = list(each_cached_features(collection, modality))
    return pa.concat_tables(files) if files else None


def each_cached_features(collection: Collection, modality: Modality) -> Iterator[pa.Table]:
    """The same file by file, never all in memory."""
    try:
        yield from each_live_features(Folder(collection.uri), collection.snapshot, modality)
    except TryLater:
        raise
    except BatchprojError as error:
        fingerprint = collection.snapshot.fingerprints[modality].feature
        raise UsageError(
            f"cached features of {modality} with fingerprint {fingerprint[:12]}, which made the live vectors, are "
            f"missing, damaged or of another fingerprint; make them again: batchproj verify {collection.uri} --repair"
        ) from error


def check_finite(features: Features, modality: Modality) -> Features:
    """The same features; raises UsageError where they are not finite."""
    pooled = features.mean() if isinstance(features, TokenFeatures) else features
    bad = int((~np.isfinite(pooled).all(axis=1)).sum())
    if bad:
        raise UsageError(
            f"NaN or infinity in {bad:,} of {len(features):,} cached features of {modality}, expected finite numbers; "
            "find the damaged file with: batchproj verify COLLECTION"
        )
    return features


def _check_captions(targets: Array, modality: Modality) -> None:
    if len(targets) > 1 and (targets == targets[0]).all():
        raise UsageError(
            f"all captions of the {len(targets):,} pairs of {modality} are equal: there is nothing to tell items apart "
            "by; give each item a text of its own"
        )


def _where(values: Sequence[T], mask: Mask) -> list[T]:
    return [value for value, kept in zip(values, mask, strict=True) if kept]
