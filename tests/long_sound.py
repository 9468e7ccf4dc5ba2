"""A process of its own: embed one sound as a worker does, and say what it took.

python long_sound.py SPACE FILE   ->   {"vectors", "starts", "peak_mib", "before_mib"} on stdout
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from batchproj.collection.unit import Unit
from batchproj.decode.limits import Limits
from batchproj.embedding import Fetched, UnitWorker
from batchproj.schema import Modality
from batchproj.space import open_space, resolve


def peak_mib() -> int:
    """The most memory that this process has had, unlike `ru_maxrss` not that of its parent."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


def main(space_uri: str, file: str) -> None:
    space = resolve(open_space(space_uri))
    worker = UnitWorker(space.members[Modality.AUDIO], space.dim, frozenset(space.members), Limits(), 2)
    worker.load()
    unit = Unit(name="u", run="1", task="embed", modality=Modality.AUDIO, items=1, bytes=0)
    item = Fetched("i", file, None, "1", Path(file).read_bytes(), "c", file)
    before = peak_mib()
    rows = worker.embed(unit, [item], None, lambda _: None).vectors
    starts = rows["start"].to_pylist()
    print(json.dumps({"vectors": rows.num_rows, "starts": starts, "peak_mib": peak_mib(), "before_mib": before}))


if __name__ == "__main__":
    main(*sys.argv[1:])
