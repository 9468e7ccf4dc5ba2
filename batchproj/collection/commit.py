"""Finished units -> the next snapshot: counts checked, parts rewritten, manifest merged.

Nothing here is visible to a reader: that is the switch of the Lance tag, done by the caller last.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchproj.collection import layout
from batchproj.collection.plan import Plan
from batchproj.collection.snapshot import FeatureFile, Part, Snapshot
from batchproj.collection.unit import Receipt, read_outcome, read_rows, write_part
from batchproj.errors import BatchprojError
from batchproj.objectstore import Folder

_CHUNK = 1_000

_FINAL = """
CREATE TABLE final AS SELECT * FROM outcome WHERE status <> 'deferred';
CREATE TABLE removed AS
SELECT m.item, m.part FROM manifest m JOIN plan p USING (item)
    WHERE m.part IS NOT NULL AND p.action IN ('changed', 'retry', 'encode', 'project')
UNION ALL
SELECT m.item, m.part FROM manifest m JOIN gone USING (item) WHERE m.part IS NOT NULL;
CREATE TABLE renamed (old VARCHAR, new VARCHAR);
"""

_MANIFEST = """
SELECT l.item, l.uri, l.key, l.pair, l.size, l.source_version, f.status, f.reason, f.detail, f.stage,
    f.modality, f.content_id, f.segments, s.feature_fp, s.vector_fp,
    CASE WHEN f.status = 'embedded' THEN f.unit END AS part, f.features
FROM (SELECT * FROM listing WHERE {in_shard}) l JOIN (SELECT * FROM final WHERE {in_shard}) f USING (item)
    LEFT JOIN space s ON s.modality = f.modality
UNION ALL
SELECT m.item, m.uri, m.key, m.pair, m.size, m.source_version, m.status, m.reason, m.detail, m.stage,
    m.modality, m.content_id, m.segments, m.feature_fp, m.vector_fp,
    coalesce(r.new, m.part) AS part, m.features
FROM (SELECT * FROM manifest WHERE {in_shard}) m
    JOIN (SELECT item FROM plan WHERE action IN ('unchanged', 'quarantined') AND {in_shard}) p USING (item)
    LEFT JOIN renamed r ON r.old = m.part
ORDER BY key
"""

ROW_GROUP = 65_536
"""Rows of the manifest's file that are written at once: what Parquet remembers of small groups adds up."""

SHARD_ITEMS = 100_000
"""Items that are joined and sorted at once for the manifest: DuckDB cannot spill everything it holds."""


@dataclass(frozen=True)
class Changes:
    """The parts of the next snapshot, and how many items leave the rows that were live.

    `kept` are parts as they were or rewritten, `added` those of this run's units; `rebuild` if the
    table itself is not to be trusted.
    """

    kept: list[Part]
    added: list[Part]
    removed_items: int
    rebuild: bool = False


def record(plan: Plan, folder: Folder, receipts: Iterable[Receipt]) -> None:
    """Bring the outcomes of finished units into the plan's tables."""
    for receipt in receipts:
        outcome = read_outcome(folder, receipt.unit)
        unit = pa.array([receipt.unit.name] * outcome.num_rows, pa.string())
        plan.insert("outcome", outcome.append_column("unit", unit))


def check_complete(plan: Plan) -> None:
    """Every planned item has exactly one final outcome: none lost, none double."""
    plan.db.execute(_FINAL)
    wrong = plan.rows(
        "SELECT p.uri, count(f.item) AS times FROM plan p LEFT JOIN final f USING (item) "
        "WHERE p.action IN ('new', 'changed', 'retry', 'encode', 'project') GROUP BY p.uri HAVING times <> 1 LIMIT 1"
    )
    if wrong:
        uri, times = wrong[0]
        raise BatchprojError(f"{uri} has {times} outcomes where 1 was expected; nothing was made visible, rerun")


def is_as_before(plan: Plan) -> bool:
    """Whether nothing is gone and all that was done was to retry what is in quarantine again, for the same reason."""
    changed = plan.rows(
        "SELECT 1 FROM final f JOIN plan p USING (item) LEFT JOIN manifest m USING (item) "
        "WHERE p.action <> 'retry' OR f.status <> 'quarantined' OR m.status IS DISTINCT FROM 'quarantined' "
        "OR f.reason IS DISTINCT FROM m.reason UNION ALL SELECT 1 FROM gone LIMIT 1"
    )
    return not changed


def next_parts(
    plan: Plan, folder: Folder, live: Snapshot | None, receipts: list[Receipt], rebuild: bool = False
) -> Changes:
    """Write the live parts that lose items again without them; new parts come from the receipts."""
    lost: dict[str, int] = dict(plan.rows("SELECT part, count(*) FROM removed GROUP BY part"))
    damaged = {name for (name,) in plan.rows("SELECT file FROM damaged WHERE kind = 'parquet'")}
    kept: list[Part] = []
    for part in live.parts if live else []:
        if part.name not in lost:
            kept.append(part)
            continue
        if part.name in damaged:
            continue  # all its items are done again or gone
        rewritten = _without_removed(plan, folder, part)
        if rewritten is not None:
            kept.append(rewritten)
            plan.db.execute("INSERT INTO renamed VALUES (?, ?)", [part.name, rewritten.name])
    added = [receipt.part for receipt in receipts if receipt.part is not None and receipt.part.rows]
    return Changes(kept, added, sum(lost.values()), rebuild)


