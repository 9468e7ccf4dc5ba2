"""The Lance table `vectors`: upsert a run's changes, build its index, switch the tag readers follow.

Writers work on the newest version, readers on the version tagged `live`; nothing a writer does
shows until `switch`. Parquet is the truth: the table can always be built again from the parts.
"""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from batchproj.collection import layout
from batchproj.collection.commit import Changes
from batchproj.collection.snapshot import Part, Snapshot, read_snapshot
from batchproj.collection.unit import read_parquet
from batchproj.errors import BatchprojError, CollectionError, TryLater
from batchproj.objectstore import Folder, retrying, s3_needs_http
from batchproj.schema import vector_schema

# Lance reads this once, when it is first imported; its warnings are for Lance's developers
os.environ.setdefault("LANCE_LOG", "error")

KEEP_VERSIONS = datetime.timedelta(days=36_500)
"""Extending the index must not clean up: earlier runs stay readable until they are collected."""

_NETWORK = re.compile(r"(?i)timed? ?out|connection|connect error|error sending request|503|slow ?down|dns")

REBUILD_SHARE = 0.5
"""When more of the live rows than this go, writing all parts anew is cheaper than deleting."""


class VectorTable:
    """The collection's Lance table, for writers."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._db = connect(folder)

    def apply(
        self, live: Snapshot | None, target: Snapshot, changes: Changes, removed: Iterable[list[str]], min_rows: int
    ) -> int:
        """Bring the newest version to exactly the target's parts; returns that version.

        `removed` are the items that leave the live rows, in chunks. Starts from the live version
        whatever an interrupted run has left after it, so applying twice is once.
        """
        with lance_faults(self._folder.uri):
            table = self._changed_table(live, target, changes, removed)
            self._check_rows(table, target.rows)
            self._build_index(table, min_rows)
            return int(table.version)

    def _changed_table(
        self, live: Snapshot | None, target: Snapshot, changes: Changes, removed: Iterable[list[str]]
    ) -> Any:
        if live is None or live.dim != target.dim or changes.removed_items > REBUILD_SHARE * live.listed:
            rows = self._stream(target.parts, target.dim)
            return self._db.create_table(layout.TABLE, data=rows, schema=rows.schema, mode="overwrite")
        table = self._db.open_table(layout.TABLE)
        table.checkout(layout.LIVE)
        table.restore()
        for items in removed:
            table.delete("item IN (" + ", ".join(f"'{item}'" for item in items) + ")")
        if changes.added:
            table.add(self._stream(changes.added, target.dim))
        return table

    def _stream(self, parts: list[Part], dim: int) -> pa.RecordBatchReader:
        def batches() -> Iterator[pa.RecordBatch]:
            for part in parts:
                rows = read_parquet(self._folder.read(layout.part(part.name)))
                yield from rows.cast(vector_schema(dim)).to_batches()

        return pa.RecordBatchReader.from_batches(vector_schema(dim), batches())

    def _check_rows(self, table: Any, expected: int) -> None:
        found = table.count_rows()
        if found != expected:
            raise BatchprojError(
                f"the Lance table has {found} rows and the Parquet parts {expected}; nothing was made visible, rerun"
            )

    def _build_index(self, table: Any, min_rows: int) -> None:
        """Below `min_rows` exact search is fast enough; above, extend the index or build it."""
        from lancedb.index import Bitmap, IvfRq

        if table.count_rows() < min_rows:
            return
        if table.list_indices():
            table.optimize(cleanup_older_than=KEEP_VERSIONS)
            return
        table.create_index("vector", config=IvfRq(distance_type="cosine"))
        table.create_index("modality", config=Bitmap())

    def switch(self, run: str, version: int) -> None:
        """Make a version the one that readers see: the single visible step of a run."""
        with lance_faults(self._folder.uri):
            tags = self._db.open_table(layout.TABLE).tags
            for tag in (layout.run_tag(run), layout.LIVE):
                if tag in tags.list():
                    tags.update(tag, version)
                else:
                    tags.create(tag, version)


@contextmanager
def lance_faults(uri: str) -> Iterator[None]:
    """Network faults of Lance's own S3 client as TryLater: nothing is visible yet, a rerun is safe."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if not _NETWORK.search(str(error)):
            raise
        raise TryLater(f"storage is away: {uri} ({str(error)[:120]}); run the same command again") from error


def connect(folder: Folder) -> Any:
    """A LanceDB connection on the collection; S3 by the standard AWS variables."""
    import lancedb

    options = {"allow_http": "true"} if s3_needs_http() else None
    path = folder.uri.removeprefix("file://")
    return retrying(lambda: lancedb.connect(path, storage_options=options), folder.uri)


def open_live(folder: Folder) -> tuple[Any, Snapshot] | None:
    """The table at its live version and the snapshot behind it; None before the first run."""
    if not folder.exists(f"{layout.TABLE}.lance"):  # first: connecting would make the folder
        return None
    table = connect(folder).open_table(layout.TABLE)
    tags = table.tags.list()
    if layout.LIVE not in tags:
        return None
    version = tags[layout.LIVE]["version"]
    table.checkout(version)
    prefix = layout.run_tag("")
    runs = [tag.removeprefix(prefix) for tag in tags if tag.startswith(prefix) and tags[tag]["version"] == version]
    if not runs:
        raise CollectionError(f"{folder.uri}: no run is tagged for the live version {version}; rerun embed")
    return table, read_snapshot(folder, max(runs))


def live_snapshot(folder: Folder) -> Snapshot | None:
    """The snapshot readers see; None before the first run."""
    found = open_live(folder)
    return found[1] if found else None
