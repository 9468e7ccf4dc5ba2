"""What runs in the process that lists Lance tables: within limits, as far as Lance can do with them.

    python -P -m batchproj.source.lance_child SOCKET

Lance reads the table from its store by itself, so that this process may open files and connections, and has the
credentials of the store, if it is a remote one. Memory, and for some rows at a time processor time and time, are
limited by the kernel. Lance may also abort its process over a damaged table, by an error text with a NUL in it or a
size that no machine has, and no exception tells of that.

    asked      {"uri", "version", "patience_s", "memory_bytes", "cpu_s"}, and with a version {"key", "size", "told"}
    answered   {"listed": [rows, version]} where no version is asked for; {"rows": [...]} for each page; {"end": true};
               {"error": [its class, its text]} of an error on purpose, {"broken": text} of a mistake of ours;
               or {"memory": true} before it ends for want of memory

Nothing that crosses is unpickled, on either side.
"""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pyarrow as pa

from batchproj.confined_process import READY
from batchproj.confinement import address_space, cpu_s, limit, write_little
from batchproj.errors import BatchprojError
from batchproj.lance_store import lance_faults
from batchproj.objectstore import Listed
from batchproj.retry import configure
from batchproj.source.lance import KIND, damage, opened
from batchproj.source.record import Record, values_of
from batchproj.source.rows import pages

FIRST_ROWS, MOST_ROWS = 8, 4_096
BATCH_BYTES = 16 << 20
"""Rows are asked for some at a time, as many as take so much if they are like those before: a scan of the table would
take up a whole page of it at once, which is as large as whoever wrote it had memory."""

THREADS_BYTES = 128 << 20
"""Address space of the threads that Lance starts with its first table: stacks, and what malloc reserves for each."""

_WALL = 10


def main(files: str) -> None:
    """List one table, and answer as told above."""
    connection: Connection[Any, Any] = Connection(int(files))
    import lance  # noqa: F401 - its own memory is not the table's; not above, for `lance_store` tells it how to behave

    write_little()
    connection.send_bytes(READY)
    asked = json.loads(connection.recv_bytes())
    configure(asked["patience_s"])
    limit(resource.RLIMIT_AS, address_space() + THREADS_BYTES + asked["memory_bytes"])
    try:
        _answer(connection, asked)
    except MemoryError:
        limit(resource.RLIMIT_AS, resource.RLIM_INFINITY)
        connection.send_bytes(b'{"memory": true}')


def _answer(connection: Connection[Any, Any], asked: dict[str, Any]) -> None:
    last: dict[str, Any] = {"end": True}
    allow = partial(_allow, asked["cpu_s"], asked["patience_s"])
    try:
        allow()
        for answer in _answers(asked, allow):
            signal.setitimer(signal.ITIMER_REAL, 0)  # the other side may take its time
            connection.send_bytes(json.dumps(answer, check_circular=False).encode())
            allow()
    except BatchprojError as error:
        last = {"error": [type(error).__name__, str(error)]}
    except MemoryError:
        raise
    except Exception as error:  # a mistake of ours
        place = traceback.extract_tb(error.__traceback__)[-1]
        last = {"broken": f"{type(error).__name__} in {Path(place.filename).name}, line {place.lineno}: {error}"}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    connection.send_bytes(json.dumps(last).encode())


def _allow(seconds: float, patience_s: float) -> None:
    """So much from here on to the next rows or the next answer, and beside it the time that a store which is away is
    waited for."""
    limit(resource.RLIMIT_CPU, math.ceil(cpu_s() + seconds))
    signal.setitimer(signal.ITIMER_REAL, _WALL * seconds + patience_s)


def _answers(asked: dict[str, Any], allow: Callable[[], None]) -> Iterator[dict[str, Any]]:
    uri, version = asked["uri"], asked["version"]
    if version is None:
        yield {"listed": _listed(uri)}
        return
    table = Listed(uri, asked["key"], asked["size"], asked["told"])
    for page in pages(table, KIND, _records(uri, version, allow)):
        yield {"rows": page}


def _listed(uri: str) -> tuple[int, str]:
    with damage(f"no Lance table at {uri}"):
        dataset = opened(uri, None)
    with damage(f"{uri} cannot be read"):
        made = dataset.versions()[-1]["timestamp"]  # a table that was made anew counts its versions from 1 again
        return dataset.count_rows(), f"{dataset.version} of {made.isoformat()}"


def _records(uri: str, version: int, allow: Callable[[], None]) -> Iterator[Record]:
    number = 0
    with damage(f"{uri} cannot be read"), lance_faults(uri):
        for batch in _batches(opened(uri, version)):
            allow()
            for values in values_of(batch):
                number += 1
                yield Record(number, (version, number - 1), values)


def _batches(dataset: Any) -> Iterator[pa.RecordBatch]:
    begin, rows, total = 0, FIRST_ROWS, dataset.count_rows()
    while begin < total:
        found = nbytes = 0
        for batch in dataset.to_batches(offset=begin, limit=rows, batch_size=rows, scan_in_order=True):
            yield batch
            found, nbytes = found + batch.num_rows, nbytes + batch.nbytes
        if not found:
            raise ValueError(f"of its {total:,} rows {begin:,} are there")
        begin += found
        rows = max(1, min(4 * found, MOST_ROWS, found * BATCH_BYTES // max(1, nbytes)))


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)  # threads of Lance abort a process now and then as it takes itself apart
