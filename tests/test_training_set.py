"""Pairs as shards on disk: who is trained on, who validates, who is held out, in how much memory."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from batchproj import training_set
from batchproj.collection.manifest import rows as rows_of
from batchproj.errors import UsageError
from batchproj.features import to_column
from batchproj.linking import split
from batchproj.objectstore import Folder
from batchproj.schema import Modality
from batchproj.space import Split
from batchproj.token_features import TokenFeatures
from batchproj.training_set import TrainingSet, build, from_bytes, unit

FILE_ITEMS = 16
DIM, K = 12, 6


class Corpus:
    """Items `i0` … of pairs `p0` …, each with captions; contents equal where `contents` says so."""

    def __init__(self, folder: Path, pairs: int, captions: int = 1, contents: dict[int, str] | None = None) -> None:
        random = np.random.default_rng(0)
        self.pairs = [f"p{number:04d}" for number in range(pairs)]
        self.contents = [(contents or {}).get(number, f"c{number}") for number in range(pairs)]
        self.targets = unit(random.standard_normal((pairs * captions, K)).astype(np.float32))
        self.features = (self.targets[::captions] @ random.standard_normal((K, DIM))).astype(np.float16)
        self._captions = captions
        self.manifest = folder / "manifest.parquet"
        texts = [(f"t{number}", pair, f"text {number}", "text") for number, pair in enumerate(self.pairs)]
        images = [
            (f"i{number}", pair, content, "image")
            for number, (pair, content) in enumerate(zip(self.pairs, self.contents, strict=True))
        ]
        rows = [
            {
                "item": item,
                "pair": pair,
                "content_id": content,
                "modality": modality,
                "status": "embedded",
                "features": f"f{number // FILE_ITEMS}",
            }
            for number, (item, pair, content, modality) in itertools.chain(enumerate(texts), enumerate(images))
        ]
        pq.write_table(pa.Table.from_pylist(rows), self.manifest)

    def captions(self) -> Iterator[pa.RecordBatch]:
        pairs = pa.array([pair for pair in self.pairs for _ in range(self._captions)])
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(self.targets.reshape(-1)), K)
        yield from pa.table({"pair": pairs, "vector": vectors}).to_batches(max_chunksize=7)

    def read(self, name: str) -> pa.Table:
        rows = range(int(name[1:]) * FILE_ITEMS, min(len(self.pairs), (int(name[1:]) + 1) * FILE_ITEMS))
        return pa.table({"item": [f"i{row}" for row in rows], "feature": to_column(self.features[list(rows)])})

    def build(self, folder: Path, how: Split = Split(), **changes: object) -> TrainingSet | None:
        folder.mkdir(exist_ok=True)
        told = {"read_features": self.read, "captions": self.captions(), "modality": Modality.IMAGE, **changes}
        return build(
            rows_of([self.manifest]),
            split=how,
            validation_fraction=0.2,
            folder=Folder(str(folder / "shards")),
            scratch=Path(tempfile.mkdtemp(dir=folder)),
            say=lambda _: None,
            **told,  # type: ignore[arg-type]
        )


def rows(made: TrainingSet, folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(folder / "shards" / name) for name in made.shards])


def test_every_pair_is_on_one_side_and_the_same_one_as_in_memory(tmp_path: Path) -> None:
    corpus = Corpus(
        tmp_path, 200, captions=2, contents={3: "same", 77: "same", 78: "also", 140: "also", 141: "text 78"}
    )
    made = corpus.build(tmp_path / "a")
    assert made is not None
    texts = [f"text {number}" for number in range(200)]
    sides = split(corpus.pairs * 2, corpus.contents + texts)
    tested = {pair for pair, test in zip(corpus.pairs, sides, strict=False) if test}
    assert set(made.tested.pairs) == tested
    assert made.pairs_test == len(tested)
    validating = set(made.validation.pairs)
    assert validating
    assert made.pairs_train == 200 - len(tested) - len(validating)
    assert not validating & tested
    assert made.samples == 2 * (200 - len(tested) - len(validating)) == rows(made, tmp_path / "a").num_rows
    for one, other in (("p0003", "p0077"), ("p0140", "p0141")):  # linked, the latter through p0078
        assert (one in tested) == (other in tested)
        assert (one in validating) == (other in validating)


def test_a_sample_is_an_item_with_a_caption_of_its_pair(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, 120, captions=2)
    made = corpus.build(tmp_path / "a")
    assert made is not None
    table = rows(made, tmp_path / "a")
    features = from_bytes(table["feature"].to_pylist(), table.num_rows)
    targets = unit(from_bytes(table["target"].to_pylist(), table.num_rows))
    for feature, target in zip(features, targets, strict=True):
        (item,) = np.flatnonzero((corpus.features == feature.astype(np.float16)).all(axis=1))
        near = np.abs(corpus.targets[2 * item : 2 * item + 2] - target).max(axis=1)
        assert near.min() < 1e-3
    # both captions of an item are of one group, and two of it are told apart
    assert len(set(table["grp"].to_pylist())) == table.num_rows // 2
    assert len(set(table["caption"].to_pylist())) == table.num_rows


def test_equal_inputs_give_equal_files_and_another_seed_others(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, 60)
    made = [corpus.build(tmp_path / name, Split(seed=seed)) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    bytes_of = [
        [(tmp_path / name / "shards" / shard).read_bytes() for shard in each.shards]
        for name, each in zip("abc", made, strict=True)
        if each is not None
    ]
    assert bytes_of[0] == bytes_of[1] != bytes_of[2]


def test_moments_give_the_ridge_regression_of_the_samples(tmp_path: Path) -> None:
    from batchproj.ridge import Moments, Ridge

    made = Corpus(tmp_path, 150).build(tmp_path / "a")
    assert made is not None
    table = rows(made, tmp_path / "a")
    features = torch.from_numpy(from_bytes(table["feature"].to_pylist(), table.num_rows))
    targets = torch.from_numpy(unit(from_bytes(table["target"].to_pylist(), table.num_rows)))
    expected = Ridge(Moments.of(features, targets)).solve(10).map.weight
    torch.testing.assert_close(Ridge(made.moments).solve(10).map.weight, expected, rtol=1e-4, atol=1e-6)


def test_shards_are_of_bounded_size_and_what_is_judged_by_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_set, "SHARD_ROWS", 32)
    monkeypatch.setattr(training_set, "MOST_JUDGED", 10)
    monkeypatch.setattr(training_set, "MOST_VALIDATING", 10)
    made = Corpus(tmp_path, 400).build(tmp_path / "a")
    assert made is not None
    counts = [pq.read_metadata(tmp_path / "a/shards" / name).num_rows for name in made.shards]
    assert max(counts) < 32 + FILE_ITEMS
    assert sum(counts) == made.samples
    assert 2 <= len(made.tested.pairs) < 25 < made.pairs_test
    assert 2 <= len(made.validation.pairs) < 25


def test_tokens_keep_their_lengths(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, 60)
    lengths = {f"i{number}": 1 + number % 5 for number in range(60)}

    def read(name: str) -> pa.Table:
        cached = corpus.read(name)
        items = cached["item"].to_pylist()
        tokens = TokenFeatures.of([np.full((lengths[item], DIM), int(item[1:]), np.float16) for item in items])
        return pa.table({"item": items, "feature": to_column(tokens)})

    made = corpus.build(tmp_path / "a", read_features=read)
    assert made is not None
    assert made.is_tokens
    assert made.in_dim == DIM
    for row in rows(made, tmp_path / "a")["feature"].to_pylist():
        tokens = np.frombuffer(row, np.float16).reshape(-1, DIM)
        assert len(tokens) == lengths[f"i{int(tokens[0, 0])}"]


def test_no_pair_is_none_and_equal_captions_are_refused(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, 40)
    assert corpus.build(tmp_path / "a", captions=iter(())) is None
    assert corpus.build(tmp_path / "b", modality=Modality.AUDIO) is None
    corpus.targets[:] = corpus.targets[0]
    with pytest.raises(UsageError, match="all captions of the pairs of image are equal"):
        corpus.build(tmp_path / "c")
    corpus = Corpus(tmp_path, 40)
    corpus.features[7] = np.nan
    with pytest.raises(UsageError, match="NaN or infinity in 1 of"):
        corpus.build(tmp_path / "d")
