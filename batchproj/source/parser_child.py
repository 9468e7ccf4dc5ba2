"""What runs in the process that parses tables: bytes of strangers in, rows of the listing out, within limits.

    python -P -m batchproj.source.parser_child SOCKET,WINDOW

The two are descriptors: of the socket, and of memory that both sides see, in which it finds the bytes it asks for. It
has no credentials and no name of a store that it could use: all that it may read is the one table that it is given.
Once its libraries are loaded it opens no file and no connection any more. Memory, and for each page of rows processor
time and time, are limited by the kernel.

    asked      {"uri", "key", "size", "version", "kind", "memory_bytes", "cpu_s"}
    answered   {"read": [start, length]}, upon which so many bytes lie in the window and their number comes back;
               {"rows": [...]} for each page, and {"end": true};
               {"error": text} of a SourceError, {"broken": text} of a mistake of ours;
               or {"memory": true} before it ends for want of memory

Nothing that crosses is unpickled, on either side.
"""

from __future__ import annotations

import datetime
import json
import math
import mmap
import resource
import signal
import sys
import traceback
import zoneinfo
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from zoneinfo import _zoneinfo  # type: ignore[attr-defined]

import pyarrow as pa

from batchproj.confined_process import READY
from batchproj.confinement import address_space, close_doors, cpu_s, limit
from batchproj.errors import SourceError
from batchproj.objectstore import Listed
from batchproj.source import arrow, csv, jsonl, parquet
from batchproj.source.metadata import to_json
from batchproj.source.pinned import RangedFile
from batchproj.source.record import Record, values_of
from batchproj.source.rows import pages

WINDOW_BYTES = 16 * 2**20
"""So much of a table crosses at once."""

ROW_CPU_S = 0.001
"""Processor time that each row adds to what the size of its table allows: few bytes may hold many rows."""

_BYTES_PER_TIME = 4 << 20
_WALL = 10

_RECORDS: dict[str, Callable[[Listed, RangedFile], Iterator[Record]]] = {
    "parquet": parquet.records,
    "jsonl": jsonl.records,
    "csv": csv.records,
    "arrow": arrow.records,
}


def main(files: str) -> None:
    """Answer until the other side is gone."""
    socket, window = map(int, files.split(","))
    connection: Connection[Any, Any] = Connection(socket)
    with mmap.mmap(window, WINDOW_BYTES) as shared:
        kept = _load_all()
        idle_bytes = address_space()
        close_doors()
        connection.send_bytes(READY)
        while kept:
            try:
                asked = json.loads(connection.recv_bytes())
            except EOFError:
                return
            limit(resource.RLIMIT_AS, idle_bytes + asked["memory_bytes"])
            try:
                _Listing(connection, shared, asked).answer()
            except MemoryError:
                limit(resource.RLIMIT_AS, resource.RLIM_INFINITY)
                connection.send_bytes(b'{"memory": true}')
                return  # what is left of it may be in pieces
            limit(resource.RLIMIT_AS, resource.RLIM_INFINITY)


def _load_all() -> list[Any]:
    """What is loaded late, by values of some kinds or of some time zones, and could not be any more."""
    # pandas, which pyarrow makes times of nanoseconds by, looks into those of the second kind
    kinds: list[Any] = [zoneinfo.ZoneInfo, _zoneinfo.ZoneInfo]
    zones = [kind(name) for name in sorted(zoneinfo.available_timezones()) for kind in kinds]
    at = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
    odd = {"zone": pa.array([at], pa.timestamp("ns", "Europe/Berlin")), "length": pa.array([1], pa.duration("ns"))}
    for values in values_of(pa.RecordBatch.from_pydict(odd)):
        assert isinstance(values, dict), values
        to_json(values)
    b" ".decode("utf-8-sig")
    return zones


@dataclass
class _Listing:
    """One table."""

    connection: Connection[Any, Any]
    shared: mmap.mmap
    asked: dict[str, Any]
    begun_s: float = 0.0
    rows: int = 0

    def answer(self) -> None:
        asked = self.asked
        listed = Listed(asked["uri"], asked["key"], asked["size"], asked["version"])
        self.begun_s = cpu_s()
        self._allow()
        last: dict[str, Any] = {"end": True}
        try:
            with RangedFile(listed.size, self._read) as file:
                for page in pages(listed, asked["kind"], _RECORDS[asked["kind"]](listed, file)):
                    self.rows += len(page)
                    with self._waiting():
                        self._tell({"rows": page})
        except SourceError as error:
            last = {"error": str(error)}
        except MemoryError:
            raise
        except Exception as error:  # a mistake of ours
            place = traceback.extract_tb(error.__traceback__)[-1]
            last = {"broken": f"{type(error).__name__} in {Path(place.filename).name}, line {place.lineno}: {error}"}
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._tell(last)

    def _read(self, start: int, length: int) -> memoryview:
        with self._waiting():
            self._tell({"read": [start, min(length, WINDOW_BYTES)]})
            found = json.loads(self.connection.recv_bytes())
        return memoryview(self.shared)[:found]

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """The other side may take its time."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        yield
        self._allow()

    def _allow(self) -> None:
        allowed_s = self.asked["cpu_s"] * (1 + self.asked["size"] / _BYTES_PER_TIME)
        limit(resource.RLIMIT_CPU, math.ceil(self.begun_s + allowed_s + self.rows * ROW_CPU_S))
        signal.setitimer(signal.ITIMER_REAL, _WALL * allowed_s)

    def _tell(self, answer: dict[str, Any]) -> None:
        self.connection.send_bytes(json.dumps(answer, check_circular=False).encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
