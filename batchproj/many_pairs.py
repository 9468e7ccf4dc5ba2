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
from batchproj.card import SCRATCH
from batchproj.collection import layout, manifest
from batchproj.collection.unit import read_rows
from batchproj.errors import SpaceError, TooFewPairs, UsageError
from batchproj.fit import (
    Config,
    Fit,
    Progress,
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

Say = Callable[[str], None]

FEWEST_PAIRS = 4
MANY_ROWS = 50_000
FOR_MANY = {"batch_rows": 1_024, "feature_dropout": 0.2}
"""Defaults from so many samples on: what is hidden of small sets against overfitting is missed there."""

SHUFFLED_ROWS, SHUFFLED_BYTES = 16_384, 256 * 2**20
"""Samples that a worker draws from: shards are shuffled within, and their units were drawn at random."""

FEWEST_PASSES = 4
"""Over all samples, whatever `max_steps` says: so many are never seen otherwise."""


@dataclass(frozen=True)
class Fitted:
    """What came of it, and what it is to be judged by.

    `pairs_validation` are those that chose among the checkpoints and were not trained on.
    """

    fit: Fit
    baseline: LinearProjector
    unseen: Samples
    pairs_train: int
    pairs_test: int
    pairs_validation: int = 0


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
    watch: Progress,
    say: Say,
    verbose: bool = False,
) -> Fitted | None:
    """Fit a projector by so many workers of Ray; None without any pair of the modality.

    Shards and checkpoints lie in `out` meanwhile, so on a cluster it has to be where all nodes reach. `watch(step,
    steps, check)` tells how it gets on. The same seed, pairs and number of workers give the same weights on CPU with
    one worker. Raises UsageError where pairs cannot be trained on, SpaceError for an unknown kind of projector,
    BatchprojError if training fails.
    """
    projector_config(config, 1, 1)  # before the long work
    folder = Folder(f"{out}/{SCRATCH}")
    try:
        with tempfile.TemporaryDirectory(prefix="batchproj-train-") as scratch:
            pairs = _training_set(collection, modality, split, config, folder, Path(scratch), say)
        if pairs is None:
            return None
        with ray_session(verbose):
            fitted = fit_set(pairs, config, folder, workers, watch)
    except (UsageError, SpaceError):  # another try would not go on with it
        _clean(out, folder)
        raise
    _clean(out, folder)
    return fitted


def _clean(out: str, folder: Folder) -> None:
    Folder(out).remove([f"{SCRATCH}/{name}" for name, _ in folder.files()])  # and the folder, which is empty then


def _training_set(
    collection: Collection, modality: Modality, split: Split, config: Config, folder: Folder, scratch: Path, say: Say
) -> TrainingSet | None:
    source, snapshot = Folder(collection.uri), collection.snapshot
    items = manifest.rows(manifest.fetch(source, snapshot, scratch))
    fingerprint = snapshot.fingerprints[modality].feature
    digests = {file.name: file.sha256 for file in snapshot.features}

    def read(name: str) -> pa.Table:
        return read_rows(source, layout.features(fingerprint, name), digests[name])

    return training_set.build(
        items, _captions(collection), read, modality, split, config.validation_fraction, folder, scratch, say
    )


def _captions(collection: Collection) -> Iterator[pa.RecordBatch]:
    texts = (pc.field("modality") == str(Modality.TEXT)) & pc.field("pair").is_valid()
    scanner = collection.dataset().scanner(
        columns=["pair", "vector"], filter=texts, batch_size=8_192, batch_readahead=2, fragment_readahead=1
    )
    yield from scanner.to_batches()


def _judged(pairs: TrainingSet, config: Config) -> TrainingSamples:
    validation = pairs.validation
    seen = pairs.pairs_train + len(set(validation.pairs))
    if len(set(validation.groups)) < 2 or seen < FEWEST_PAIRS:
        raise TooFewPairs(
            f"{seen} pairs to train on are too few to divide: expected at least {FEWEST_PAIRS} that are "
            "not linked; add pairs with texts of their own"
        )
    features = as_taken(validation.features, config)
    return TrainingSamples.of(features, validation.targets, validation.groups)


def fit_set(pairs: TrainingSet, config: Config, folder: Folder, workers: int, watch: Progress) -> Fitted:
    """Fit a projector to the shards in `folder`; needs a `ray_session`. The rest is as in `fit_many`."""
    judged = _judged(pairs, config)
    if workers > pairs.samples:
        raise UsageError(f"{workers} workers for {pairs.samples} samples: expected fewer")
    if pairs.samples >= MANY_ROWS:
        fitting = {name: value for name, value in FOR_MANY.items() if name not in config.model_fields_set}
        config = config.model_copy(update=fitting)
    takes_tokens = isinstance(judged.features, TokenFeatures)
    rows = min(config.batch_rows, pairs.samples)
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
        shuffled_rows=max(rows, min(SHUFFLED_ROWS, SHUFFLED_BYTES // pairs.sample_bytes)),
        data=pairs.digest,
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
    validated = len(set(pairs.validation.pairs))
    return Fitted(fit, ridge, pairs.tested, pairs.pairs_train, pairs.pairs_test, validated)


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
