"""How fast is a search, and does it find what an exact one does? In collections of so many rows, indexed by default.

    python benchmarks/search_speed.py --rows 10000 100000 1000000

A collection of 2,000 real sentences is embedded, and its table filled up with vectors between those of the sentences
(two of them mixed, and noise), which is harder than rows that lie in clusters of their own. For each size one JSON
line: seconds to build the index and the peak resident memory of the process, recall@10 of `nearest` against exact
search on held-out sentences, median and 95th percentile of both in milliseconds, interleaved, and of their ratio;
and what one client of `batchproj serve` sees, texts encoded included (`service.py`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import service

import batchproj
from batchproj.bench import corpus
from batchproj.collection import layout
from batchproj.collection.snapshot import write_snapshot
from batchproj.features import fixed_size_list
from batchproj.index import _upkeep, connect
from batchproj.objectstore import Folder
from batchproj.recipe import Index
from batchproj.search import Collection
from batchproj.tags import Tags

SENTENCES = 2_000
QUERIES = 200
CHUNK_ROWS = 50_000
NOISE = 0.3
K = 10
SERVED_S = 15

Vectors = npt.NDArray[np.float32]


def embed(folder: Path) -> Path:
    """A collection of real sentences."""
    (folder / "texts").mkdir()
    for number in range(SENTENCES):
        (folder / "texts" / f"{number}.txt").write_text(corpus.sentence([1, number]))
    command = [sys.executable, "-m", "batchproj.cli", "embed", str(folder / "texts"), str(folder / "collection")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return folder / "collection"


def between(real: Vectors, count: int, draw: np.random.Generator) -> Vectors:
    """Vectors (count, K) of length 1 between two real ones each."""
    one, other = (real[draw.integers(0, len(real), count)] for _ in range(2))
    share = draw.random((count, 1), dtype=np.float32)
    noise = draw.standard_normal((count, real.shape[1]), dtype=np.float32) * NOISE / np.sqrt(real.shape[1])
    mixed = share * one + (1 - share) * other + noise
    return mixed / np.linalg.norm(mixed, axis=1, keepdims=True)


def fill(collection: Path, rows: int) -> float:
    """Bring the live table to so many rows and index it as a run would; seconds that the index took."""
    folder = Folder(str(collection))
    real = np.stack(batchproj.open(str(collection)).table()["vector"].to_numpy()).astype(np.float32)
    table = connect(folder).open_table(layout.TABLE)
    draw = np.random.default_rng(rows)
    template = table.to_lance().take([0])
    while (have := table.count_rows()) < rows:
        count = min(CHUNK_ROWS, rows - have)
        columns = {name: pa.repeat(template[name][0], count) for name in template.column_names}
        names = pa.array([f"{have + number:064d}" for number in range(count)])
        columns |= {"id": names, "item": names, "vector": fixed_size_list(between(real, count, draw))}
        table.add(pa.table(columns, schema=template.schema))
    begun = time.perf_counter()
    _upkeep(table, Index())
    seconds = time.perf_counter() - begun
    opened = batchproj.open(str(collection))
    write_snapshot(folder, opened.snapshot.model_copy(update={"rows": rows}))
    Tags(folder).keep(opened.run, table.version)
    Tags(folder).point(table.version)
    return seconds


def measure(opened: Collection, queries: Vectors) -> dict[str, Any]:
    """Exact and usual search in turn: recall, and milliseconds of each."""
    took: dict[bool, list[float]] = {True: [], False: []}
    found: dict[bool, list[set[str]]] = {True: [], False: []}
    for query in queries[:5]:  # the index and the vectors come into memory
        opened.nearest(query, K)
        opened.nearest(query, K, exact=True)
    for query in queries:
        for exact in (True, False):
            begun = time.perf_counter()
            hits = opened.nearest(query, K, exact=exact)
            took[exact].append((time.perf_counter() - begun) * 1e3)
            found[exact].append({hit.id for hit in hits})
    shares = [len(one & other) / len(one) for one, other in zip(found[True], found[False], strict=True)]
    ratios = [exact / usual for exact, usual in zip(took[True], took[False], strict=True)]
    return {
        "recall@10": round(statistics.mean(shares), 4),
        "exact_ms": _percentiles(took[True]),
        "search_ms": _percentiles(took[False]),
        "times_as_fast": round(statistics.median(ratios), 1),
    }


def served(collection: Path) -> dict[str, object]:
    """By the service on the same rows, asked by one client that no two times asks the same."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "batchproj.cli", "serve", str(collection), "--port", str(port)]
    serving = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            assert serving.poll() is None, "the service ended"
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5):
                break
            time.sleep(0.2)
        asyncio.run(service.measure(url, 1, 3))  # the index and the vectors come into memory
        return asyncio.run(service.measure(url, 1, SERVED_S, first=1_000_000))
    finally:
        serving.terminate()
        serving.wait()


def peak_mib() -> float:
    """Of this process; ru_maxrss would know its parent's."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


def _percentiles(values: list[float]) -> dict[str, float]:
    return {f"p{share}": round(float(np.percentile(values, share)), 2) for share in (50, 95)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    for rows in parser.parse_args().rows:
        with tempfile.TemporaryDirectory() as folder:
            collection = embed(Path(folder))
            built_s = fill(collection, rows)
            opened = batchproj.open(str(collection))
            queries = np.stack([opened.embed_query(corpus.sentence([2, number])) for number in range(QUERIES)])
            peak = peak_mib()
            told = {"rows": rows, "index_s": round(built_s, 1), "peak_mib": round(peak)}
            print(json.dumps({**told, **measure(opened, queries), "served": served(collection)}), flush=True)


if __name__ == "__main__":
    main()
