"""The pairs of one modality as files to train from, made in one pass and never all in memory.

Keys are joined by an on-disk DuckDB; features are read one file of the cache at a time, in an order
drawn by the seed, and written as shards of samples, shuffled within. What is held out, and the slice
that validates, stay in memory and are bounded. One sample is one item with one caption of its pair.

N samples, D encoder dim, K dim of the space.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from batchproj.disk_links import linked_items
from batchproj.errors import TooFewPairs, UsageError
from batchproj.features import Features, from_column
from batchproj.linking import hash_share
from batchproj.objectstore import Folder
from batchproj.pairs import Samples, check_finite
from batchproj.ridge import Moments
from batchproj.schema import Modality
from batchproj.space import Split
from batchproj.token_features import TokenFeatures

Array = npt.NDArray[np.float32]
ReadFeatures = Callable[[str], pa.Table]
Say = Callable[[str], None]

SHARD_ROWS, SHARD_BYTES = 16_384, 64 * 2**20
SIDE_SAMPLES = 20_000
"""Samples of either side that are judged by; a group may have any number."""

MOST_JUDGED = 5_000
"""Held-out groups that are ranked: each among all others, so that time grows with the square."""
FEWEST_VALIDATING, MOST_VALIDATING = 2, 2_000
BATCH_ROWS = 65_536

_SAMPLES = """
SELECT i.features, i.item, i.pair, c.caption, g.number AS grp, g.side
FROM items i JOIN captions c USING (pair) JOIN label l USING (pair) JOIN groups g ON g.label = l.label
WHERE i.modality = ? AND g.side IS NOT NULL
ORDER BY hash(i.features || ?), i.features, i.item, c.caption
"""


@dataclass(frozen=True)
class TrainingSet:
    """What there is to train on and to judge by.

    `shards` are the names, below the folder that was given, of Parquet files with columns `feature`
    and `target` (bytes of float16), `caption` (equal for equal targets) and `grp` (int64: what is
    right for each other). `moments` are of mean-and-deviation where features are tokens. `pairs_train` are
    those in the shards alone; `pairs_test` are all held out, of which `tested` may be a share.
    """

    shards: list[str]
    samples: int
    moments: Moments
    validation: Samples
    tested: Samples
    pairs_train: int
    pairs_test: int
    is_tokens: bool
    in_dim: int
    out_dim: int
    sample_bytes: int  # mean of a sample to train on
    digest: str  # of all samples


def build(
    items: str,
    captions: Iterable[pa.RecordBatch],
    read_features: ReadFeatures,
    modality: Modality,
    split: Split,
    validation_fraction: float,
    folder: Folder,
    scratch: Path,
    say: Say,
) -> TrainingSet | None:
    """Write the shards; None without any pair.

    `items` is SQL of the manifest's rows, `captions` streams columns `pair` and `vector` of the live
    texts, `read_features` gives a file of the cache (`schema.feature_schema`). The same inputs give the
    same files. Raises UsageError where all captions are equal or features are not finite.
    """
    with linked_items(items, scratch) as db:
        db.execute("CREATE TABLE captions (caption BIGINT, pair VARCHAR)")
        with _Targets(scratch / "targets.f16") as targets:
            _load_captions(db, captions, targets, say)
            pairs_train, pairs_validation, pairs_test = _divide(db, modality, split, validation_fraction)
            if not pairs_train + pairs_validation + pairs_test:
                return None
            writer = _Writer(folder, modality, targets, split.seed)
            rows = db.cursor().sql(_SAMPLES, params=[str(modality), str(split.seed)]).to_arrow_reader(BATCH_ROWS)
            for name, links in _by_file(rows):
                writer.add(read_features(name), links)
                say(f"{modality}: {writer.samples:,} pairs of an item and a caption made ready")
            return writer.finish(pairs_train, pairs_test)


def _load_captions(db: Any, captions: Iterable[pa.RecordBatch], targets: _Targets, say: Say) -> None:
    for batch in captions:
        numbers = pa.array(range(targets.count, targets.count + batch.num_rows), pa.int64())
        db.register("incoming", pa.table({"caption": numbers, "pair": batch["pair"]}))
        db.execute("INSERT INTO captions SELECT caption, pair FROM incoming")
        db.unregister("incoming")
        targets.append(batch["vector"])
        say(f"captions: {targets.count:,}")


def _divide(db: Any, modality: Modality, split: Split, validation_fraction: float) -> tuple[int, int, int]:
    """Give every group its side: train, validate, test, or none where there is enough of that already.

    Returns the numbers of pairs to train on, to validate by, and held out.
    """
    db.execute(
        "CREATE TABLE ours AS SELECT DISTINCT pair FROM items JOIN captions USING (pair) WHERE modality = ?",
        [str(modality)],
    )
    db.execute("CREATE TABLE shares (label VARCHAR, test DOUBLE, other DOUBLE)")
    labels = db.cursor().sql("SELECT DISTINCT label FROM ours JOIN label USING (pair)").to_arrow_reader(BATCH_ROWS)
    for batch in labels:
        keys = batch["label"].to_pylist()
        test = pa.array([hash_share(key, split.seed) for key in keys], pa.float64())
        other = pa.array([hash_share(key, f"validation {split.seed}") for key in keys], pa.float64())
        db.register("incoming", pa.table({"label": batch["label"], "test": test, "other": other}))
        db.execute("INSERT INTO shares SELECT * FROM incoming")
        db.unregister("incoming")
    # a bounded share of either, by a hash again, so that it is drawn at random and the same each time
    db.execute(
        f"""
        CREATE TABLE groups AS
        WITH counts AS (SELECT count(*) FILTER (test < {split.test_fraction}) AS tested, count(*) AS every FROM shares),
        ranked AS (
            SELECT *, row_number() OVER (PARTITION BY test < {split.test_fraction} ORDER BY other, label) AS place
            FROM shares)
        SELECT label, row_number() OVER (ORDER BY label) AS number,
            CASE WHEN test < {split.test_fraction} THEN
                     CASE WHEN other * tested < {MOST_JUDGED} THEN 'test' END
                 WHEN place <= {FEWEST_VALIDATING} THEN 'validate'
                 WHEN other < {validation_fraction} AND other * (every - tested) < {MOST_VALIDATING} THEN 'validate'
                 ELSE 'train' END AS side
        FROM ranked, counts
        """
    )
    counts: tuple[int, int, int] = db.execute(
        f"""
        SELECT count(*) FILTER (side = 'train'), count(*) FILTER (side = 'validate'),
            count(*) FILTER (test < {split.test_fraction})
        FROM ours JOIN label USING (pair) JOIN shares USING (label) JOIN groups USING (label)
        """
    ).fetchall()[0]
    return counts


def _by_file(rows: pa.RecordBatchReader) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Consecutive rows with one file of features."""
    singles = (row for batch in rows for row in batch.to_pylist())
    for name, group in groupby(singles, key=lambda row: row["features"]):
        yield name, list(group)


