"""Reading back what a run has cached: the features of one modality's live items."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
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
ORDER BY features
"""

MEMORY_LIMIT = "256MB"
BATCH_ROWS = 65_536


def live_features(folder: Folder, snapshot: Snapshot, modality: Modality) -> pa.Table | None:
    """Cached features (`schema.feature_schema`) of the items that are live; None without any."""
    files = list(each_live_features(folder, snapshot, modality))
    return pa.concat_tables(files) if files else None


def each_live_features(folder: Folder, snapshot: Snapshot, modality: Modality) -> Iterator[pa.Table]:
    """The same file by file, in the order of their names; never all in memory."""
    fingerprint = snapshot.fingerprints[modality].feature
    digests = {file.name: file.sha256 for file in snapshot.features}
    with tempfile.TemporaryDirectory() as scratch:
        rows = manifest.rows(manifest.fetch(folder, snapshot, Path(scratch)))
        settings = {"memory_limit": MEMORY_LIMIT, "threads": 2}
        with duckdb.connect(str(Path(scratch) / "items.duckdb"), config=settings) as db:
            db.execute("SET enable_progress_bar = false")
            items = db.sql(_ITEMS.format(rows=rows), params=[str(modality)]).to_arrow_reader(BATCH_ROWS)
            for name, wanted in _by_file(items):
                yield chosen(read_rows(folder, layout.features(fingerprint, name), digests[name]), wanted)


def _by_file(items: pa.RecordBatchReader) -> Iterator[tuple[str, pa.Table]]:
    """Rows of `_ITEMS` of one file of features each, as they come."""
    waiting = items.schema.empty_table()
    for batch in items:
        waiting = pa.concat_tables([waiting, pa.Table.from_batches([batch])])
        for name in pc.unique(waiting["features"]).to_pylist()[:-1]:  # of the last one more may come
            yield name, waiting.filter(pc.equal(waiting["features"], name))
        waiting = waiting.filter(pc.equal(waiting["features"], waiting["features"][-1]))
    if waiting.num_rows:
        yield waiting["features"][0].as_py(), waiting


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
