"""The Lance table `vectors`: bring a run's changes in, check and index them.

Writers work on the newest version, readers on the version tagged `live`; nothing a writer does
shows until the tag moves. Parquet is the truth: the table can always be built again from the parts.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from batchproj.collection import layout
from batchproj.collection.commit import Changes
from batchproj.collection.snapshot import Part, Snapshot, read_snapshot
from batchproj.collection.unit import read_rows
from batchproj.config import shown
from batchproj.errors import BatchprojError, CollectionError, DamagedFile, RunMissing
from batchproj.failpoint import failpoint
from batchproj.importing import importing, validators_when_used
from batchproj.lance_store import lance_faults, storage_options
from batchproj.objectstore import Folder
from batchproj.recipe import Index
from batchproj.retry import retrying
from batchproj.schema import vector_schema
from batchproj.tags import Tags, lance_table, live_run, live_version

KEEP_VERSIONS = datetime.timedelta(days=36_500)
"""Extending the index must not clean up: earlier runs stay readable until they are collected."""

REBUILD_SHARE = 0.5
"""When more of the live rows than this go, writing all parts anew is cheaper than deleting."""

NORM_TOLERANCE = 1e-3

SCAN_ROWS = 4_096

WORDED = ("text", "metadata")
"""Columns whose words can be looked for."""

SELF_QUERIES = 16
"""New rows that must find themselves before a run may become visible."""

_NAMED = 10
"""So many runs are named to somebody who asked for another one, the newest."""

_IDS = pa.schema([pa.field(name, pa.string(), nullable=False) for name in ("id", "item")])


def is_written_anew(live: Snapshot | None, target: Snapshot, changes: Changes) -> bool:
    """Whether the table is written from all parts, and not the live version changed."""
    return (
        live is None or live.dim != target.dim or changes.rebuild or changes.removed_items > REBUILD_SHARE * live.listed
    )


class VectorTable:
    """The collection's Lance table, for writers."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._db = connect(folder)

    def apply(
        self, live: Snapshot | None, target: Snapshot, changes: Changes, removed: Iterable[list[str]], settings: Index
    ) -> int:
        """Bring the newest version to exactly the target's parts; returns that version.

        `removed` are the items that leave the live rows, in chunks. Starts from the live version
        whatever an interrupted run has left after it, so applying twice is once.
        """
        with lance_faults(self._folder.uri):
            table = self._changed_table(live, target, changes, removed)
            failpoint("commit.added")
            _upkeep(table, settings)
            failpoint("commit.indexed")
            _check_rows(table, target.rows)
            self._check_found(table, changes.added)
            return int(table.version)

    def _changed_table(
        self, live: Snapshot | None, target: Snapshot, changes: Changes, removed: Iterable[list[str]]
    ) -> Any:
        if is_written_anew(live, target, changes):
            rows = self._stream(target.parts, target.dim)
            return self._db.create_table(layout.TABLE, data=rows, schema=rows.schema, mode="overwrite")
        table = self._db.open_table(layout.TABLE)
        table.checkout(layout.LIVE)
        table.restore()
        for items in removed:
            table.delete("item IN (" + ", ".join(f"'{item}'" for item in items) + ")")
        failpoint("commit.deleted")
        if changes.added:
            table.add(self._stream(changes.added, target.dim))
        return table

    def _stream(self, parts: list[Part], dim: int) -> pa.RecordBatchReader:
        batches = (batch for part in parts for batch in self._rows(part).cast(vector_schema(dim)).to_batches())
        return pa.RecordBatchReader.from_batches(vector_schema(dim), batches)

    def _rows(self, part: Part) -> pa.Table:
        """The rows of a part, its bytes and the length of every vector checked: Lance would hide a NaN."""
        rows = read_rows(self._folder, layout.part(part.name), part.sha256)
        vectors = _matrix(rows)
        if len(vectors) and not np.abs(np.linalg.norm(vectors, axis=1) - 1).max() <= NORM_TOLERANCE:
            raise BatchprojError(
                f"{layout.part(part.name)} holds a vector that is not of length 1; nothing was switched"
            )
        return rows

    def _check_found(self, table: Any, added: list[Part]) -> None:
        """A sample of the new rows, searched by their own vectors, must come first."""
        for part in added[:: max(1, len(added) // SELF_QUERIES)][:SELF_QUERIES]:
            rows = self._rows(part)
            vector = _matrix(rows)[rows.num_rows // 2]
            found = table.search(vector).distance_type("cosine").refine_factor(100).limit(1).to_list()
            if not found or found[0]["_distance"] > NORM_TOLERANCE:
                raise BatchprojError(
                    f"a row of {layout.part(part.name)} is not found by its own vector; nothing was made visible, rerun"
                )

    def ids(self, version: int, without: int | None = None) -> pa.RecordBatchReader:
        """Columns `id` and `item` of a version, but for the fragments that the version `without` has as well."""
        shared = {fragment.key for fragment in self.fragments(without)} if without is not None else set()
        own = [fragment for fragment in self.fragments(version) if fragment.key not in shared]
        batches = (batch for fragment in own for batch in fragment.batches(_IDS.names))
        return pa.RecordBatchReader.from_batches(_IDS, batches)

    def _version(self, version: int) -> Any:
        table = self._db.open_table(layout.TABLE)
        table.checkout(version)
        return table.to_lance()

    def fragments(self, version: int) -> list[Fragment]:
        """The fragments of a version; raises what Lance raises if its manifest is damaged."""
        return [Fragment(each) for each in self._version(version).get_fragments()]

    def versions(self) -> list[int]:
        """Every version that is there, kept or not."""
        return [int(each["version"]) for each in self._newest().versions()]

    def drop_deleted(self) -> int:
        """Write the newest version again without rows that are only marked as deleted; the new version.

        Indices are made anew: they would keep the codes of vectors whose whole fragment was deleted, and what is told
        to be trained again keeps the words of a text, and the id of an item.
        """
        with lance_faults(self._folder.uri):
            before = self._newest().version
            self._newest().optimize.compact_files(materialize_deletions=True, materialize_deletions_threshold=0.0)
            if self._newest().describe_indices():
                self._newest().optimize.optimize_indices(retrain=True)
                _build_again(self._db.open_table(layout.TABLE))
            if self._newest().version == before:  # its manifest tells what was deleted
                self._db.open_table(layout.TABLE).restore(before)
            return int(self._newest().version)

    def clean_up(self) -> None:
        """Remove every version that no tag names, and files of no version: only under the lease."""
        with lance_faults(self._folder.uri):
            tags = Tags(self._folder).versions()
            table = self._db.open_table(layout.TABLE)
            if table.version not in tags:  # Lance never removes the newest
                table.checkout(layout.LIVE)
                table.restore()
            table.to_lance().cleanup_old_versions(
                older_than=datetime.timedelta(0), delete_unverified=True, error_if_tagged_old_versions=False
            )

    def tidy(self, settings: Index) -> None:
        """Clean up if the steps of many runs have left enough versions behind; only under the lease."""
        with lance_faults(self._folder.uri):
            spare = len(self.versions()) - len(Tags(self._folder).versions())
        if spare > settings.spare_versions:
            self.clean_up()

    def drop_manifest(self, version: int) -> None:
        """Remove the damaged manifest of a version that no tag names: Lance reads all of them to clean up."""
        # names count down, so that a listing begins with the newest
        self._folder.remove([f"{layout.TABLE}.lance/_versions/{2**64 - 1 - version:020d}.manifest"])

    def files(self, versions: Iterable[int] | None = None) -> set[str]:
        """Names, below the collection's folder, of the files that versions consist of, by default all versions."""
        wanted = None if versions is None else set(versions)
        with lance_faults(self._folder.uri):
            return {
                f"{layout.TABLE}.lance/{row['path']}"
                for batch in self._newest().tracked_files()
                for row in batch.select(["version", "path"]).to_pylist()
                if wanted is None or row["version"] in wanted
            }

    def _newest(self) -> Any:
        return lance_table(self._folder)


class Fragment:
    """Some rows of a version; versions share those that did not change."""

    def __init__(self, fragment: Any) -> None:
        self._fragment = fragment
        self.file = f"{layout.TABLE}.lance/data/{fragment.data_files()[0].path}"
        self.has_deleted = fragment.num_deletions > 0
        self.key = json.dumps([[file.path for file in fragment.data_files()], fragment.deletion_file()])

    def batches(self, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Its rows without those marked as deleted; raises what Lance raises if a file is damaged."""
        yield from self._fragment.scanner(columns=columns, batch_size=SCAN_ROWS).to_reader()

    def holds(self, condition: str) -> bool:
        """Whether any row fulfils an SQL condition."""
        return bool(self._fragment.count_rows(condition))


def _matrix(rows: pa.Table) -> Any:
    column = rows["vector"].combine_chunks()
    return column.flatten().to_numpy().reshape(-1, column.type.list_size)


def _check_rows(table: Any, expected: int) -> None:
    found = table.count_rows()
    if found != expected:
        raise BatchprojError(
            f"the Lance table has {found} rows and the Parquet parts {expected}; nothing was made visible, rerun"
        )


def _upkeep(table: Any, settings: Index) -> None:
    """Merge small fragments, extend the indices or build them, where enough has gathered.

    Below `min_rows` exact search is fast enough and needs no index; rows that no index covers yet
    are searched exactly.
    """
    stats = table.stats()
    indices = table.list_indices()
    unindexed = max((table.index_stats(index.name).num_unindexed_rows for index in indices), default=0)
    crowded = stats["fragment_stats"]["num_small_fragments"] > settings.small_fragments
    if crowded or unindexed > settings.unindexed_rows:
        table.optimize(cleanup_older_than=KEEP_VERSIONS)
    if stats["num_rows"] >= settings.min_rows:
        indexed = {column for index in indices for column in index.columns}
        for column, config in _configs(table, settings):
            if column not in indexed:
                table.create_index(column, config=config)


def _build_again(table: Any) -> None:
    """The indices that hold texts or ids."""
    from lancedb.index import FTS, BTree

    kinds = {"FTS": FTS, "BTree": BTree}
    for index in table.list_indices():
        if index.index_type in kinds:
            table.create_index(index.columns[0], config=kinds[index.index_type](), replace=True)


def _configs(table: Any, settings: Index) -> Iterator[tuple[str, Any]]:
    """Columns and the index of each: vectors to be near to, kinds and items to be among, words to have.

    Words are looked for by hybrid searches; where few rows have any, without an index as well.
    """
    from lancedb.index import FTS, Bitmap, BTree, IvfRq

    yield "vector", IvfRq(distance_type="cosine")
    yield "modality", Bitmap()
    yield "item", BTree()
    for column in WORDED:
        if table.count_rows(f"{column} IS NOT NULL") >= settings.min_rows:
            yield column, FTS()


def connect(folder: Folder) -> Any:
    """A LanceDB connection on the collection; S3 by the standard AWS variables."""
    with importing():
        if "lancedb" not in sys.modules:
            with validators_when_used(), contextlib.suppress(ImportError):
                import lance_namespace  # noqa: F401
        import lancedb

    path = folder.uri.removeprefix("file://")
    return retrying(lambda: lancedb.connect(path, storage_options=storage_options()), folder.uri)


def open_live(folder: Folder) -> tuple[Any, Snapshot] | None:
    """The table at its live version and the snapshot behind it; None before the first run."""
    if (found := live_version(folder)) is None:
        return None
    return _opened(folder, *found)


def open_run(folder: Folder, run: str) -> tuple[Any, Snapshot] | None:
    """The same of a run that is kept, live or not; raises RunMissing for any other."""
    if (found := live_version(folder)) is None:
        return None
    kept = Tags(folder).runs()
    if run not in kept:
        raise RunMissing(
            f"no run {shown(run)} is kept; kept are {', '.join(sorted(kept)[-_NAMED:])}, and live is {found[1]}"
        )
    return _opened(folder, kept[run], run)


def _opened(folder: Folder, version: int, run: str) -> tuple[Any, Snapshot]:
    with lance_faults(folder.uri):
        table = connect(folder).open_table(layout.TABLE)
        table.checkout(version)
    return table, _snapshot(folder, run)


def live_snapshot(folder: Folder) -> Snapshot | None:
    """The snapshot readers see; None before the first run."""
    run = live_run(folder)
    return _snapshot(folder, run) if run else None


def _snapshot(folder: Folder, run: str) -> Snapshot:
    try:
        return read_snapshot(folder, run)
    except (FileNotFoundError, DamagedFile) as error:
        what = "missing" if isinstance(error, FileNotFoundError) else "damaged"
        raise CollectionError(
            f"{layout.snapshot(run)} of {folder.uri} is {what}; go back with: batchproj rollback {folder.uri}, "
            "or embed into a new collection"
        ) from error