class _Targets:
    """Vectors of captions in a file, float16: read row by row, they are never all in memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._dim = 0
        self.count = 0

    def __enter__(self) -> _Targets:
        self._file = self._path.open("w+b")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, column: pa.FixedSizeListArray) -> None:
        vectors = column.flatten().to_numpy().reshape(-1, column.type.list_size).astype(np.float32)
        if not len(vectors):
            return
        self._dim = vectors.shape[1]
        self._file.write(vectors.astype(np.float16).tobytes())
        self.count += len(vectors)

    def __getitem__(self, numbers: list[int]) -> list[bytes]:
        self._file.flush()
        width = 2 * self._dim
        found = []
        for number in numbers:
            self._file.seek(number * width)
            found.append(self._file.read(width))
        return found


@dataclass
class _Side:
    """Samples that stay in memory."""

    features: list[Features] = field(default_factory=list)
    targets: list[bytes] = field(default_factory=list)
    pairs: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    items: list[int] = field(default_factory=list)


class _Writer:
    """Samples as they come, to shards or to the sides that are judged by."""

    def __init__(self, folder: Folder, modality: Modality, targets: _Targets, seed: int) -> None:
        self._folder, self._modality, self._targets = folder, modality, targets
        self._random = np.random.default_rng(seed)
        self._sides = {"validate": _Side(), "test": _Side()}
        self._waiting: list[pa.Table] = []
        self._moments: Moments | None = None
        self._like: Features | None = None
        self._items = 0
        self._shards: list[str] = []
        self._bytes = 0
        self._digest = hashlib.sha256()
        self._captions: set[bytes] = set()  # two of them tell that not all are equal
        self.samples = 0

    def add(self, cached: pa.Table, links: list[dict[str, Any]]) -> None:
        """One file of features and its samples: rows of `_SAMPLES`."""
        rows_of: dict[str, list[int]] = {}
        for row, item in enumerate(cached["item"].to_pylist()):
            rows_of.setdefault(item, []).append(row)
        found = [(row, link) for link in links for row in rows_of.get(link["item"], ())]
        if not found:
            return
        rows = [row for row, _ in found]
        features = check_finite(from_column(cached["feature"])[rows], self._modality)
        self._like = features[:1]
        targets = self._targets[[link["caption"] for _, link in found]]
        self._captions = set(list(self._captions | set(targets))[:2])
        sides = np.array([link["side"] for _, link in found])
        for side, kept in self._sides.items():
            if not (chosen := np.flatnonzero(sides == side).tolist()[: SIDE_SAMPLES - len(kept.items)]):
                continue
            kept.features.append(_copied(features, chosen))
            kept.targets += [targets[number] for number in chosen]
            kept.pairs += [found[number][1]["pair"] for number in chosen]
            kept.groups += [str(found[number][1]["grp"]) for number in chosen]
            kept.items += [self._items + rows[number] for number in chosen]
        self._items += cached.num_rows
        chosen = np.flatnonzero(sides == "train").tolist()
        if chosen:
            groups = [found[number][1]["grp"] for number in chosen]
            self._train(features[chosen], [targets[number] for number in chosen], groups)

    def _train(self, features: Features, targets: list[bytes], groups: list[int]) -> None:
        pooled = features.mean_std() if isinstance(features, TokenFeatures) else features.astype(np.float32)
        vectors = from_bytes(targets, len(targets))
        if self._moments is None:
            self._moments = Moments(pooled.shape[1], vectors.shape[1])
        self._moments.add(torch.from_numpy(pooled), torch.from_numpy(unit(vectors)))
        self._waiting.append(
            pa.table(
                {
                    "feature": pa.array([row.tobytes() for row in features], pa.large_binary()),
                    "target": pa.array(targets, pa.large_binary()),
                    "caption": pa.array([_number(target) for target in targets], pa.int64()),
                    "grp": pa.array(groups, pa.int64()),
                }
            )
        )
        self.samples += len(targets)
        if sum(each.num_rows for each in self._waiting) >= SHARD_ROWS or _size(self._waiting) >= SHARD_BYTES:
            self._write()

    def _write(self) -> None:
        table = pa.concat_tables(self._waiting)
        table = table.take(pa.array(self._random.permutation(table.num_rows)))
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="none")
        name = f"{self._modality}-{len(self._shards):06d}.parquet"
        data = sink.getvalue()
        self._digest.update(data)
        self._bytes += table.nbytes
        self._folder.write(name, data)
        self._shards.append(name)
        self._waiting = []

    def finish(self, pairs_train: int, pairs_test: int) -> TrainingSet | None:
        if self._waiting:
            self._write()
        if self._like is None:
            return None
        if self.samples > 1 and len(self._captions) == 1:
            raise UsageError(
                f"all captions of the pairs of {self._modality} are equal: there is nothing to tell items apart by; "
                "give each item a text of its own"
            )
        if self._moments is None:
            raise TooFewPairs("no pair is left to train on beside those held out; add pairs with texts of their own")
        is_tokens = isinstance(self._like, TokenFeatures)
        return TrainingSet(
            shards=self._shards,
            samples=self.samples,
            moments=self._moments,
            validation=self._samples("validate"),
            tested=self._samples("test"),
            pairs_train=pairs_train,
            pairs_test=pairs_test,
            is_tokens=is_tokens,
            in_dim=self._like.dim if isinstance(self._like, TokenFeatures) else self._like.shape[1],
            out_dim=self._moments.target_mean.shape[0],
            sample_bytes=self._bytes // self.samples,
            digest=self._digest.hexdigest(),
        )

    def _samples(self, name: str) -> Samples:
        side = self._sides[name]
        assert self._like is not None
        targets = unit(from_bytes(side.targets, len(side.targets)))
        return Samples(_joined(side.features, self._like), targets, side.pairs, side.groups, side.items)


def from_bytes(rows: list[bytes], count: int) -> Array:
    """So many rows of float16 as (count, width) float32."""
    values = np.frombuffer(b"".join(rows), np.float16)
    return values.reshape(count, len(values) // max(1, count)).astype(np.float32)


def tokens_from_bytes(rows: list[bytes], dim: int) -> TokenFeatures:
    """Tokens of float16, of which each row has its own number."""
    offsets = np.cumsum([0, *(len(row) // (2 * dim) for row in rows)])
    return TokenFeatures.at(np.frombuffer(b"".join(rows), np.float16).reshape(-1, dim), offsets)


def unit(vectors_NK: Array) -> Array:
    """Of length 1 again, which float16 is not exactly."""
    lengths_N1: Array = np.maximum(np.linalg.norm(vectors_NK, axis=1, keepdims=True), 1e-12)
    return vectors_NK / lengths_N1


def _copied(features: Features, rows: list[int]) -> Features:
    """Some rows without the file they are from, which would stay in memory for them."""
    chosen = features[rows]
    return TokenFeatures.of(list(chosen)) if isinstance(chosen, TokenFeatures) else chosen


def _joined(parts: list[Features], like: Features) -> Features:
    if not isinstance(like, TokenFeatures):
        return np.concatenate([np.empty((0, like.shape[1]), np.float16), *parts])
    return TokenFeatures.of([np.empty((0, like.dim), np.float16), *(row for part in parts for row in part)])[1:]


def _size(tables: list[pa.Table]) -> int:
    return sum(table.nbytes for table in tables)


def _number(data: bytes) -> int:
    """The same for equal bytes, in 63 bits."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") >> 1
