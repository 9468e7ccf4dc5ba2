"""Fit projectors on the cached features of a collection's pairs; write a space and its card."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from batchproj import fit as fitting
from batchproj import project
from batchproj.card import writable_space, write_card, write_space
from batchproj.collection import layout
from batchproj.comparison import Answers, HeldOut
from batchproj.errors import UsageError
from batchproj.pairs import Samples, held_out_pairs, paired_rows, paired_samples
from batchproj.projector import Projector
from batchproj.report import CHANCE, NEW, REPLACED, RIDGE, compared, nothing_held_out
from batchproj.schema import Modality
from batchproj.search import Collection
from batchproj.space import SpaceFolder, Split, open_space, to_vectors

Watch = Callable[[str, int, int], None]

_MOST_JUDGED = 5_000
"""Held-out groups that are ranked: each among all others, so that time grows with the square."""


@dataclass(frozen=True)
class TrainOptions:
    """What to train and how to divide the pairs; `modality` None trains all that have pairs."""

    projector: str = "mlp"
    modality: Modality | None = None
    split: Split = Split()  # noqa: RUF009 - frozen
    fit: fitting.Config = fitting.Config()  # noqa: RUF009 - frozen


def train(uri: str, out: str, options: TrainOptions, watch: Watch) -> dict[str, Any]:
    """Train a projector into the text vectors for each modality; the contract's document.

    `watch(name, done, total)` counts steps. Raises UsageError where there are no pairs to train
    on, SpaceError for an unknown kind of projector. Nothing is written before all are trained.
    """
    folder = writable_space(out)
    collection = Collection(uri)
    before = open_space(f"{collection.uri}/{layout.space(collection.snapshot.space)}")
    rows = paired_rows(collection)
    modalities = _trainable(collection, options.modality)
    held_out = held_out_pairs(rows, options.split)
    config = options.fit.model_copy(update={"kind": options.projector})
    projectors: dict[Modality, Projector] = {}
    results: dict[str, Any] = {}
    for modality in modalities:
        samples = paired_samples(collection, rows, modality)
        if samples is None:
            continue
        tested = np.array([pair in held_out for pair in samples.pairs], dtype=bool)
        rival = _Rival.of(before, modality)
        projectors[modality], results[modality] = _train_one(samples, tested, config, modality, rival, watch)
    if not projectors:
        raise UsageError(
            f"no pairs of {' or '.join(modalities)} and text: files of one pair share their path up to the first "
            "dot, such as a/frog.png and a/frog.txt"
        )
    write_card(folder, _card(collection, before, options, results))
    write_space(folder, Path(out).name, before, options.split, projectors)
    return {"space": out, "modality": {modality: _contract(modality, each) for modality, each in results.items()}}


def _trainable(collection: Collection, only: Modality | None) -> list[Modality]:
    present = list(collection.snapshot.fingerprints)
    if Modality.TEXT not in present:
        raise UsageError("the collection's space has no text encoder; projectors are trained into its text vectors")
    found: list[Modality] = [m for m in present if m is not Modality.TEXT and only in (None, m)]
    if not found:
        raise UsageError(f"nothing to train: the space has {', '.join(present)}, asked for {only or 'any but text'}")
    return found


@dataclass(frozen=True)
class _Rival:
    """How the live space makes vectors of a modality: by a projector, or by the encoder alone."""

    projector: Projector | None

    @staticmethod
    def of(space: SpaceFolder, modality: Modality) -> _Rival:
        file = space.space.members()[modality].projector
        return _Rival(None if file is None else project.loads(space.folder.read(file.weights)))


def _train_one(
    samples: Samples,
    tested: npt.NDArray[np.bool_],
    config: fitting.Config,
    modality: Modality,
    rival: _Rival,
    watch: Watch,
) -> tuple[Projector, dict[str, Any]]:
    """The projector, and its part of the card."""
    started = time.monotonic()
    seen, unseen = samples.where(~tested), samples.where(tested)
    fitted = fitting.fit(
        seen.features, seen.targets, seen.groups, config, lambda done, total: watch(f"{modality} steps", done, total)
    )
    baseline = fitting.ridge(seen.features, seen.targets, seen.groups, config)
    return fitted.projector, {
        "projector": config.kind,
        "loss": config.loss,
        "pairs_train": len(set(seen.pairs)),
        "pairs_test": len(set(unseen.pairs)),
        "steps": fitted.steps,
        "temperature": round(fitted.temperature, 4),
        **_judge(unseen, modality, fitted.projector, baseline, rival),
        "history": [asdict(check) for check in fitted.history],
        "seconds": round(time.monotonic() - started, 2),
    }


def _judge(unseen: Samples, modality: Modality, new: Projector, baseline: Projector, rival: _Rival) -> dict[str, Any]:
    if not unseen.pairs:
        return nothing_held_out()
    unseen = unseen.of_groups(_MOST_JUDGED)
    held_out: HeldOut = unseen.held_out()
    features = unseen.features[unseen.one_an_item()]
    answers: dict[str, Answers] = {
        NEW: held_out.answers(new.project(features)),
        RIDGE: held_out.answers(baseline.project(features)),
        REPLACED: held_out.answers(to_vectors(features, rival.projector)),
        CHANCE: held_out.chance(),
    }
    return compared(modality, held_out, answers)


def _card(
    collection: Collection, before: SpaceFolder, options: TrainOptions, results: dict[str, Any]
) -> dict[str, Any]:
    """All there is to say of a training run; the contents of `card.json`."""
    return {
        "source": collection.snapshot.source,
        "run": collection.run,
        "replaced_space": before.space.name,
        "replaced_split": None if before.space.split is None else before.space.split.model_dump(),
        "split": options.split.model_dump(),
        "modality": results,
    }


def _contract(modality: str, result: dict[str, Any]) -> dict[str, Any]:
    """A modality's part of the contract's document: text asks for items."""
    judged = {name: each[f"text->{modality}"] for name, each in result["competitors"].items()}

    def recall(competitor: str, k: int) -> float | None:
        return judged[competitor][f"r@{k}"]["value"] if judged else None

    return {
        "projector": result["projector"],
        "pairs_train": result["pairs_train"],
        "pairs_test": result["pairs_test"],
        **{f"r@{k}": recall(NEW, k) for k in (1, 5, 10)},
        "median_rank": judged[NEW]["median_rank"] if judged else None,
        "baseline_r@10": recall(RIDGE, 10),
        "chance_r@10": recall(CHANCE, 10) if judged else 1.0,
        "steps": result["steps"],
        "seconds": result["seconds"],
    }
