"""A process of its own: embed one item as a worker does, and say what memory it took.

python long_item.py SPACE MODALITY FILE ROWS

gives {"peak_mib", "before_mib", "decoders_mib"} on stdout, and the rows in Parquet. Memory is what is resident; pages
of files that decoders share with the worker are counted as the worker's alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from batchproj.collection.unit import Unit
from batchproj.decode.limits import Limits
from batchproj.decoding import Fetched
from batchproj.embedding import UnitWorker
from batchproj.schema import Modality
from batchproj.space import open_space, resolve
from batchproj.worker_environment import WORKER_ENVIRONMENT

WORKER_MIB, TOGETHER_MIB = 1_430, 1_600
"""The most that a worker may take for a long item, 1.5 GB (850 MiB are libraries); and with its decoders."""


def embedded_alone(space: Path, modality: Modality, file: Path) -> tuple[pa.Table, dict[str, int]]:
    """Rows of one item, and the memory of a process that did nothing else."""
    rows = file.with_suffix(".parquet")
    line = [sys.executable, __file__, space, modality, file, rows]
    environment = {**os.environ, **WORKER_ENVIRONMENT}
    done = subprocess.run([*map(str, line)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return pq.read_table(rows), json.loads(done.stdout)


def peak_mib(pid: str = "self") -> int:
    """The most memory that a process has had, unlike `ru_maxrss` not that of its parent."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


def decoders_mib() -> int:
    """The same of this process's children together, less what they share with it: that is counted here."""
    pids = [pid for each in Path("/proc/self/task").glob("*/children") for pid in each.read_text().split()]
    return sum(peak_mib(pid) - shared_mib(pid) for pid in pids)


def shared_mib(pid: str) -> int:
    """What a process has in memory of the files that this one has there, which is there once: pages of libraries.

    Never more of a file than this process has of it. Too much by what decoders alone share of such a file, if anything.
    """
    ours, theirs = (_file_kib(each) for each in ("self", pid))
    return sum(min(shared, ours[file][0]) for file, (_, shared) in theirs.items() if file in ours) // 1024


def _file_kib(pid: str) -> dict[str, tuple[int, int]]:
    """KiB of each mapped file that are resident, and those of them that other processes have too."""
    found: dict[str, tuple[int, int]] = {}
    file = ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, _, told = line.partition(":")
        if "-" in name.split()[0]:  # a mapping's first line
            file = line.partition("/")[2]
        elif file and name in ("Rss", "Shared_Clean", "Shared_Dirty"):
            resident, shared = found.get(file, (0, 0))
            kib = int(told.split()[0])
            found[file] = (resident + kib, shared) if name == "Rss" else (resident, shared + kib)
    return found


def main(space_uri: str, name: str, file: str, rows: str) -> None:
    space, modality = resolve(open_space(space_uri)), Modality(name)
    worker = UnitWorker(space.members[modality], space.dim, frozenset(space.members), Limits(), 2)
    worker.load()
    unit = Unit(name="u", run="1", task="embed", modality=modality, items=1, bytes=0)
    item = Fetched("i", file, None, "1", Path(file).read_bytes(), "c", file)
    before = peak_mib()
    vectors = worker.embed(unit, [item], None, lambda _: None).vectors
    peak = peak_mib()
    pq.write_table(vectors, rows)
    print(json.dumps({"peak_mib": peak, "before_mib": before, "decoders_mib": decoders_mib()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
