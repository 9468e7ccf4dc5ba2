"""Fit projectors on the cached features of a collection's pairs; write a space and its card."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from batchproj import fit as fitting
from batchproj import project
from batchproj.card import writable_space, write_card, write_reverse, write_space
from batchproj.collection import layout
from batchproj.comparison import Answers, HeldOut
from batchproj.errors import TooFewPairs, UsageError
from batchproj.many_pairs import Fitted, count_rows, fit_many
from batchproj.pairs import held_out_pairs, paired_rows, paired_samples
from batchproj.projector import Projector
from batchproj.report import CHANCE, NEW, REPLACED, RIDGE, compared, nothing_held_out
from batchproj.schema import Modality
from batchproj.search import Collection
from batchproj.space import SpaceFolder, Split, open_space, to_vectors
from batchproj.token_projector import TokenProjectorConfig
from batchproj.training_set import MOST_JUDGED

Watch = Callable[[str, int, int, str], None]
Say = Callable[[str], None]

IN_MEMORY_ROWS = 200_000
"""Live rows with a pair; above, they stream from disk to a worker of Ray, or to as many as are asked for."""


@dataclass(frozen=True)
class TrainOptions:
    """What to train and how to divide the pairs; `modality` None trains all that have pairs.

    With `workers` pairs stream from disk to so many workers of Ray; None decides by their number. `reverse` trains
    from the text vectors into the modality's own features instead.
    """

    projector: str = "mlp"
    modality: Modality | None = None
    split: Split = Split()  # noqa: RUF009 - frozen
    fit: fitting.Config = fitting.Config()  # noqa: RUF009 - frozen
    workers: int | None = None
    reverse: bool = False
    verbose: bool = False


def train(uri: str, out: str, options: TrainOptions, watch: Watch, say: Say) -> dict[str, Any]:
    """Train a projector into the text vectors for each modality that has pairs enough; the contract's document.

    `watch(name, done, total, note)` counts steps, `say` is told what is made ready. Raises UsageError where there are
    no pairs to train on, SpaceError for an unknown kind of projector. Nothing is written before all are trained, but
    for what streams from disk (`many_pairs`), which lies in a folder of its own and is removed again.
    """
    config = options.fit.model_copy(update={"kind": options.projector})
    _check(options, config)
    folder = writable_space(out, uri)
    if options.reverse and folder.exists("space.yaml"):
        raise UsageError(f"--out {out} holds a space, whose card would be lost; choose an empty or a new folder")
    collection = Collection(uri)
    before = open_space(f"{collection.uri}/{layout.space(collection.snapshot.space)}")
    modalities = _trainable(collection, options.modality)
    if not options.reverse and (options.workers or count_rows(collection) > IN_MEMORY_ROWS):
        fit_one = _streamed(collection, out, options, say)
    else:
        fit_one = _in_memory(collection, options.split, options.reverse)
    projectors: dict[Modality, Projector] = {}
    results: dict[str, Any] = {}
    too_few: list[str] = []
    for modality in modalities:
        started = time.monotonic()
        try:
            fitted = fit_one(modality, config, noted(watch, f"{modality} steps"))
        except TooFewPairs as error:
            if len(modalities) == 1:
                raise UsageError(f"{modality}: {error}") from error
            too_few.append(f"{modality}: {error}")
            say(f"left out is {too_few[-1]}")
            continue
        if fitted is None:
            continue
        projectors[modality] = fitted.fit.projector
        results[modality] = {
            **_told(fitted, config),
            **_judge(fitted, modality, None if options.reverse else _Rival.of(before, modality)),
            "history": [asdict(check) for check in fitted.fit.history],
            "seconds": round(time.monotonic() - started, 2),
        }
    if too_few and not projectors:
        raise UsageError("; ".join(too_few))
    if not projectors:
        raise UsageError(
            f"no pairs of {' or '.join(modalities)} and text: files of one pair share their path up to the first "
            "dot, such as a/frog.png and a/frog.txt"
        )
    write_card(folder, _card(collection, before, options, results))
    if options.reverse:
        write_reverse(folder, projectors)
    else:
        write_space(folder, Path(out).name, before, options.split, projectors)
    return {"space": out, "modality": {modality: _contract(modality, each) for modality, each in results.items()}}


def _check(options: TrainOptions, config: fitting.Config) -> None:
    """Raises UsageError for options that do not go together, SpaceError for what no projector is made with."""
    kind = fitting.projector_config(config, 1, 1)
    takes_tokens = isinstance(kind, TokenProjectorConfig)
    if isinstance(kind, TokenProjectorConfig) and kind.is_asked:
        raise UsageError(
            "query_dim: train makes projectors of one modality, and another one asks these; in Python fit.fit trains "
            "them, on AskedFeatures"
        )
    if options.reverse and options.workers:
        raise UsageError("--reverse trains in memory: expected no --workers")
    if options.reverse and takes_tokens:
        raise UsageError(
            f"--reverse starts from text vectors, which are pooled: expected linear or mlp, not {kind.kind}"
        )


_FitOne = Callable[[Modality, fitting.Config, fitting.Progress], Fitted | None]


def noted(watch: Watch, name: str) -> fitting.Progress:
    """The steps of a training, for who watches, with loss and recall on the validation slice."""

    def report(done: int, total: int, check: fitting.Check | None) -> None:
        watch(name, done, total, f"loss {check.loss:.2f}, recall {check.recall:.2f}" if check else "")

    return report


def _in_memory(collection: Collection, split: Split, reverse: bool) -> _FitOne:
    rows = paired_rows(collection)
    held_out = held_out_pairs(rows, split)

    def fit_one(modality: Modality, config: fitting.Config, progress: fitting.Progress) -> Fitted | None:
        samples = paired_samples(collection, rows, modality)
        if samples is None:
            return None
        if reverse:
            samples = samples.reversed()
        tested = np.array([pair in held_out for pair in samples.pairs], dtype=bool)
        seen, unseen = samples.where(~tested), samples.where(tested)
        fit = fitting.fit(seen.features, seen.targets, seen.groups, config, progress)
        baseline = fitting.ridge(seen.features, seen.targets, seen.groups, config)
        return Fitted(fit, baseline, unseen, len(set(seen.pairs)), len(set(unseen.pairs)))

    return fit_one


def _streamed(collection: Collection, out: str, options: TrainOptions, say: Say) -> _FitOne:
    def fit_one(modality: Modality, config: fitting.Config, progress: fitting.Progress) -> Fitted | None:
        workers = options.workers or 1
        return fit_many(collection, out, modality, options.split, config, workers, progress, say, options.verbose)

    return fit_one


def _trainable(collection: Collection, only: Modality | None) -> list[Modality]:
    present = list(collection.snapshot.fingerprints)
    if Modality.TEXT not in present:
        raise UsageError("the collection's space has no text encoder; projectors are trained into its text vectors")
    found: list[Modality] = [m for m in present if m is not Modality.TEXT and only in (None, m)]
    if only is Modality.TEXT:
        raise UsageError(
            "text is what the others are trained into, so it is trained into no pairs; a projector from another text "
            "encoder into the vectors of a space is what train --adapter OLD_SPACE makes"
        )
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
        return _Rival(None if file is None else project.loads(space.folder.read(file.file)))


def _told(fitted: Fitted, config: fitting.Config) -> dict[str, Any]:
    return {
        "projector": config.kind,
        "projector_options": config.options,
        "loss": config.loss,
        "pairs_train": fitted.pairs_train,
        "pairs_validation": fitted.pairs_validation,
        "pairs_test": fitted.pairs_test,
        "steps": fitted.fit.steps,
        "temperature": round(fitted.fit.temperature, 4),
    }


def _judge(fitted: Fitted, modality: Modality, rival: _Rival | None) -> dict[str, Any]:
    """Without a rival it is a reverse projector, which replaces none."""
    if not fitted.unseen.pairs:
        return {"groups_judged": 0, **nothing_held_out()}
    unseen = fitted.unseen.of_groups(MOST_JUDGED)
    held_out: HeldOut = unseen.held_out()
    features = unseen.features[unseen.one_an_item()]
    answers: dict[str, Answers] = {
        NEW: held_out.answers(fitted.fit.projector.project(features)),
        RIDGE: held_out.answers(fitted.baseline.project(features)),
        **({} if rival is None else {REPLACED: held_out.answers(to_vectors(features, rival.projector))}),
        CHANCE: held_out.chance(),
    }
    return {"groups_judged": held_out.groups, **compared(modality, held_out, answers, reverse=rival is None)}


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
        "reverse": options.reverse,
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
