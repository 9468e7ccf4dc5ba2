"""Reading back what a run has cached: the features of one modality's live items."""

from __future__ import annotations

import tempfile
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from batchproj.collection import layout, manifest
from batchproj.collection.snapshot import Snapshot
from batchproj.collection.unit import UNREADABLE, read_parquet, read_rows
from batchproj.objectstore import Folder
from batchproj.schema import Modality

# manifests of earlier versions have no metadata
_ITEMS = """
SELECT item, pair, metadata, features
FROM (SELECT NULL::VARCHAR AS metadata WHERE false UNION ALL BY NAME SELECT * FROM ({rows}))
WHERE status = 'embedded' AND modality = ?
"""


def live_features(folder: Folder, snapshot: Snapshot, modality: Modality) -> pa.Table | None:
    """Cached features (`schema.feature_schema`) of the items that are live; None without any."""
    with tempfile.TemporaryDirectory() as scratch:
        rows = manifest.rows(manifest.fetch(folder, snapshot, Path(scratch)))
        with duckdb.connect() as db:
            items = db.sql(_ITEMS.format(rows=rows), params=[str(modality)]).to_arrow_table()
    fingerprint = snapshot.fingerprints[modality].feature
    digests = {file.name: file.sha256 for file in snapshot.features}
    files = []
    for name in sorted(pc.unique(items["features"]).to_pylist()):
        wanted = items.filter(pc.equal(items["features"], name))
        files.append(chosen(read_rows(folder, layout.features(fingerprint, name), digests[name]), wanted))
    return pa.concat_tables(files) if files else None


def chosen(cached: pa.Table, items: pa.Table) -> pa.Table:
    """The rows of the items, with the `pair` and `metadata` given there: theirs may have changed since."""
    rows = cached.filter(pc.is_in(cached["item"], items["item"]))
    given = pc.index_in(rows["item"], items["item"])
    for name in ("pair", "metadata"):
        field = rows.schema.field(name)
        rows = rows.set_column(rows.schema.get_field_index(name), field, items[name].take(given).cast(field.type))
    return rows


def known_features(folder: Folder, fingerprint: str, wanted: dict[str, str]) -> pa.Table | None:
    """Cached features of contents, each of one item that had them; None if none is there.

    `wanted` gives the file of features by content id. What is missing or damaged is left out:
    it will be encoded again.
    """
    found = []
    for name in sorted(set(wanted.values())):
        try:
            cached = read_parquet(folder.read(layout.features(fingerprint, name)))
        except UNREADABLE:
            continue
        contents = [content for content, file in wanted.items() if file == name]
        cached = cached.filter(pc.is_in(cached["content_id"], pa.array(contents)))
        # several items of a file may have one content: one of them is enough
        first = cached.group_by("content_id", use_threads=False).aggregate([("item", "min")])
        found.append(cached.filter(pc.is_in(cached["item"], first["item_min"].combine_chunks())))
    return pa.concat_tables(found) if found else None
