"""A corpus too large for one collection, as shards: `python benchmarks/many_shards.py 1000000 100`.

So many objects in a shard, so many shards, made up and all different, each shard a collection of its own. Each goes
through the real planner twice, in fresh processes: a first run, and a rerun in which 0.1 % changed, with the real
manifest and key check; no object is read and nothing embedded. Prints each shard's peak memory and seconds as it is
done, and at the end the greatest and the sums, as one JSON document. 100 shards of a million are 10^8 objects, hours;
what fewer shards say of more is extrapolation, and exact only as far as shards are alike, which these are.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from planner_memory import live_manifest, planned


def shard(number: int, items: int) -> list[dict[str, float]]:
    first = number * items
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "manifest.parquet"
        live_manifest(items, file, first)
        size = file.stat().st_size
        runs = []
        for live in (None, str(file)):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
                runs.append(pool.submit(planned, items, live, False, first).result())
    return [{**run, "manifest_bytes": size} for run in runs]


def main() -> None:
    items, shards = (int(argument) for argument in sys.argv[1:3])
    first_runs, reruns = [], []
    for number in range(shards):
        first, rerun = shard(number, items)
        first_runs.append(first)
        reruns.append(rerun)
        print(f"shard {number}: {json.dumps([first, rerun])}", file=sys.stderr, flush=True)
    summary = {
        name: {
            "peak_mib": max(run["peak_mib"] for run in runs),
            "median_s": statistics.median(run["all_s"] - run["listing_s"] for run in runs),
            "sum_s": round(sum(run["all_s"] - run["listing_s"] for run in runs), 1),
            "units": sum(run["units"] for run in runs),
        }
        for name, runs in (("first", first_runs), ("rerun", reruns))
    }
    print(json.dumps({"shards": shards, "items": shards * items, **summary, "shard": [first_runs[0], reruns[0]]}))


if __name__ == "__main__":
    main()
