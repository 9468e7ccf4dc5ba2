"""Fit projectors on the cached features of a collection's pairs; write a space and its card."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import yaml

from batchproj import fit as fitting
from batchproj.collection import layout
from batchproj.collection.cache import live_features
from batchproj.errors import UsageError
from batchproj.features import Features, from_column
from batchproj.objectstore import Folder
from batchproj.pairs import held_out_pairs, matrix, paired_rows
from batchproj.projector import Projector
from batchproj.recall import retrieval
from batchproj.schema import Modality
from batchproj.search import Collection
from batchproj.space import ProjectorFile, Space, Split, open_space

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TrainOptions:
    """What to train and how to divide the pairs; `modality` None trains all that have pairs."""

    projector: str = "mlp"
    modality: Modality | None = None
    split: Split = Split()  # noqa: RUF009 - frozen
    fit: fitting.Config = fitting.Config()  # noqa: RUF009 - frozen


@dataclass(frozen=True)
class Samples:
    """Features of items (`features.Features`) with the vector (N, K) of a caption of their pair, and the pair keys."""

    features: Features
    targets: Array
    pairs: list[str]

    def where(self, mask: npt.NDArray[np.bool_]) -> Samples:
        return Samples(
            self.features[mask], self.targets[mask], [p for p, kept in zip(self.pairs, mask, strict=True) if kept]
        )


def train(uri: str, out: str, options: TrainOptions, watch: Callable[[str, int, int], None]) -> dict[str, Any]:
    """Train a projector into the text vectors for each modality; the contract's document.

    `watch(name, done, total)` counts steps. Raises UsageError where there are no pairs to train
    on, SpaceError for an unknown kind of projector. Nothing is written before all are trained.
    """
    collection = Collection(uri)
    rows = paired_rows(collection)
    modalities = _trainable(collection, options.modality)
    held_out = held_out_pairs(rows, options.split)
    config = options.fit.model_copy(update={"kind": options.projector})
    trained: dict[Modality, Projector] = {}
    results: dict[str, Any] = {}
    for modality in modalities:
        samples = _samples(collection, rows, modality)
        if samples is None:
            continue
        tested = np.array([pair in held_out for pair in samples.pairs], dtype=bool)
        trained[modality], results[modality] = _train_one(samples, tested, config, modality, watch)
    if not trained:
        raise UsageError(
            f"no pairs of {' or '.join(modalities)} and text: files of one pair share their path up to the first "
            "dot, such as a/frog.png and a/frog.txt"
        )
    _write_space(collection, out, options, trained, results)
    return {"space": out, "modality": results}


def _trainable(collection: Collection, only: Modality | None) -> list[Modality]:
    present = list(collection.snapshot.fingerprints)
    if Modality.TEXT not in present:
        raise UsageError("the collection's space has no text encoder; projectors are trained into its text vectors")
    found: list[Modality] = [m for m in present if m is not Modality.TEXT and only in (None, m)]
    if not found:
        raise UsageError(f"nothing to train: the space has {', '.join(present)}, asked for {only or 'any but text'}")
    return found


def _samples(collection: Collection, rows: pa.Table, modality: Modality) -> Samples | None:
    """Every item of the modality with every caption of its pair; None without any pair."""
    captions: dict[str, list[int]] = {}
    texts = rows.filter(pa.compute.equal(rows["modality"], str(Modality.TEXT)))
    for number, pair in enumerate(texts["pair"].to_pylist()):
        captions.setdefault(pair, []).append(number)
    cached = live_features(Folder(collection.uri), collection.snapshot, modality)
    links = [
        (number, caption, pair)
        for number, pair in enumerate(cached["pair"].to_pylist() if cached is not None else [])
        for caption in captions.get(pair, ())
    ]
    if cached is None or not links:
        return None
    features = from_column(cached["feature"])[[number for number, _, _ in links]]
    targets = matrix(texts["vector"])[[caption for _, caption, _ in links]]
    return Samples(features, targets, [pair for _, _, pair in links])


def _train_one(
    samples: Samples,
    tested: npt.NDArray[np.bool_],
    config: fitting.Config,
    modality: Modality,
    watch: Callable[[str, int, int], None],
) -> tuple[Projector, dict[str, Any]]:
    started = time.monotonic()
    seen, unseen = samples.where(~tested), samples.where(tested)
    fitted = fitting.fit(
        seen.features, seen.targets, seen.pairs, config, lambda done, total: watch(f"{modality} steps", done, total)
    )
    baseline = fitting.ridge(seen.features, seen.targets, seen.pairs, config)
    scores = _text_to_item(fitted.projector, unseen)
    return fitted.projector, {
        "projector": config.kind,
        "pairs_train": len(set(seen.pairs)),
        "pairs_test": len(set(unseen.pairs)),
        **{name: scores.get(name) for name in ("r@1", "r@5", "r@10", "median_rank")},
        "baseline_r@10": _text_to_item(baseline, unseen).get("r@10"),
        "chance_r@10": min(1.0, 10 / max(1, len(set(unseen.pairs)))),
        "steps": fitted.steps,
        "seconds": round(time.monotonic() - started, 2),
    }


def _text_to_item(projector: Projector, unseen: Samples) -> dict[str, float]:
    """Recall of the items by their captions, among the held-out ones; empty without any."""
    if not unseen.pairs:
        return {}
    captions, first = np.unique(unseen.targets, axis=0, return_index=True)
    pairs = [unseen.pairs[number] for number in first]
    return retrieval(captions, pairs, projector.project(unseen.features), unseen.pairs)


def _write_space(
    collection: Collection,
    out: str,
    options: TrainOptions,
    trained: dict[Modality, Projector],
    results: dict[str, Any],
) -> None:
    """The collection's space with the new projectors in place of its own, and a card beside it."""
    opened = open_space(f"{collection.uri}/{layout.space(collection.snapshot.space)}")
    target = Folder(out)
    members = {}
    for modality, member in opened.space.members().items():
        if modality in trained:
            target.write(f"{modality}.safetensors", trained[modality].to_bytes())
            kept = ProjectorFile(kind=trained[modality].config.kind, weights=f"{modality}.safetensors")
            members[str(modality)] = member.model_copy(update={"projector": kept})
        elif member.projector is not None:
            target.write(member.projector.weights, opened.folder.read(member.projector.weights))
    space: Space = opened.space.model_copy(update={**members, "name": Path(out).name, "split": options.split})
    target.write("README.md", _card(collection, options, results).encode())
    target.write("space.yaml", yaml.safe_dump(space.model_dump(exclude_none=True), sort_keys=False).encode())


def _card(collection: Collection, options: TrainOptions, results: dict[str, Any]) -> str:
    """What the projectors were trained on and what they are worth, in Markdown."""
    lines = [
        "# Trained projectors",
        "",
        f"Trained by `batchproj train --projector {options.projector}` on the pairs of `{collection.snapshot.source}`, "
        f"run {collection.run}. Pairs whose key hashes into {options.split.test_fraction:.0%} "
        f"(seed {options.split.seed}) were held out; linked pairs stay on one side. "
        "Recall is of items found by their captions, among the held-out pairs alone.",
        "",
        "| modality | projector | pairs trained on | held out | R@1 | R@5 | R@10 | ridge R@10 | chance R@10 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for modality, result in results.items():
        scores = " | ".join(
            "-" if result[name] is None else f"{result[name]:.3f}"
            for name in ("r@1", "r@5", "r@10", "baseline_r@10", "chance_r@10")
        )
        lines.append(
            f"| {modality} | {result['projector']} | {result['pairs_train']:,} | {result['pairs_test']:,} | {scores} |"
        )
    return "\n".join([*lines, ""])
