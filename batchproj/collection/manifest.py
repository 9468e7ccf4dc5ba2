"""What became of every listed item: one whole Parquet file, then a file of what each later run changed.

The newest row of an item counts; one with the status `gone` says that the item left. So a commit
writes a row for each item that its run changed, or whose part it wrote again under another name, or
whose row in a table has moved, and not for each that the collection holds. Once the changes add up to
a tenth of the items, or to too many files, the next run writes a whole file again.

Of an item in quarantine `attempts` counts the runs that tried this very version of the object, and `run` is the last
of them. A run that has only retried in vain writes nothing, so it is not counted.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pyarrow.parquet as pq

from batchproj.collection import layout
from batchproj.collection.plan import Plan
from batchproj.collection.snapshot import Part, Snapshot
from batchproj.collection.unit import file_digest
from batchproj.errors import BatchprojError, CollectionError
from batchproj.objectstore import Folder

CHANGED_SHARE = 0.1
"""Changes that are more than this share of the items cost readers more than a whole file costs one writer."""

MOST_FILES = 64

ROW_GROUP = 65_536
"""Rows that are written at once: what Parquet remembers of small groups adds up."""

SHARD_ITEMS = 100_000
"""Items that are joined and sorted at once: DuckDB cannot spill everything it holds."""

# of an item that has failed: one more than this very version of it had before
_ATTEMPTS = "(1 + coalesce(b.attempts, 0))::INTEGER"
_BEFORE = """(SELECT item, uri, source_version, attempts FROM manifest WHERE status = 'quarantined' AND {in_shard}) b
    ON b.item = l.item AND b.uri = l.uri AND b.source_version = l.source_version"""

_DONE = f"""
SELECT l.item, l.uri, l.key, l.pair, l.size, l.source_version, l.metadata, l.place,
    f.status, f.reason, f.detail, f.stage, f.modality, f.content_id, f.segments, s.feature_fp, s.vector_fp,
    CASE WHEN f.status = 'embedded' THEN f.unit END AS part, f.features,
    CASE WHEN f.status = 'quarantined' THEN {_ATTEMPTS} END AS attempts,
    CASE WHEN f.status = 'quarantined' THEN '{{run}}' END AS run
FROM (SELECT * FROM listing WHERE {{in_shard}}) l JOIN (SELECT * FROM final WHERE {{in_shard}}) f USING (item)
    LEFT JOIN space s ON s.modality = f.modality LEFT JOIN {_BEFORE}
"""

# of a row in a table; what objects are called below the source is not looked up in the manifest
_MOVED = (
    "p.place IS NOT NULL AND (m.place IS DISTINCT FROM p.place OR m.key IS DISTINCT FROM p.key OR "
    "p.action = 'quarantined' AND (m.pair IS DISTINCT FROM p.pair OR m.metadata IS DISTINCT FROM p.metadata))"
)
_KEY = "CASE WHEN p.place IS NULL THEN m.key ELSE p.key END"

# of what is in quarantine; any other item is projected again for them
_NEWEST = "CASE WHEN p.action = 'quarantined' THEN p.{0} ELSE m.{0} END AS {0}"

_KEPT = f"""
SELECT m.item, m.uri, {_KEY} AS key, {_NEWEST.format("pair")}, m.size, m.source_version,
    {_NEWEST.format("metadata")}, p.place,
    m.status, m.reason, m.detail, m.stage, m.modality, m.content_id, m.segments, m.feature_fp, m.vector_fp,
    coalesce(r.new, m.part) AS part, m.features, m.attempts, m.run
FROM (SELECT * FROM manifest WHERE {{in_shard}}) m
    JOIN (SELECT item, key, place, pair, metadata, action FROM plan
        WHERE action IN ('unchanged', 'quarantined') AND {{in_shard}}) p
    USING (item) LEFT JOIN renamed r ON r.old = m.part
"""

_WHOLE = f"{_DONE} UNION ALL {_KEPT} ORDER BY key"

_CHANGES = f"""
{_DONE} UNION ALL {_KEPT} WHERE r.new IS NOT NULL OR ({_MOVED})
UNION ALL BY NAME SELECT item, 'gone' AS status FROM gone WHERE {{in_shard}}
ORDER BY key, item
"""

_HOW_MANY = f"""
SELECT (SELECT count(*) FROM final) + (SELECT count(*) FROM gone)
    + (SELECT count(*) FROM manifest m JOIN plan p USING (item) LEFT JOIN renamed r ON r.old = m.part
        WHERE p.action IN ('unchanged', 'quarantined') AND (r.new IS NOT NULL OR ({_MOVED})))
"""

_QUARANTINE = f"""
SELECT l.item, l.uri, f.modality, f.reason, f.detail, f.stage, {_ATTEMPTS} AS attempts,
    l.source_version, '{{run}}' AS run
FROM final f JOIN listing l USING (item) LEFT JOIN {_BEFORE} WHERE f.status = 'quarantined'
UNION ALL
SELECT m.item, m.uri, m.modality, m.reason, m.detail, m.stage, m.attempts, m.source_version, m.run
FROM manifest m JOIN plan p USING (item) WHERE m.status = 'quarantined' AND p.action = 'quarantined'
ORDER BY uri
"""

# what the items of the new manifest are, by the file that was written and the manifest before it
_ITEMS_AFTER = """
SELECT (SELECT count(*) FROM manifest)
    + count(*) FILTER (n.status <> 'gone' AND m.item IS NULL) - count(*) FILTER (n.status = 'gone')
