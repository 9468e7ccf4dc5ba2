"""Whether a space may take the place of the live one: both judged on the collection's own held-out pairs.

    live rows of pairs that neither space was trained on
    live vectors        as they are in Parquet
    the new space's     projected from the same items' cached features: no object is read, no encoder runs

A modality whose encoder is another, or whose text encoder is, has no features to be judged by.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from batchproj.collection import layout
from batchproj.collection.snapshot import FeatureFile, Snapshot
from batchproj.collection.unit import read_rows
from batchproj.comparison import FEWEST_GROUPS, HeldOut
from batchproj.errors import UsageError
from batchproj.features import from_column
from batchproj.linking import linked
from batchproj.objectstore import Folder
from batchproj.pairs import held_out_pairs, matrix
from batchproj.schema import Modality
from batchproj.search import Collection
from batchproj.space import Member, ResolvedSpace, to_vectors

Array = npt.NDArray[np.float32]
Say = Callable[[str], None]

_ENOUGH_ITEMS = 2_000
"""Held-out items of a modality that are judged: more would tell no more, and cost."""


def refuse_if_worse(folder: Folder, live: Snapshot, space: ResolvedSpace, say: Say) -> None:
    """Raises UsageError if some modality finds worse, beyond doubt, than it does in the live run.

    Costs nothing unless a projector is another than the live run's.
    """
    judged = [
        modality for modality in space.members if modality is not Modality.TEXT and _differs(live, space, modality)
    ]
    if not judged:
        return
    say("judging the new projectors on held-out pairs")
    collection = Collection(folder.uri)
    rows = _unseen_rows(collection, space)
    for modality in judged:
        _judge(collection, space, rows, modality, say)


def _differs(live: Snapshot, space: ResolvedSpace, modality: Modality) -> bool:
    """Whether the way from a modality to the text vectors is another one than in the live run."""
    if Modality.TEXT not in space.members or not {modality, Modality.TEXT} <= live.fingerprints.keys():
        return False
    return any(space.members[m].vector_fp != live.fingerprints[m].vector for m in (modality, Modality.TEXT))


def _unseen_rows(collection: Collection, space: ResolvedSpace) -> pa.Table:
    """id, modality and `group` of live rows whose pairs neither space was trained on; no split means none was."""
    columns = ["id", "modality", "pair", "content_id"]
    rows = collection.dataset().to_table(columns=columns, filter=pc.field("pair").is_valid())
    for split in {collection.split, space.space.split} - {None}:
        assert split is not None
        rows = rows.filter(pc.is_in(rows["pair"], pa.array(sorted(held_out_pairs(rows, split)), pa.string())))
    groups = linked(rows["pair"].to_pylist(), rows["content_id"].to_pylist()) if rows.num_rows else []
    return rows.append_column("group", pa.array([str(group) for group in groups], pa.string()))


@dataclass(frozen=True)
class _Side:
    """Live rows of one modality, and their vectors in both spaces."""

    groups: list[str]
    live: Array
    new: Array


def _judge(collection: Collection, space: ResolvedSpace, rows: pa.Table, modality: Modality, say: Say) -> None:
    live = collection.snapshot.fingerprints
    other = [m for m in (modality, Modality.TEXT) if space.members[m].feature_fp != live[m].feature]
    if other:
        say(f"{modality} is not judged before it is embedded: the encoder of {' and '.join(other)} is another one")
        return
    items = _side(collection, space.members[modality], _only(rows, modality, rows["group"]))
    asked = pa.array(items.groups, pa.string())
    texts = _side(collection, space.members[Modality.TEXT], _only(rows, Modality.TEXT, asked))
    paired = set(items.groups) & set(texts.groups)
    if len(paired) < FEWEST_GROUPS:
        say(f"{modality} is not judged: {len(paired)} held-out pairs, at least {FEWEST_GROUPS} are needed")
        return
    live_set, live_items = _held_out(items, items.live, texts, texts.live, paired)
    new_set, new_items = _held_out(items, items.new, texts, texts.new, paired)
    old, new = live_set.answers(live_items), new_set.answers(new_items)
    gain = new_set.gain(new, old)
    if gain.high < 0:
        raise UsageError(
            f"space '{space.space.name}' is worse than the live one for {modality}: mean recall "
            f"{new_set.recalls(new)[-1].value:.3f} against {live_set.recalls(old)[-1].value:.3f} on {len(paired):,} "
            f"held-out pairs (95 % interval of the difference {gain.low:+.3f} to {gain.high:+.3f}); nothing was "
            "written; to use it all the same, add --force"
        )


def _only(rows: pa.Table, modality: Modality, groups: pa.Array | pa.ChunkedArray) -> pa.Table:
    return rows.filter(pc.and_(pc.equal(rows["modality"], str(modality)), pc.is_in(rows["group"], groups)))


def _held_out(items: _Side, items_IK: Array, texts: _Side, texts_CK: Array, paired: set[str]) -> tuple[HeldOut, Array]:
    kept_I = [number for number, group in enumerate(items.groups) if group in paired]
    kept_C = [number for number, group in enumerate(texts.groups) if group in paired]
    groups_I, groups_C = [items.groups[number] for number in kept_I], [texts.groups[number] for number in kept_C]
    return HeldOut(groups_I, texts_CK[kept_C], groups_C), items_IK[kept_I]


def _side(collection: Collection, member: Member, rows: pa.Table) -> _Side:
    """As many of these rows as are enough, with their vectors; the new ones are the live ones if nothing differs."""
    live = collection.snapshot.fingerprints[member.modality]
    features = None
    if member.vector_fp != live.vector:
        features = _cached(collection, live.feature, rows["id"])
        rows = rows.filter(pc.is_in(rows["id"], features["id"]))
    if not rows.num_rows:
        return _Side([], np.empty((0, 0), np.float32), np.empty((0, 0), np.float32))
    found = collection.dataset().to_table(columns=["id", "vector"], filter=pc.field("id").isin(rows["id"].to_pylist()))
    rows, found = rows.sort_by("id"), found.sort_by("id")
    vectors = matrix(found["vector"])
    new = vectors
    if features is not None:
        new = to_vectors(from_column(features.sort_by("id")["feature"]), member.load_projector())
    return _Side(rows["group"].to_pylist(), vectors, new)


def _cached(collection: Collection, fingerprint: str, ids: pa.ChunkedArray) -> pa.Table:
    """id and feature of these rows, file after file until there are enough; the files' names are digests."""
    empty = pa.table({"id": pa.array([], pa.string())})
    found, count = [empty], 0
    for file in _files(collection.snapshot, fingerprint):
        cached = read_rows(Folder(collection.uri), layout.features(fingerprint, file.name), file.sha256)
        cached = cached.filter(pc.is_in(cached["id"], ids.combine_chunks())).select(["id", "feature"])
        found, count = [*found, cached], count + cached.num_rows
        if count >= _ENOUGH_ITEMS:
            break
    return pa.concat_tables(found[1:]) if count else empty


def _files(live: Snapshot, fingerprint: str) -> list[FeatureFile]:
    return sorted((file for file in live.features if file.fingerprint == fingerprint), key=lambda file: file.name)
