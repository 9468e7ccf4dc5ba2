"""Peak memory of the planner alone for synthetic listings: `python benchmarks/planner_memory.py 20000 1000000`.

Each size runs in a fresh process: list, decide, cut into units. Prints VmHWM of /proc as one JSON document.
DuckDB may use up to `plan.MEMORY_LIMIT`; beyond that it spills to disk.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa

from batchproj.collection.plan import Plan
from batchproj.collection.snapshot import Fingerprints
from batchproj.decode.limits import Limits
from batchproj.schema import Modality, listing_schema
from batchproj.source.objects import item_id, pair_key

PAGE = 1_000


def page(start: int, stop: int) -> pa.RecordBatch:
    rows = []
    for number in range(start, stop):
        key = f"texts{number // PAGE:05d}/{number}.txt"
        uri = f"s3://bucket/{key}"
        named = {"item": item_id(uri), "uri": uri, "key": key, "pair": pair_key(key)}
        rows.append({**named, "size": 20, "source_version": f"{number:032x}"})
    return pa.RecordBatch.from_pylist(rows, schema=listing_schema())


def plan_peak_mib(items: int) -> dict[str, float]:
    fingerprints = Fingerprints(feature="feature", vector="vector")
    with Plan({Modality.TEXT: fingerprints}, Limits()) as plan:
        for start in range(0, items, PAGE):
            plan.add_listing(page(start, min(start + PAGE, items)))
        plan.decide()
        units = sum(1 for _ in plan.cut("000001", "embed", plan.to_embed(), 512, 64 * 2**20))
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return {"items": items, "units": units, "peak_mib": round(int(peak.split()[1]) / 1024, 1)}


def main() -> None:
    sizes = [int(argument) for argument in sys.argv[1:]] or [20_000, 40_000]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        print(json.dumps(list(pool.map(plan_peak_mib, sizes))))


if __name__ == "__main__":
    main()
