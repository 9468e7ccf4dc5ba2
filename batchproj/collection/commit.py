"""Finished units -> the next snapshot: counts checked, parts rewritten, keys compared.

Nothing here is visible to a reader: that is the switch of the Lance tag, done by the caller last.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc

from batchproj.collection import layout, manifest
from batchproj.collection.plan import Plan
from batchproj.collection.snapshot import FeatureFile, Part, Snapshot
from batchproj.collection.unit import Receipt, read_outcome, read_rows, write_part
from batchproj.errors import BatchprojError
from batchproj.objectstore import Folder

_CHUNK = 16_384
"""Items that leave the table by one statement: each statement reads the column `item` of the whole table."""

_READS = 16
"""Outcomes read at once, and brought in together."""

_FINAL = """
CREATE TABLE final AS SELECT * FROM outcome WHERE status <> 'deferred';
CREATE TABLE removed AS
SELECT m.item, m.part FROM manifest m JOIN plan p USING (item)
    WHERE m.part IS NOT NULL AND p.action IN ('changed', 'retry', 'encode', 'project')
UNION ALL
SELECT m.item, m.part FROM manifest m JOIN gone USING (item) WHERE m.part IS NOT NULL;
CREATE TABLE renamed (old VARCHAR, new VARCHAR);
"""

_SENSELESS = """
SELECT modality, count(*) FROM final WHERE reason = 'not_finite' AND stage = 'encode' AND modality NOT IN
    (SELECT modality FROM final WHERE status = 'embedded' UNION SELECT modality FROM plan WHERE action = 'unchanged')
GROUP BY modality HAVING count(*) > 1 ORDER BY modality
"""

_IDS = """
SELECT CASE WHEN segments = 1 THEN item ELSE item || '-' || number END AS id FROM
    (SELECT item, segments, unnest(range(segments)) AS number FROM {embedded} WHERE status = 'embedded')
"""


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

    def outcome_of(receipt: Receipt) -> pa.Table:
        outcome = read_outcome(folder, receipt.unit)
        return outcome.append_column("unit", pa.array([receipt.unit.name] * outcome.num_rows, pa.string()))

    waiting = iter(receipts)
    with ThreadPoolExecutor(_READS) as pool:
        while outcomes := list(pool.map(outcome_of, islice(waiting, _READS))):
            plan.insert("outcome", pa.concat_tables(outcomes))


def check_complete(plan: Plan) -> None:
    """Every planned item has exactly one final outcome: none lost, none double."""
    plan.db.execute(_FINAL)
    wrong = plan.rows(
        "SELECT min(p.uri), count(f.item) AS times FROM plan p LEFT JOIN final f USING (item) "
        "WHERE p.action IN ('new', 'changed', 'retry', 'encode', 'project') GROUP BY p.item HAVING times <> 1 LIMIT 1"
    )
    if wrong:
        uri, times = wrong[0]
        raise BatchprojError(f"{uri} has {times} outcomes where 1 was expected; nothing was made visible, rerun")


def senseless_encoders(plan: Plan) -> dict[str, int]:
    """Modalities of which no item has vectors, and several have none because they were not finite; how many.

    That is the encoder's fault, or the machine's, where a single one would be the item's. After `check_complete`.
    """
    return dict(plan.rows(_SENSELESS))


def is_as_before(plan: Plan) -> bool:
    """Whether nothing is gone and all that was done was to retry what is in quarantine again, for the same reason.

    Such a run commits nothing, so that it does not count among the `attempts` either.
    """
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
    held: dict[str, int] = dict(plan.rows("SELECT part, count(*) FROM manifest WHERE part IS NOT NULL GROUP BY part"))
    damaged = {name for (name,) in plan.rows("SELECT file FROM damaged WHERE kind = 'parquet'")}
    kept: list[Part] = []
    for part in live.parts if live else []:
        if part.name not in lost:
            kept.append(part)
            continue
        if part.name in damaged or lost[part.name] == held[part.name]:
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
    for batch in plan.batches("SELECT item FROM removed ORDER BY item", _CHUNK):
        yield batch["item"].to_pylist()


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


def check_keys(plan: Plan, now: pa.RecordBatchReader, before: pa.RecordBatchReader | None = None) -> None:
    """The ids of the Lance table are exactly those of the Parquet parts, each once.

    Both readers stream columns `id` and `item`. Without `before`, `now` is the whole table and is
    compared with a whole manifest. Otherwise both leave out what the live and the new version have in
    common: these rows were compared when the live run was made, and the others must be those of before
    without what was removed and with what was added. Together with the count of all rows, which the
    table has checked, that leaves no row too few or too many. The comparison is DuckDB's, within its
    memory limit.
    """
    _load(plan, "found", "id", now)
    embedded = "final" if before else f"read_parquet('{manifest.file_of(plan)}')"
    plan.db.execute(f"CREATE OR REPLACE TABLE promised AS {_IDS.format(embedded=embedded)}")
    if before:
        _load(plan, "before", "id, item", before)
        count = plan.rows("SELECT count(*) FROM before")[0][0]
        for in_shard in manifest.shards("item", count):
            plan.db.execute(
                f"INSERT INTO promised SELECT id FROM (SELECT id, item FROM before WHERE {in_shard}) "
                f"ANTI JOIN (SELECT item FROM removed WHERE {in_shard}) USING (item)"
            )
    count = plan.rows("SELECT count(*) FROM promised")[0][0]
    for in_shard in manifest.shards("id", count):
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


def _load(plan: Plan, table: str, columns: str, rows: pa.RecordBatchReader) -> None:
    plan.db.register("incoming", rows)
    try:
        plan.db.execute(f"CREATE OR REPLACE TABLE {table} AS SELECT {columns} FROM incoming")
    finally:
        plan.db.unregister("incoming")
