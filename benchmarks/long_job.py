"""Jobs that take minutes: `python benchmarks/long_job.py text-short 10000 100000`.

For each number of items the loop by hand with every trick and `batchproj embed` run one after the other, as in
`batchproj bench` (which compares their vectors). Printed as JSON: how many times as fast batchproj is, steady and with
start-up and end, and the peaks of the memory that its driver and its largest worker had for themselves while it ran:
looked at every half second, so that a shorter peak is missed, and without the pages of Ray's store, which processes
share, and of files. Ray may not spill objects to disk: a job whose blocks did not fit into its store would fail.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from batchproj.bench import machine
from batchproj.bench.contender import Job
from batchproj.bench.contenders import CEILING, CONTENDERS
from batchproj.bench.rounds import start_process
from batchproj.bench.workloads import WORKLOADS, cache_folder, prepare

LOOK_S = 0.5


@dataclass
class Peaks:
    """MiB of a process's own memory, by what it is."""

    mib: dict[str, float] = field(default_factory=dict)
    _over: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        while not self._over.wait(LOOK_S):
            for pid in _descendants(os.getpid()):
                with contextlib.suppress(OSError):  # it has ended
                    self._look(Path("/proc") / str(pid))

    def _look(self, process: Path) -> None:
        command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        if "batchproj.cli embed" in command:
            role = "driver"
        elif command.startswith("ray::"):
            role = "largest worker"
        else:
            return
        for line in (process / "status").read_text().splitlines():
            if line.startswith("RssAnon"):
                self.mib[role] = max(self.mib.get(role, 0), round(int(line.split()[1]) / 1024, 1))

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        thread = threading.Thread(target=self.watch)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()


def _descendants(root: int) -> set[int]:
    parents = {}
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
    found, grown = set(), {root}
    while grown:
        found |= grown
        grown = {pid for pid, parent in parents.items() if parent in grown} - found
    return found


def compare(name: str, items: int) -> dict[str, object]:
    workload = WORKLOADS[name]
    corpus = prepare(workload, items, cache_folder())
    runs, peaks = {}, Peaks()
    with tempfile.TemporaryDirectory() as work:
        for contender in (CONTENDERS[CEILING], CONTENDERS["batchproj"]):
            job = Job(
                workload=name,
                modality=workload.modality,
                source=str(corpus.files),
                manifest=corpus.manifest,
                out=Path(work) / contender.name,
                cores=machine.cores(),
                window=contender.window,
            )
            with peaks.watching() if contender.name == "batchproj" else contextlib.nullcontext():
                runs[contender.name] = start_process(contender, job)
    ceiling, ours = runs[CEILING], runs["batchproj"]
    return {
        "workload": name,
        "items": items,
        "ceiling_s": round(ceiling.total_s, 1),
        "speed": round(ceiling.steady_s / ours.steady_s, 3),
        "speed_whole": round(ceiling.total_s / ours.total_s, 3),
        "peak_mib": peaks.mib,
    }


def main() -> None:
    os.environ |= {"RAY_automatic_object_spilling_enabled": "0"}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "workload", choices=[each.name for each in WORKLOADS.values() if not each.on_s3 and not each.is_reprojection]
    )
    parser.add_argument("items", type=int, nargs="+")
    told = parser.parse_args()
    found = []
    for items in told.items:
        found.append(compare(told.workload, items))
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
