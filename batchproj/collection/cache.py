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
