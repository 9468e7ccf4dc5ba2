"""Reading back what a run has cached: the features of one modality's live items."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchproj.collection import layout
from batchproj.collection.snapshot import Snapshot
from batchproj.collection.unit import read_parquet
from batchproj.errors import BatchprojError
from batchproj.objectstore import Folder
from batchproj.schema import Modality


def live_features(folder: Folder, snapshot: Snapshot, modality: Modality) -> pa.Table | None:
    """Cached features (`schema.feature_schema`) of the items that are live; None without any."""
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(scratch) / "manifest.parquet"
        folder.download(layout.manifest(snapshot.run), local)
        embedded = (pc.field("status") == "embedded") & (pc.field("modality") == str(modality))
        items = pq.read_table(local, columns=["item", "pair", "features"], filters=embedded)
    fingerprint = snapshot.fingerprints[modality].feature
    files = []
    for name in sorted(pc.unique(items["features"]).to_pylist()):
        wanted = items.filter(pc.equal(items["features"], name))
        pair_of = dict(zip(wanted["item"].to_pylist(), wanted["pair"].to_pylist(), strict=True))
        files.append(chosen(read_features(folder, fingerprint, name), pair_of))
    return pa.concat_tables(files) if files else None


def read_features(folder: Folder, fingerprint: str, name: str) -> pa.Table:
    """One file of cached features; raises BatchprojError if it is damaged or gone."""
    if (cached := _sound(folder, file := layout.features(fingerprint, name))) is None:
        raise BatchprojError(f"{file} is damaged; run: batchproj verify {folder.uri} --repair")
    return cached


def _sound(folder: Folder, file: str) -> pa.Table | None:
    try:
        return read_parquet(folder.read(file))
    except (pa.ArrowException, OSError):
        return None


def chosen(cached: pa.Table, pair_of: Mapping[str, str | None]) -> pa.Table:
    """The rows of the items in `pair_of`, with the pair keys given there: theirs may have changed since."""
    rows = cached.filter(pc.is_in(cached["item"], pa.array(sorted(pair_of), pa.string())))
    pairs = pa.array([pair_of[item] for item in rows["item"].to_pylist()], pa.string())
    return rows.set_column(rows.schema.get_field_index("pair"), rows.schema.field("pair"), pairs)


def known_features(folder: Folder, fingerprint: str, wanted: dict[str, str]) -> pa.Table | None:
    """Cached features of contents, each of one item that had them; None if none is there.

    `wanted` gives the file of features by content id. What is missing or damaged is left out:
    it will be encoded again.
    """
    found = []
    for name in sorted(set(wanted.values())):
        if (cached := _sound(folder, layout.features(fingerprint, name))) is None:
            continue
        contents = [content for content, file in wanted.items() if file == name]
        cached = cached.filter(pc.is_in(cached["content_id"], pa.array(contents)))
        # several items of a file may have one content: one of them is enough
        first = cached.group_by("content_id", use_threads=False).aggregate([("item", "min")])
        found.append(cached.filter(pc.is_in(cached["item"], first["item_min"].combine_chunks())))
    return pa.concat_tables(found) if found else None
