"""Peak memory of the planner alone for synthetic listings: `python benchmarks/planner_memory.py 20000 1000000`.

Each size runs three times, in fresh processes: a first run; a rerun in which 0.1 % of the objects changed, all of
the same folders, which adds to the manifest; and one that changed as much and writes the manifest whole. A rerun is:
list, load the live manifest, decide, cut into units, write the next manifest and compare the keys of the table, those
of the changed fragments or all. Prints VmHWM of /proc and seconds, of which `listing_s` are for this script to make up
a listing and `commit_s` for manifest and keys, as one JSON document. DuckDB may use up to `plan.MEMORY_LIMIT`; beyond
that it spills to disk.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from batchproj.collection import manifest
from batchproj.collection.commit import check_complete, check_keys
from batchproj.collection.plan import Plan
from batchproj.collection.snapshot import Fingerprints, Part, Snapshot
from batchproj.decode.limits import Limits
from batchproj.objectstore import Folder
from batchproj.schema import Modality, listing_schema
from batchproj.source.objects import item_id, pair_key

PAGE = 1_000
CHANGED_ONE_IN = 1_000
FINGERPRINTS = {Modality.TEXT: Fingerprints(feature="feature", vector="vector")}


def page(start: int, stop: int, changed: int) -> pa.RecordBatch:
    rows = []
    for number in range(start, stop):
        key = f"texts{number // PAGE:05d}/{number}.txt"
        uri = f"s3://bucket/{key}"
        named = {"item": item_id(uri), "uri": uri, "key": key, "pair": pair_key(key)}
        version = f"{number + changed * (number < changed):032x}"
        rows.append({**named, "size": 20 + number % 50_021, "source_version": version})
    return pa.RecordBatch.from_pylist(rows, schema=listing_schema())


def live_manifest(items: int, file: Path, first: int = 0) -> None:
    """What the first run over so many objects from the `first` on would have left."""
    writer = None
    for start in range(0, items, 100 * PAGE):
        listed = pa.Table.from_batches(
            [
                page(first + at, first + min(at + PAGE, items), changed=0)
                for at in range(start, min(start + 100 * PAGE, items), PAGE)
            ]
        )
        count = listed.num_rows
        part = [f"{number // 512:032x}" for number in range(first + start, first + start + count)]
        made = {"status": "embedded", "modality": "text", "feature_fp": "feature", "vector_fp": "vector"}
        for name, value in made.items():
            listed = listed.append_column(name, pa.array([value] * count, pa.string()))
        for name in ("reason", "detail", "stage"):
            listed = listed.append_column(name, pa.nulls(count, pa.string()))
        listed = listed.append_column("content_id", listed["item"]).append_column("part", pa.array(part))
        listed = listed.append_column("features", pa.array(part))
        listed = listed.append_column("segments", pa.array([1] * count, pa.int32()))
        writer = writer or pq.ParquetWriter(file, listed.schema, compression="zstd")
        writer.write_table(listed)
    if writer:
        writer.close()


def commit_changes(plan: Plan, collection: Folder, items: int, whole: bool) -> None:
    """The part of a commit that knows of items: manifest, quarantine, keys."""
    plan.db.execute(
        "INSERT INTO outcome BY NAME SELECT item, 'embedded' AS status, 'text' AS modality, "
        "item AS content_id, 1 AS segments, 'unit' AS unit, 'unit' AS features FROM plan WHERE action = 'changed'"
    )
    check_complete(plan)
    plan.db.execute(  # as `next_parts`: parts that lost some of their items and not all
        "INSERT INTO renamed SELECT m.part, 'rewritten' FROM manifest m LEFT JOIN removed r USING (item) "
        "GROUP BY m.part HAVING count(r.item) BETWEEN 1 AND count(*) - 1"
    )
    first = Snapshot(
        run="000001",
        parent=None,
        source="s",
        space="s",
        dim=1,
        fingerprints=FINGERPRINTS,
        listed=items,
        manifest=[Part(name="000001", rows=items, bytes=1, sha256="")],
    )
    target = first.model_copy(update={"run": "000002", "parent": "000001"})
    manifest.write(plan, collection, target, None if whole else first)
    manifest.write_quarantine(plan, collection, target)
    ids = {"id": pads.field("item"), "item": pads.field("item")}
    if whole:
        check_keys(plan, _stream(manifest.file_of(plan), ids))
        return
    # as if the table had lost the changed items from a fragment of as many, and got them back in a new one
    changed = plan.scratch / "changed.parquet"
    plan.db.execute(f"COPY (SELECT item FROM final) TO '{changed}' (FORMAT parquet)")
    check_keys(plan, _stream(changed, ids), _stream(changed, ids))


def _stream(file: Path, columns: dict[str, pads.Expression]) -> pa.RecordBatchReader:
    return pads.dataset(str(file)).scanner(columns=columns, batch_size=8_192, batch_readahead=2).to_reader()


def planned(items: int, live: str | None, whole: bool, first: int = 0) -> dict[str, float]:
    started = time.monotonic()
    with Plan(FINGERPRINTS, Limits()) as plan, tempfile.TemporaryDirectory() as collection:
        for start in range(0, items, PAGE):
            changed = first + items // CHANGED_ONE_IN if live else 0
            plan.add_listing(page(first + start, first + min(start + PAGE, items), changed))
        listed_s = time.monotonic() - started
        if live:
            plan.load_manifest(manifest.rows([Path(live)]))
        plan.decide()
        units = [unit for unit, _ in plan.cut("000001", "embed", plan.to_embed(), 512, 64 * 2**20)]
        commit_started = time.monotonic()
        if live:
            commit_changes(plan, Folder(collection), items, whole)
        commit_s = time.monotonic() - commit_started
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return {
        "items": items,
        "to_embed": sum(unit.items for unit in units),
        "units": len(units),
        "peak_mib": round(int(peak.split()[1]) / 1024, 1),
        "whole": whole,
        "listing_s": round(listed_s, 1),
        "commit_s": round(commit_s, 1),
        "all_s": round(time.monotonic() - started, 1),
    }


def main() -> None:
    sizes = [int(argument) for argument in sys.argv[1:]] or [20_000, 40_000]
    measured = []
    for items in sizes:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "manifest.parquet"
            live_manifest(items, file)
            for live, whole in ((None, True), (str(file), False), (str(file), True)):
                with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
                    measured.append(pool.submit(planned, items, live, whole).result())
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