FROM read_parquet('{file}') n LEFT JOIN manifest m USING (item)
"""


def fetch(folder: Folder, snapshot: Snapshot, scratch: Path) -> list[Path]:
    """Download a run's manifest; the files, the whole one first.

    Raises CollectionError if one is gone or has other bytes than the snapshot says: what a run does
    follows from it, and later commits compare only what they change.
    """
    files = []
    for file in snapshot.manifest:
        local = scratch / f"{file.name}.manifest.parquet"
        if not local.exists():  # runs share files
            try:
                folder.download(layout.manifest(file.name), local)
            except FileNotFoundError as error:
                raise _lost(folder, file.name, "missing") from error
        if file_digest(local) != file.sha256:
            raise _lost(folder, file.name, "damaged")
        files.append(local)
    return files


def _lost(folder: Folder, run: str, what: str) -> CollectionError:
    return CollectionError(
        f"{layout.manifest(run)} of {folder.uri} is {what}; see which runs need it with: batchproj verify "
        f"{folder.uri}, and go back to one that does not with: batchproj rollback, or embed into a new collection"
    )


def rows(files: list[Path]) -> str:
    """SQL of the items that are there, given the manifest's files, the whole one first."""
    whole, *changes = files
    if not changes:
        return f"SELECT * FROM read_parquet('{whole}')"
    numbered = " UNION ALL BY NAME ".join(  # files of earlier versions have fewer columns
        f"SELECT *, {number} AS number FROM read_parquet('{file}')" for number, file in enumerate(changes)
    )
    return (
        f"WITH changes AS ({numbered}), "
        "newest AS (SELECT item, max(number) AS number FROM changes GROUP BY item) "
        f"SELECT * FROM read_parquet('{whole}') ANTI JOIN newest USING (item) UNION ALL BY NAME "
        "SELECT * EXCLUDE (number) FROM changes JOIN newest USING (item, number) WHERE status <> 'gone'"
    )


def is_whole(live: Snapshot | None, changed: int) -> bool:
    """Whether a run that changes so many items of the live one writes a whole file."""
    if live is None or len(live.manifest) >= MOST_FILES:
        return True
    before = sum(file.rows for file in live.manifest[1:])
    return before + changed > CHANGED_SHARE * live.listed


def write(plan: Plan, folder: Folder, target: Snapshot, live: Snapshot | None) -> list[Part]:
    """Write what the run adds to the live manifest, all of it if `live` is None; the files of the new one.

    Needs the plan after `commit.check_complete` and `commit.next_parts`. Raises BatchprojError if the
    new manifest has not as many items as were listed, or its file not as many rows as the run has changes.
    """
    changed = plan.rows(_HOW_MANY)[0][0]
    before = None if is_whole(live, changed) else live
    local = file_of(plan)
    query = (_CHANGES if before else _WHOLE).replace("{run}", target.run)
    _write_sorted(plan, query, changed if before else target.listed, local)
    query = _ITEMS_AFTER.format(file=local) if before else f"SELECT count(*) FROM read_parquet('{local}')"
    items = plan.rows(query)[0][0]
    if items != target.listed:
        raise BatchprojError(f"{target.listed} items listed, {items} in the manifest; nothing was made visible, rerun")
    if before and (rows := pq.read_metadata(local).num_rows) != changed:
        raise BatchprojError(f"{changed} items changed, {rows} in the manifest; nothing was made visible, rerun")
    return [*(before.manifest if before else []), _upload(folder, layout.manifest(target.run), target.run, local)]


def write_quarantine(plan: Plan, folder: Folder, target: Snapshot) -> Part:
    """Write the table of all items in quarantine after the run."""
    local = plan.scratch / "quarantine.parquet"
    query = _QUARANTINE.format(run=target.run, in_shard="true")
    plan.db.execute(f"COPY ({query}) TO '{local}' (FORMAT parquet, COMPRESSION zstd)")
    return _upload(folder, layout.quarantine(target.run), target.run, local)


def file_of(plan: Plan) -> Path:
    """The file that `write` has written, here."""
    return plan.scratch / "manifest.parquet"


def shards(column: str, rows: int) -> list[str]:
    """Conditions that divide rows by the hash of a column into pieces that fit into memory."""
    number_of = rows // SHARD_ITEMS + 1
    return [f"hash({column}) % {number_of} = {number}" for number in range(number_of)]


def _write_sorted(plan: Plan, query: str, rows: int, local: Path) -> None:
    with ExitStack() as stack:
        writer = None
        for in_shard in shards("item", rows):
            for batch in plan.batches(query.format(in_shard=in_shard), ROW_GROUP):
                writer = writer or stack.enter_context(pq.ParquetWriter(local, batch.schema, compression="zstd"))
                writer.write_batch(batch)
        if writer is None:
            plan.db.execute(f"COPY ({query.format(in_shard='true')}) TO '{local}' (FORMAT parquet)")


def _upload(folder: Folder, name: str, run: str, local: Path) -> Part:
    folder.upload(local, name)
    return Part(name=run, rows=pq.read_metadata(local).num_rows, bytes=local.stat().st_size, sha256=file_digest(local))
