"""Tables are parsed in a process of its own: what it may do is limited, and what it dies of is one table's fault."""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import asdict
from typing import Any, Self

from batchproj.confined_process import ConfinedProcess, start
from batchproj.confinement import environment
from batchproj.errors import BatchprojError, SourceError
from batchproj.objectstore import Listed
from batchproj.source.ended import Allowed, death
from batchproj.source.parser_child import WINDOW_BYTES
from batchproj.source.pinned import read_pinned_range
from batchproj.source.place import FAULT
from batchproj.source.rows import Row

PROGRAM = "batchproj.source.parser_child"

# else it reserves address space by the gigabyte, which is what is limited
_PLAIN_MEMORY = {"ARROW_DEFAULT_MEMORY_POOL": "system"}


class Parser:
    """One table at a time; the process is started with the first, and again after it has died.

    It is told nothing of our environment and opens nothing: what it wants to read of the table it gets from us.
    """

    def __init__(self, memory_bytes: int = Allowed.memory_bytes, cpu_s: float = Allowed.cpu_s) -> None:
        """A table may take so much memory, and so much processor time for each 4 MiB and one more."""
        self.allowed = Allowed(memory_bytes, cpu_s)
        self._child: ConfinedProcess | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.end()
            self._child = None

    def pages(self, table: Listed, kind: str) -> Generator[list[Row]]:
        """What `rows.pages` gives, and the faults it raises.

        Raises SourceError too if the table ends its parser or takes too much, TryLater if somebody else ends that,
        and of reads ItemFault CHANGED. The process ends if the generator is closed half way.
        """
        child = self._child = self._child or _start()
        finished = False
        asked = {name: getattr(table, name) for name in ("uri", "key", "size", "version")}
        asked |= {"kind": kind, **asdict(self.allowed)}
        try:
            child.connection.send_bytes(json.dumps(asked).encode())
            while "end" not in (answer := json.loads(child.connection.recv_bytes())):
                if "read" in answer:
                    _read(child, table, *answer["read"])
                elif "rows" in answer:
                    yield checked(answer["rows"], table, kind)
                elif "error" in answer:
                    finished = True
                    raise SourceError(answer["error"])
                elif "broken" in answer:
                    raise BatchprojError(f"{table.uri} cannot be listed: {answer['broken']}; please report it")
                else:
                    raise self.allowed.too_much_memory(table.uri)
            finished = True
        except (EOFError, ConnectionError):
            status = child.end(patience_s=10)
            told = table.uri, f"{table.size:,} bytes", status, child.last_words
            raise self.allowed.exceeded(*told) or death(table.uri, status, "its parser", child.last_line) from None
        finally:
            if not finished:
                self.close()  # in the middle of an answer, of which nobody wants the rest


def _read(child: ConfinedProcess, table: Listed, start: int, length: int) -> None:
    """Lay into the window what it asks for."""
    assert start >= 0, start
    data = read_pinned_range(table, start, min(length, WINDOW_BYTES))
    child.window[: len(data)] = data
    child.connection.send_bytes(str(len(data)).encode())


def checked(rows: list[list[Any]], table: Listed, kind: str) -> list[Row]:
    """The rows, which lead nowhere but into their own table whatever has become of the process that lists it."""
    found = [Row(*each) for each in rows]
    for row in found:
        own = row.place.startswith((f'["{kind}",', f'["{FAULT}",')) if row.names is None else row.place == ""
        if not (own and row.address.startswith(f"{table.uri}#") and row.key.startswith(f"{table.key}#")):
            raise SourceError(f"{table.uri}: its parser answered with a row that is not the table's: a hostile table?")
    return found


def _start() -> ConfinedProcess:
    variables = {**environment(), **_PLAIN_MEMORY}
    child = start(PROGRAM, what="the process that lists", window_bytes=WINDOW_BYTES, variables=variables)
    try:
        child.wait_until_ready()
    except (EOFError, ConnectionError):
        status = child.end(patience_s=10)
        raise death("tables", status, "its parser", child.last_line) from None
    return child
