"""An adapter between two text encoders: queries of the new one, answered by an index of the old one.

    new features of the collection's texts     from its cache, or made again as queries where an encoder has
                                               another prompt for these
    old vectors of the same texts              the old space's text encoder, run on them: texts are cheap
    adapter                                    trained from the one to the other, as projectors are
    bridge                                     a space of it, for queries alone (`bridge`), and what it is worth

Nothing of the old collection is read. Source: Vejendla 2025 (Drift-Adapter), arXiv:2509.23471; that new queries can
be compared with old vectors at all, by training the new encoder for it: Shen et al. 2020 (backward-compatible
training), arXiv:2003.11942.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from batchproj import fit as fitting
from batchproj.bridge import make_bridge, refuse_other_space, write_bridge
from batchproj.bridge_report import ADAPTER, OLD, agreement, found
from batchproj.card import caveats, writable_space
from batchproj.disk_links import Links, links_of
from batchproj.errors import UsageError
from batchproj.projector import Projector
from batchproj.report import CHANCE, RIDGE, nothing_held_out
from batchproj.schema import Modality
from batchproj.search import Collection
from batchproj.space import Member, ResolvedSpace, open_space, resolve
from batchproj.texts import Texts, as_queries, collected, encoded, no_texts
from batchproj.token_projector import TokenProjectorConfig
from batchproj.train import Say, TrainOptions, Watch, noted
from batchproj.training_set import MOST_JUDGED

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

FEWEST = 4
"""Different texts to train on: two of them choose, and each has something to be told from."""


def train_adapter(uri: str, old_space: str, out: str, options: TrainOptions, watch: Watch, say: Say) -> dict[str, Any]:
    """Train an adapter from a collection's text encoder into the text vectors of another space; write the bridge.

    The document is that of `train`, for text: its recalls are of what the full re-embedding finds. `watch(name, done,
    total, note)` counts texts and steps. Raises UsageError, with nothing written, where there is nothing to train on or
    nothing to adapt.
    """
    config = _config(options)
    folder = writable_space(out, uri)
    refuse_other_space(folder, out)
    collection = Collection(uri)
    if Modality.TEXT not in collection.snapshot.fingerprints:
        raise no_texts(collection)
    old = resolve(open_space(old_space))
    new_text, old_text = collection.member(Modality.TEXT), _old_text(old, old_space, collection)
    started = time.monotonic()
    texts, olds = _in_both(collection, new_text, old_text, watch, say)
    rows_used = len(texts.number)
    links = links_of(collection, (pair for pair in texts.pairs if pair is not None), options.split)
    tested = texts.held_out(links.held_out)
    alike = texts.alike(olds.queries, tested)
    if alike.any():
        say(f"{alike.sum():,} held-out texts equal one that is trained on, to one of the encoders: left out")
        texts, olds, tested = texts.where(~alike), olds.where(~alike), tested[~alike]
    _check_enough(olds.queries[~tested])
    fit, ridge = _fitted(texts, olds.queries, ~tested, config, watch)
    bridge = make_bridge(Path(out).name, old_text, old.dim, new_text, fit.projector, options.split)
    card = {
        "source": collection.snapshot.source,
        "run": collection.run,
        "old_space": old.space.name,
        "adapts": old_text.vector_fp,
        "fingerprint": bridge.members[Modality.TEXT].vector_fp,
        "split": options.split.model_dump(),
        "adapter": {
            "projector": config.kind,
            "projector_options": config.options,
            "loss": config.loss,
            "rows": texts.of_rows,
            "rows_used": rows_used,
            "texts_train": int((~tested).sum()),
            "texts_test": int(tested.sum()),
            "texts_alike": int(alike.sum()),
            "steps": fit.steps,
            "temperature": round(fit.temperature, 4),
            "history": [asdict(check) for check in fit.history],
        },
        **_judged(collection, links, old, texts, olds, tested, {ADAPTER: fit.projector, RIDGE: ridge}),
        "caveats": caveats([(each.name, each.split) for each in (old.space, collection.space.space)], options.split),
    }
    write_bridge(folder, bridge, card)
    return _document(out, card, round(time.monotonic() - started, 2))


def _config(options: TrainOptions) -> fitting.Config:
    """How to train; raises UsageError for what goes not together with an adapter."""
    if options.reverse:
        raise UsageError("--adapter and --reverse are two things to train: expected one of them")
    if options.workers:
        raise UsageError("--adapter trains in memory: expected no --workers")
    if options.modality not in (None, Modality.TEXT):
        raise UsageError(f"--adapter is between text encoders: expected no --modality {options.modality}")
    config = options.fit.model_copy(update={"kind": options.projector})
    if isinstance(kind := fitting.projector_config(config, 1, 1), TokenProjectorConfig):
        raise UsageError(f"--adapter starts from pooled features: expected linear or mlp, not {kind.kind}")
    return config


def _old_text(old: ResolvedSpace, old_space: str, collection: Collection) -> Member:
    old.refuse_if_bridge()
    member = old.members.get(Modality.TEXT)
    if member is None:
        raise UsageError(f"--adapter {old_space}: the space has no text encoder, so no vectors of texts to adapt to")
    if member.feature_fp == collection.snapshot.fingerprints[Modality.TEXT].feature:
        raise UsageError(
            f"--adapter {old_space}: its text encoder is the collection's own (fingerprint {member.feature_fp[:12]}), "
            "so there is nothing to adapt: give a collection that was embedded with the new encoder"
        )
    return member


@dataclass(frozen=True)
class _Olds:
    """What the old encoder makes of the texts (T, K): what is adapted to, as queries, and what is found, as items."""

    queries: Array
    items: Array

    def where(self, mask_T: Mask) -> _Olds:
        return _Olds(self.queries[mask_T], self.items[mask_T])


def _in_both(collection: Collection, new_text: Member, old_text: Member, watch: Watch, say: Say) -> tuple[Texts, _Olds]:
    """The texts as they ask, and what the old encoder makes of them; without those of which it makes nothing."""

    def counted(name: str) -> Callable[[int, int], None]:
        return lambda done, total: watch(name, done, total, "")

    texts = as_queries(collected(collection, new_text, say), new_text, counted("new encoder"))
    queries_TK = encoded(texts.words, old_text, counted("old encoder"))
    items_TK = queries_TK
    if old_text.tells_queries:
        items_TK = encoded(texts.words, old_text, counted("old encoder, items"), for_queries=False)
    olds = _Olds(queries_TK, items_TK)
    finite = np.asarray(np.isfinite(queries_TK).all(axis=1) & np.isfinite(items_TK).all(axis=1), np.bool_)
    if not finite.all():
        say(f"the old encoder gives no finite vector for {(~finite).sum():,} of {len(texts):,} texts: left out")
        return texts.where(finite), olds.where(finite)
    return texts, olds


def _check_enough(old_NK: Array) -> None:
    different = len(np.unique(old_NK, axis=0))
    if different < FEWEST:
        raise UsageError(
            f"{len(old_NK)} different texts to train on, {different} to the old encoder: expected at least {FEWEST}; "
            "embed more texts with the new encoder"
        )


def _fitted(
    texts: Texts, old_TK: Array, seen: Mask, config: fitting.Config, watch: Watch
) -> tuple[fitting.Fit, Projector]:
    """The adapter and ridge regression. Each text is right for itself alone, whatever pair it belongs to."""
    features, targets = texts.features[seen], old_TK[seen]
    groups = [str(number) for number in np.flatnonzero(seen)]
    fit = fitting.fit(features, targets, groups, config, noted(watch, "adapter steps"))
    return fit, fitting.ridge(features, targets, groups, config)


def _judged(
    collection: Collection,
    links: Links,
    old: ResolvedSpace,
    texts: Texts,
    olds: _Olds,
    tested: Mask,
    made: dict[str, Projector],
) -> dict[str, Any]:
    """The parts of the card that have figures."""
    own_Q = np.flatnonzero(tested)
    if not len(own_Q):
        return {"agreement": nothing_held_out(), "found": {}, "left_out": []}
    if len(own_Q) > MOST_JUDGED:
        own_Q = np.sort(np.random.default_rng(0).choice(own_Q, MOST_JUDGED, replace=False))
    asked = {who: projector.project(texts.features[own_Q]) for who, projector in made.items()}
    reports, left_out = found(collection, links, old, texts, own_Q, olds.queries, asked[ADAPTER])
    asked[OLD] = olds.queries[own_Q]
    return {"agreement": agreement(texts, own_Q, olds.items, asked), "found": reports, "left_out": left_out}


def _document(out: str, card: dict[str, Any], seconds: float) -> dict[str, Any]:
    trained, judged = card["adapter"], card["agreement"]["competitors"]

    def recall(who: str, k: int) -> float | None:
        return judged[who][f"r@{k}"]["value"] if judged else None

    text = {
        "projector": trained["projector"],
        "pairs_train": trained["texts_train"],
        "pairs_test": trained["texts_test"],
        "rows": trained["rows"],
        "rows_used": trained["rows_used"],
        **{f"r@{k}": recall(ADAPTER, k) for k in (1, 5, 10)},
        "baseline_r@10": recall(RIDGE, 10),
        "old_r@10": recall(OLD, 10),
        "chance_r@10": recall(CHANCE, 10) if judged else 1.0,
        "steps": trained["steps"],
        "seconds": seconds,
    }
    return {"space": out, "adapts": card["adapts"], "modality": {"text": text}}
