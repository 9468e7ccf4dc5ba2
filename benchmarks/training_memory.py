"""Memory of training on many pairs: `python benchmarks/training_memory.py 100000 1000000`.

Synthetic pairs (384-d float16 features, 384-d captions' vectors) go through everything that real ones do: the join,
the shards, Ray Data, one worker of Ray Train. Each number of pairs runs in a process of its own. Printed as JSON: the
peak, over half-second samples, of the anonymous memory of the process and all that it started, Ray's own servers
included, and of Ray's object store in shared memory, apart from each other; and the recall on held-out pairs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from batchproj import many_pairs
from batchproj.collection import manifest
from batchproj.features import to_column
from batchproj.fit import Config
from batchproj.many_pairs import fit_set
from batchproj.objectstore import Folder
from batchproj.pipeline import ray_session
from batchproj.schema import Modality
from batchproj.space import Split
from batchproj.training_set import build, unit

DIM = 384
FILE_ITEMS = 512


def targets(start: int, stop: int) -> np.ndarray:
    return unit(np.random.default_rng(start).standard_normal((stop - start, DIM)).astype(np.float32))


def features(name: str) -> pa.Table:
    """A curved view of the captions' vectors of one file, with noise."""
    start = int(name[1:]) * FILE_ITEMS
    view = np.random.default_rng(7).standard_normal((DIM, DIM)).astype(np.float32)
    seen = np.tanh(targets(start, start + FILE_ITEMS) @ view)
    noise = np.random.default_rng(start + 1).standard_normal(seen.shape)
    rows = (seen + 0.3 * noise).astype(np.float16)
    return pa.table({"item": [f"i{start + row}" for row in range(FILE_ITEMS)], "feature": to_column(rows)})


def write_manifest(pairs: int, file: Path) -> None:
    writer = None
    for start in range(0, pairs, FILE_ITEMS):
        numbers = range(start, start + FILE_ITEMS)
        table = pa.table(
            {
                "item": [f"i{number}" for number in numbers],
                "pair": [f"folder/{number:09d}" for number in numbers],
                "content_id": [f"{number:064x}" for number in numbers],
                "modality": ["image"] * FILE_ITEMS,
                "status": ["embedded"] * FILE_ITEMS,
                "features": [f"f{start // FILE_ITEMS}"] * FILE_ITEMS,
            }
        )
        writer = writer or pq.ParquetWriter(file, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def captions(pairs: int) -> Iterator[pa.RecordBatch]:
    for start in range(0, pairs, FILE_ITEMS):
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(targets(start, start + FILE_ITEMS).reshape(-1)), DIM)
        names = pa.array([f"folder/{number:09d}" for number in range(start, start + FILE_ITEMS)])
        yield pa.record_batch({"pair": names, "vector": vectors})


class Memory:
    """Peaks over this process and its descendants, MiB."""

    def __init__(self) -> None:
        self.anonymous = self.shared = 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            parents, own, shared = {}, {}, {}
            for entry in Path("/proc").glob("[0-9]*"):
                try:
                    status = dict(line.split(":\t", 1) for line in (entry / "status").read_text().splitlines())
                    parents[int(entry.name)] = int(status["PPid"])
                    own[int(entry.name)] = int(status["RssAnon"].split()[0]) / 1024
                    shared[int(entry.name)] = int(status["RssShmem"].split()[0]) / 1024
                except (OSError, KeyError, ValueError):
                    continue
            ours = {os.getpid()}
            while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
                ours |= more
            self.anonymous = max(self.anonymous, sum(own.get(pid, 0) for pid in ours))
            self.shared = max(self.shared, max(shared.get(pid, 0) for pid in ours))
            time.sleep(0.5)


def measure(pairs: int) -> dict[str, float]:
    pairs -= pairs % FILE_ITEMS
    many_pairs.FEWEST_PASSES = 1  # what one pass needs, four do
    memory, started = Memory(), time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        file, folder = Path(scratch) / "manifest.parquet", Folder(f"{scratch}/shards")
        write_manifest(pairs, file)
        items = manifest.rows([file])
        made = build(
            items, captions(pairs), features, Modality.IMAGE, Split(), 0.15, folder, Path(scratch), lambda _: None
        )
        assert made is not None
        built = memory.anonymous
        with ray_session(verbose=False):
            fitted = fit_set(made, Config(kind="linear"), folder, 1, lambda *_: None)
        held_out = fitted.unseen.held_out()
        recall = held_out.recalls(held_out.answers(fitted.fit.projector.project(fitted.unseen.features)))[-1].value
    return {
        "pairs": pairs,
        "samples_trained_on": made.samples,
        "join_peak_mib": round(built),
        "peak_mib": round(memory.anonymous),
        "object_store_mib": round(memory.shared),
        "steps": fitted.fit.history[-1].step,
        "mean_recall": round(recall, 3),
        "seconds": round(time.monotonic() - started),
    }


def main() -> None:
    if len(sys.argv) == 3 and sys.argv[1] == "--one":
        print(json.dumps(measure(int(sys.argv[2]))))
        return
    counts = sys.argv[1:] or ["20000", "40000"]
    found = [
        json.loads(
            subprocess.run([sys.executable, __file__, "--one", count], check=True, stdout=subprocess.PIPE).stdout
        )
        for count in counts
    ]
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
