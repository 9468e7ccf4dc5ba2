"""Training on more pairs than fit into memory, or by several workers: from a collection to a fitted projector."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from batchproj import ray_training, training_set
from batchproj.collection import layout
from batchproj.collection.unit import read_rows
from batchproj.errors import UsageError
from batchproj.fit import (
    Check,
    Config,
    Fit,
    TrainingSamples,
    as_taken,
    best_penalty,
    best_share,
    blended,
    projector_config,
)
from batchproj.objectstore import Folder
from batchproj.pairs import Samples
from batchproj.pipeline import ray_session
from batchproj.project.linear import LinearProjector
from batchproj.projector import Projector
from batchproj.ridge import Ridge
from batchproj.schema import Modality
from batchproj.search import Collection
from batchproj.space import Split
from batchproj.token_features import TokenFeatures
from batchproj.training_set import TrainingSet

Watch = Callable[[int, int, Check | None], None]
Say = Callable[[str], None]

SCRATCH = "training"
"""Folder below the new space's: shards and checkpoints, gone when training is done."""

MANY_ROWS = 50_000
BATCH_ROWS = 1_024
FEATURE_DROPOUT = 0.2
"""For sets of MANY_ROWS samples: what is hidden of small ones against overfitting is missed there."""

FEWEST_PASSES = 4
"""Over all samples, however many there are."""


@dataclass(frozen=True)
class Fitted:
    """What came of it, and what it is to be judged by."""

    fit: Fit
    baseline: LinearProjector
    unseen: Samples
    pairs_train: int
    pairs_test: int


def count_rows(collection: Collection) -> int:
    """Live rows that belong to a pair."""
    return int(collection.dataset().count_rows(filter=pc.field("pair").is_valid()))


def fit_many(
    collection: Collection,
    out: str,
    modality: Modality,
    split: Split,
    config: Config,
    workers: int,
    watch: Watch,
    say: Say,
    verbose: bool = False,
) -> Fitted | None:
    """Fit a projector by so many workers of Ray; None without any pair of the modality.

    Shards and checkpoints lie in `out` meanwhile, so on a cluster it has to be where all nodes reach. `watch(step,
    steps, check)` tells how it gets on. The same seed, pairs and number of workers give the same weights on CPU with
    one worker. Raises UsageError where pairs cannot be trained on, BatchprojError if training fails.
    """
    folder = Folder(f"{out}/{SCRATCH}")
    with tempfile.TemporaryDirectory(prefix="batchproj-train-") as scratch:
        pairs = _training_set(collection, modality, split, config, folder, Path(scratch), say)
    if pairs is None:
        return None
    with ray_session(verbose):
        fitted = fit_set(pairs, config, folder, workers, watch)
    Folder(out).remove([f"{SCRATCH}/{name}" for name, _ in folder.files()])  # and the folder, which is empty then
    return fitted


def _training_set(
    collection: Collection, modality: Modality, split: Split, config: Config, folder: Folder, scratch: Path, say: Say
) -> TrainingSet | None:
    source, snapshot = Folder(collection.uri), collection.snapshot
    manifest = scratch / "manifest.parquet"
    source.download(layout.manifest(snapshot.run), manifest)
    fingerprint = snapshot.fingerprints[modality].feature
    digests = {file.name: file.sha256 for file in snapshot.features}

    def read(name: str) -> pa.Table:
        return read_rows(source, layout.features(fingerprint, name), digests[name])

    return training_set.build(
        manifest, _captions(collection), read, modality, split, config.validation_fraction, folder, scratch, say
    )


def _captions(collection: Collection) -> Iterator[pa.RecordBatch]:
    texts = (pc.field("modality") == str(Modality.TEXT)) & pc.field("pair").is_valid()
    scanner = collection.dataset().scanner(
        columns=["pair", "vector"], filter=texts, batch_size=8_192, batch_readahead=2, fragment_readahead=1
    )
    yield from scanner.to_batches()


def _judged(pairs: TrainingSet, config: Config) -> TrainingSamples:
    validation = pairs.validation
    if len(set(validation.groups)) < 2:
        raise UsageError(
            f"{pairs.pairs_train} pairs to train on are too few to divide: expected some ten at least; add pairs"
        )
    features = as_taken(validation.features, config)
    return TrainingSamples.of(features, validation.targets, validation.groups)


def fit_set(pairs: TrainingSet, config: Config, folder: Folder, workers: int, watch: Watch) -> Fitted:
    """Fit a projector to the shards in `folder`; needs a `ray_session`. The rest is as in `fit_many`."""
    judged = _judged(pairs, config)
    if pairs.samples >= MANY_ROWS:
        config = config.model_copy(update={"feature_dropout": FEATURE_DROPOUT})
    takes_tokens = isinstance(judged.features, TokenFeatures)
    rows = min(BATCH_ROWS if pairs.samples >= MANY_ROWS else config.batch_rows, pairs.samples)
    steps = min(config.max_steps, config.epochs * max(1, pairs.samples // rows))
    steps = max(steps, math.ceil(FEWEST_PASSES * pairs.samples / rows))
    cores = torch.get_num_threads()
    run = ray_training.Run(
        start=_fresh(pairs, config, judged.in_dim, folder).to_bytes(),
        judged=judged,
        config=config,
        steps=steps,
        batch_rows=max(1, rows // workers),
        is_tokens=pairs.is_tokens,
        in_dim=pairs.in_dim,
        pooled=not takes_tokens,
        threads=max(1, cores // workers),
    )
    projector, history, length, temperature = ray_training.train(
        run, folder, pairs.shards, workers, lambda step, check: watch(step, steps, check)
    )
    regression = Ridge(pairs.moments)
    ridge = regression.solve(best_penalty(regression, judged))
    if config.ridge_shares and projector.has_linear_path:
        share = best_share(projector, ridge, judged.pooled, judged, config)
        projector = blended(projector, ridge, share, judged.pooled)
    fit = Fit(projector.eval(), history, length, temperature)
    return Fitted(fit, ridge, pairs.tested, pairs.pairs_train, pairs.pairs_test)


def _fresh(pairs: TrainingSet, config: Config, in_dim: int, folder: Folder) -> Projector:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        projector = projector_config(config, in_dim, pairs.out_dim).build()
    if pairs.is_tokens and in_dim == pairs.in_dim:
        projector.standardise_to(_first_tokens(pairs, folder))
    else:
        projector.take_moments(pairs.moments.mean, pairs.moments.spread)
    return projector


def _first_tokens(pairs: TrainingSet, folder: Folder) -> TokenFeatures:
    """Those of the first shard, a random draw of units."""
    table = pq.read_table(pa.BufferReader(folder.read(pairs.shards[0])), columns=["feature"])
    return training_set.tokens_from_bytes(table["feature"].to_pylist(), pairs.in_dim)