def _without_removed(plan: Plan, folder: Folder, part: Part) -> Part | None:
    """One part without its removed items, under a name of its own; None if nothing is left."""
    removed = [row[0] for row in plan.rows(f"SELECT item FROM removed WHERE part = '{part.name}' ORDER BY item")]
    rows = read_rows(folder, layout.part(part.name), part.sha256)
    rows = rows.filter(pc.invert(pc.is_in(rows["item"], pa.array(removed))))
    if not rows.num_rows:
        return None
    name = hashlib.sha256(json.dumps([part.name, removed]).encode()).hexdigest()[:32]
    return write_part(folder, name, rows)


def removed_items(plan: Plan) -> Iterator[list[str]]:
    """Items whose rows must leave the Lance table, in chunks."""
    for batch in plan.batches("SELECT item FROM removed ORDER BY item"):
        items = batch["item"].to_pylist()
        for start in range(0, len(items), _CHUNK):
            yield items[start : start + _CHUNK]


def write_manifest(plan: Plan, folder: Folder, target: Snapshot) -> dict[str, str]:
    """Write the manifest and the quarantine table of a run; the sha256 of both, by name."""
    local = _manifest_file(plan)
    with ExitStack() as stack:
        writer = None
        for in_shard in _shards("item", target.listed):
            for batch in plan.batches(_MANIFEST.format(in_shard=in_shard), ROW_GROUP):
                writer = writer or stack.enter_context(pq.ParquetWriter(local, batch.schema, compression="zstd"))
                writer.write_batch(batch)
        if writer is None:
            plan.db.execute(f"COPY ({_MANIFEST.format(in_shard='true')}) TO '{local}' (FORMAT parquet)")
    items = plan.rows(f"SELECT count(*) FROM read_parquet('{local}')")[0][0]
    if items != target.listed:
        raise BatchprojError(f"{target.listed} items listed, {items} in the manifest; nothing was made visible, rerun")
    bad = plan.scratch / "quarantine.parquet"
    plan.db.execute(
        f"COPY (SELECT item, uri, modality, reason, detail, stage, source_version, '{target.run}' AS run "
        f"FROM read_parquet('{local}') WHERE status = 'quarantined' ORDER BY uri) "
        f"TO '{bad}' (FORMAT parquet, COMPRESSION zstd)"
    )
    written = {layout.manifest(target.run): local, layout.quarantine(target.run): bad}
    for name, file in written.items():
        folder.upload(file, name)
    return {name: _digest(file) for name, file in written.items()}


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def live_features(plan: Plan, live: Snapshot | None, receipts: list[Receipt]) -> list[FeatureFile]:
    """The files of the feature cache that the next manifest refers to."""
    referred = {
        name
        for (name,) in plan.rows(
            "SELECT DISTINCT cached FROM plan WHERE action = 'unchanged' UNION SELECT DISTINCT features FROM final"
        )
    }
    made = [receipt.features for receipt in receipts if receipt.features is not None]
    kept = [file for file in live.features if file.name in referred] if live else []
    return [*kept, *(file for file in made if file.name in referred)]


def check_keys(plan: Plan, table: pa.RecordBatchReader) -> None:
    """The ids of the Lance table are exactly those that the manifest promises, each once.

    `table` streams the column `id`; the comparison is DuckDB's, within its memory limit.
    """
    plan.db.register("table_ids", table)
    plan.db.execute("CREATE OR REPLACE TABLE found AS SELECT id FROM table_ids")
    plan.db.unregister("table_ids")
    plan.db.execute(
        "CREATE OR REPLACE TABLE promised AS "
        "SELECT CASE WHEN segments = 1 THEN item ELSE item || '-' || number END AS id FROM "
        f"(SELECT item, segments, unnest(range(segments)) AS number FROM read_parquet('{_manifest_file(plan)}') "
        "WHERE status = 'embedded')"
    )
    count = plan.rows("SELECT count(*) FROM promised")[0][0]
    for in_shard in _shards("id", count):
        wrong = plan.rows(
            "SELECT coalesce(f.id, p.id), count(f.id), count(p.id) "
            f"FROM (SELECT id FROM found WHERE {in_shard}) f FULL JOIN (SELECT id FROM promised WHERE {in_shard}) p "
            "ON f.id = p.id GROUP BY ALL HAVING count(f.id) <> 1 OR count(p.id) <> 1 LIMIT 1"
        )
        if wrong:
            key, there, wanted = wrong[0]
            raise BatchprojError(
                f"the Lance table has row {key} {there} times, the manifest {wanted} times; nothing was made visible, "
                "rerun"
            )


def _shards(column: str, rows: int) -> list[str]:
    """Conditions that divide rows by the hash of a column into pieces that fit into memory."""
    shards = rows // SHARD_ITEMS + 1
    return [f"hash({column}) % {shards} = {number}" for number in range(shards)]


def _manifest_file(plan: Plan) -> Path:
    return plan.scratch / "manifest.parquet"
