"""Lance tables as input; `at` of a row is the table's version and its number in that, from 0 on.

Lance asks the store by itself, so it lists in a process of its own, within limits: see `lance_child`. What was listed
can be read, for its files never change.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from batchproj.confined_process import ConfinedProcess, start
from batchproj.confinement import environment
from batchproj.errors import BatchprojError, SourceError, TryLater, UsageError
from batchproj.lance_store import lance_faults, storage_options
from batchproj.objectstore import Listed
from batchproj.retry import patience_s, retrying
from batchproj.source.ended import Allowed, death
from batchproj.source.parser import checked
from batchproj.source.record import UNREADABLE, pick, said
from batchproj.source.rows import Row
from batchproj.worker_environment import KEPT_MEMORY

KIND = "lance"
PROGRAM = "batchproj.source.lance_child"

_ERRORS = {each.__name__: each for each in (TryLater, UsageError, SourceError)}

# each thread reserves address space, which is what is limited, and a machine of many cores would have many of them
_LITTLE_RESERVED = {
    **{"LANCE_CPU_THREADS": "2", "LANCE_IO_THREADS": "8", "TOKIO_WORKER_THREADS": "2"},
    **{"MALLOC_ARENA_MAX": "2", "ARROW_DEFAULT_MEMORY_POOL": "system"},
    "RUST_BACKTRACE": "0",  # which may be longer than what is kept of its words
}


def listed(uri: str, allowed: Allowed) -> Listed:
    """The newest version of a table; raises SourceError if there is none, or as `pages` does."""
    (answer,) = _answers(uri, allowed, {"version": None}, "files")
    rows, version = answer["listed"]
    return Listed(uri, uri.rpartition("/")[2], rows, version)


def pages(table: Listed, allowed: Allowed) -> Generator[list[Row]]:
    """What `rows.pages` gives of its version that was listed, and the faults it raises.

    Raises SourceError if it is damaged, ends the process or takes too much of it, TryLater if somebody else ends that.
    """
    version = int(table.version.split()[0])
    asked = {"version": version, "key": table.key, "size": table.size, "told": table.version}
    for answer in _answers(table.uri, allowed, asked, f"{table.size:,} rows"):
        yield checked(answer["rows"], table, KIND)


def read_block(uri: str, version: int, wanted: Sequence[tuple[int, int]]) -> list[Any]:
    """Values by row number and column number, of one version."""
    dataset = opened(uri, version)
    names = dataset.schema.names
    rows = sorted({row for row, _ in wanted})
    position = {row: number for number, row in enumerate(rows)}
    with lance_faults(uri):
        taken = dataset.take(rows, columns=[names[column] for column in sorted({column for _, column in wanted})])
    return pick(taken.to_batches(), [(position[row], names[column]) for row, column in wanted])


@contextmanager
def damage(what: str) -> Iterator[None]:
    """What Lance raises for a damaged table as SourceError: RuntimeError too, and panics, which are no Exception."""
    try:
        yield
    except MemoryError:
        raise
    except (*UNREADABLE, RuntimeError) as error:
        raise SourceError(f"{what}: {said(error)}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of pyo3, which lets nobody import it
            raise
        raise SourceError(f"{what}: {said(error)}") from error


def opened(uri: str, version: int | None) -> Any:
    import lance

    path = uri.removeprefix("file://")
    with lance_faults(uri):
        return retrying(lambda: lance.dataset(path, version=version, storage_options=storage_options()), uri)


# --- the process that lists --------------------------------------------------------------------


def _answers(uri: str, allowed: Allowed, asked: dict[str, Any], size: str) -> Generator[dict[str, Any]]:
    """The process is gone when this generator is, exhausted or closed."""
    child = start(PROGRAM, what="the process that lists", variables=_environment(uri))
    try:
        child.wait_until_ready()
        told = {"uri": uri, "patience_s": patience_s(), "memory_bytes": allowed.memory_bytes, "cpu_s": allowed.cpu_s}
        child.connection.send_bytes(json.dumps(told | asked).encode())
        yield from _until_the_end(child, uri, allowed)
    except (EOFError, ConnectionError):
        status = child.end(patience_s=10)
        spent = allowed.exceeded(uri, size, status, child.last_words)
        raise spent or death(uri, status, "Lance", child.last_line) from None
    finally:
        child.end()


def _until_the_end(child: ConfinedProcess, uri: str, allowed: Allowed) -> Iterator[dict[str, Any]]:
    while "end" not in (answer := json.loads(child.connection.recv_bytes())):
        if "memory" in answer:
            raise allowed.too_much_memory(uri)
        if "error" in answer:
            name, text = answer["error"]
            raise _ERRORS.get(name, BatchprojError)(text)
        if "broken" in answer:
            raise BatchprojError(f"{uri} cannot be listed: {answer['broken']}; please report it")
        yield answer


def _environment(uri: str) -> dict[str, str]:
    """Only who has to ask a store is told of credentials."""
    known = environment()
    if not uri.startswith("file://"):
        inherited = {name: value for name, value in os.environ.items() if name not in KEPT_MEMORY}
        known = {**inherited, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return {**known, **_LITTLE_RESERVED}
