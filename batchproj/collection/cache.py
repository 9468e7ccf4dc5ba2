"""Reading back what a run has cached: the features of one modality's live items."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchproj.collection import layout
from batchproj.collection.snapshot import Snapshot
from batchproj.collection.unit import read_parquet
from batchproj.objectstore import Folder
from batchproj.schema import Modality


def live_features(folder: Folder, snapshot: Snapshot, modality: Modality) -> pa.Table | None:
    """Cached features (`schema.feature_schema`) of the items that are live; None without any."""
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(scratch) / "manifest.parquet"
        folder.download(layout.manifest(snapshot.run), local)
        embedded = (pc.field("status") == "embedded") & (pc.field("modality") == str(modality))
        items = pq.read_table(local, columns=["item", "features"], filters=embedded)
    fingerprint = snapshot.fingerprints[modality].feature
    files = []
    for name in sorted(pc.unique(items["features"]).to_pylist()):
        wanted = items.filter(pc.equal(items["features"], name))["item"]
        cached = read_parquet(folder.read(layout.features(fingerprint, name)))
        files.append(cached.filter(pc.is_in(cached["item"], wanted.combine_chunks())))
    return pa.concat_tables(files) if files else None


def known_features(folder: Folder, fingerprint: str, wanted: dict[str, str]) -> pa.Table | None:
    """Cached features of contents, each of one item that had them; None if none is there.

    `wanted` gives the file of features by content id. What is missing or damaged is left out:
    it will be encoded again.
    """
    found = []
    for name in sorted(set(wanted.values())):
        try:
            cached = read_parquet(folder.read(layout.features(fingerprint, name)))
        except (FileNotFoundError, pa.ArrowException):
            continue
        contents = [content for content, file in wanted.items() if file == name]
        cached = cached.filter(pc.is_in(cached["content_id"], pa.array(contents)))
        # several items of a file may have one content: one of them is enough
        first = cached.group_by("content_id", use_threads=False).aggregate([("item", "min")])
        found.append(cached.filter(pc.is_in(cached["item"], first["item_min"].combine_chunks())))
    return pa.concat_tables(found) if found else None
