"""What is said of an adapter: does it find what the full re-embedding would, and what belongs together?

Q held-out texts that ask, T different texts, I items of another modality, K dim of a space.

    agreement    ten nearest texts of new query and new vectors against those of adapted query and old vectors
    found        text to item Recall@K: adapted query, old query, both on old vectors; new query on new vectors
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from batchproj.agreement import by_chance, nearest, recalled
from batchproj.comparison import CUTOFFS, FEWEST_GROUPS, HeldOut, means
from batchproj.disk_links import Links
from batchproj.features import from_column
from batchproj.pairs import check_finite, each_cached_features
from batchproj.report import CHANCE, RIDGE, rounded, told
from batchproj.schema import Modality
from batchproj.search import Collection
from batchproj.space import Member, ResolvedSpace, to_vectors
from batchproj.texts import Texts

Array = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

ADAPTER, OLD, NEW = "adapter", "old encoder", "full re-embedding"
"""Who answers, beside ridge regression and chance: the adapter, the encoder it leads to, and what it stands in for."""

_NAMES = {OLD: "the old encoder", NEW: "the full re-embedding", RIDGE: "ridge regression", CHANCE: "chance"}


def agreement(texts: Texts, own_Q: Numbers, old_TK: Array, asked: dict[str, Array]) -> dict[str, Any]:
    """Recall@1, 5 and 10 against the full re-embedding, of the texts `own_Q` as queries.

    `old_TK` are the texts' old vectors as items; `asked` those of `own_Q` as queries (Q, K), by who makes them.
    """
    wanted = nearest(texts.queries[own_Q], texts.live, own_Q)
    hits = {who: recalled(wanted, nearest(queries, old_TK, own_Q)) for who, queries in asked.items()}
    groups, _ = texts.linked()
    asking = [groups[own] for own in own_Q]
    return {
        "queries": len(own_Q),
        "texts": len(texts),
        **_compared({**hits, CHANCE: by_chance(len(own_Q), len(texts))}, asking),
    }


def found(
    collection: Collection,
    links: Links,
    old: ResolvedSpace,
    texts: Texts,
    own_Q: Numbers,
    old_TK: Array,
    adapted_QK: Array,
) -> tuple[dict[Modality, dict[str, Any]], list[str]]:
    """Text to item recall by modality that both spaces can make vectors of, and why the others are left out.

    `old_TK` are the texts' old vectors as queries, `adapted_QK` those that the adapter makes of the new ones.
    """
    reports: dict[Modality, dict[str, Any]] = {}
    left_out = []
    for modality, live in collection.snapshot.fingerprints.items():
        if modality is Modality.TEXT:
            continue
        member = old.members.get(modality)
        if member is None or member.feature_fp != live.feature:
            why = "has no encoder for it" if member is None else "has another encoder for it"
            left_out.append(f"text to {modality} is not compared: space '{old.space.name}' {why}")
            continue
        if modality in collection.space.space.untrained():
            left_out.append(f"text to {modality} is not compared: its projector into the new space is not trained yet")
            continue
        report = _found(collection, links.items[modality], member, texts, own_Q, (adapted_QK, old_TK[own_Q]))
        if report is None:
            left_out.append(f"text to {modality} is not compared: no held-out text has a pair there")
        else:
            reports[modality] = report
    return reports, left_out


def _found(
    collection: Collection,
    linked: pa.Table,
    member: Member,
    texts: Texts,
    own_Q: Numbers,
    old_queries: tuple[Array, Array],
) -> dict[str, Any] | None:
    of_texts, of_items = texts.linked(linked["pair"].to_pylist(), linked["content_id"].to_pylist())
    there = set(of_items)
    asking = [place for place, own in enumerate(own_Q) if of_texts[own] in there]
    caption_groups = [of_texts[own_Q[place]] for place in asking]
    asked = set(caption_groups)
    group_of = {item: group for item, group in zip(linked["item"].to_pylist(), of_items, strict=True) if group in asked}
    if not group_of:
        return None
    items = pa.array(group_of, pa.string())
    files = each_cached_features(collection, member.modality)
    cached = pa.concat_tables([file.filter(pc.is_in(file["item"], items)) for file in files])
    features = check_finite(from_column(cached["feature"]), member.modality)
    old_IK = to_vectors(features, member.load_projector())
    new_IK = to_vectors(features, collection.member(member.modality).load_projector())
    item_groups = [group_of[item] for item in cached["item"].to_pylist()]
    sides = {
        ADAPTER: (old_queries[0][asking], old_IK),
        OLD: (old_queries[1][asking], old_IK),
        NEW: (texts.queries[own_Q[asking]], new_IK),
    }
    sets = {who: HeldOut(item_groups, captions, caption_groups) for who, (captions, _) in sides.items()}
    hits = {who: sets[who].answers(items_IK).to_item for who, (_, items_IK) in sides.items()}
    compared = _compared({**hits, CHANCE: sets[ADAPTER].chance().to_item}, caption_groups)
    return {"queries": len(asking), "items": len(item_groups), **compared}


def _compared(hits: dict[str, Floats], groups: list[str]) -> dict[str, Any]:
    """Recalls of each, and the adapter's gain in Recall@10 over the others on the same draws of the same groups."""
    figures = {
        who: {f"r@{k}": rounded(each) for k, each in zip(CUTOFFS, means(own, groups), strict=True)}
        for who, own in hits.items()
    }
    gains = {who: means(hits[ADAPTER] - own, groups)[-1] for who, own in hits.items() if who != ADAPTER}
    count = len(set(groups))
    verdict = [told(_NAMES[who], gain, "Recall@10", f"{len(groups):,} held-out texts") for who, gain in gains.items()]
    if count < FEWEST_GROUPS:
        verdict = [f"{count} unlinked held-out texts tell nothing, at least {FEWEST_GROUPS} are needed"]
    return {
        "competitors": figures,
        "gain_over": {who: rounded(gain) for who, gain in gains.items()},
        "verdict": verdict,
    }
