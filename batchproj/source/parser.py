"""Tables are parsed in a process of its own: what it may do is limited, and what it dies of is one table's fault."""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from typing import IO, Any, Self

from batchproj.confinement import environment
from batchproj.errors import BatchprojError, SourceError, TryLater
from batchproj.objectstore import Listed
from batchproj.source.ended import death
from batchproj.source.parser_child import READY, WINDOW_BYTES
from batchproj.source.pinned import read_pinned_range
from batchproj.source.place import FAULT
from batchproj.source.rows import Row

PROGRAM = "batchproj.source.parser_child"

MEMORY_BYTES = 2 << 30
CPU_S = 60.0

# else it reserves address space by the gigabyte, which is what is limited
_PLAIN_MEMORY = {"ARROW_DEFAULT_MEMORY_POOL": "system"}


@dataclass
class _Child:
    process: subprocess.Popen[bytes]
    connection: Connection[Any, Any]
    window: mmap.mmap
    told: IO[bytes]

    def end(self, patience_s: float = 0) -> int:
        """Make sure that it is gone, of itself if it does so in time; its exit status."""
        self.connection.close()
        self.window.close()
        with suppress(subprocess.TimeoutExpired):
            return self.process.wait(patience_s)
        self.process.kill()
        return self.process.wait()


class Parser:
    """One table at a time; the process is started with the first, and again after it has died.

    It is told nothing of our environment and opens nothing: what it wants to read of the table it gets from us.
    """

    def __init__(self, memory_bytes: int = MEMORY_BYTES, cpu_s: float = CPU_S) -> None:
        """A table may take so much memory, and so much processor time for each 4 MiB and one more."""
        self._memory_bytes, self._cpu_s = memory_bytes, cpu_s
        self._child: _Child | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.end()
            self._child.told.close()
            self._child = None

    def pages(self, table: Listed, kind: str) -> Generator[list[Row]]:
        """What `rows.pages` gives, and the faults it raises.

        Raises SourceError too if the table ends its parser or takes too much, TryLater if somebody else ends that,
        and of reads ItemFault CHANGED. The process ends if the generator is closed half way.
        """
        child = self._child = self._child or _start()
        finished = False
        asked = {name: getattr(table, name) for name in ("uri", "key", "size", "version")}
        asked |= {"kind": kind, "memory_bytes": self._memory_bytes, "cpu_s": self._cpu_s}
        try:
            child.connection.send_bytes(json.dumps(asked).encode())
            while "end" not in (answer := json.loads(child.connection.recv_bytes())):
                if "read" in answer:
                    _read(child, table, *answer["read"])
                elif "rows" in answer:
                    yield [_checked(Row(*each), table, kind) for each in answer["rows"]]
                elif "error" in answer:
                    finished = True
                    raise SourceError(answer["error"])
                elif "broken" in answer:
                    raise BatchprojError(f"{table.uri} cannot be listed: {answer['broken']}; please report it")
                else:
                    raise SourceError(
                        f"{table.uri} takes more memory to list than {self._memory_bytes:,} bytes: it is damaged, or "
                        "packs far too much into few bytes; write it again, or raise limits.table_bytes in the recipe"
                    )
            finished = True
        except (EOFError, ConnectionError):
            raise self._death(table, child) from None
        finally:
            if not finished:
                self.close()  # in the middle of an answer, of which nobody wants the rest

    def _death(self, table: Listed, child: _Child) -> BatchprojError:
        status = child.end(patience_s=10)
        if status in (-signal.SIGXCPU, -signal.SIGALRM):
            spent = "processor time" if status == -signal.SIGXCPU else "time"
            return SourceError(
                f"{table.uri} takes more {spent} to list than its {table.size:,} bytes allow: it is damaged, or packs "
                "far too much into few bytes; write it again, or raise limits.decode_s in the recipe"
            )
        return death(table.uri, status, "its parser", child.told)


def _read(child: _Child, table: Listed, start: int, length: int) -> None:
    """Lay into the window what it asks for."""
    assert start >= 0, start
    data = read_pinned_range(table, start, min(length, WINDOW_BYTES))
    child.window[: len(data)] = data
    child.connection.send_bytes(str(len(data)).encode())


def _checked(row: Row, table: Listed, kind: str) -> Row:
    """The row, which leads nowhere but into its own table whatever has become of the parser."""
    own = row.place.startswith((f'["{kind}",', f'["{FAULT}",')) if row.names is None else row.place == ""
    assert own, row.place
    assert row.address.startswith(f"{table.uri}#"), row.address
    assert row.key.startswith(f"{table.key}#"), row.key
    return row


def _start() -> _Child:
    ours, theirs = Pipe()
    with theirs, os.fdopen(os.memfd_create("table"), "r+b", 0) as shared, tempfile.TemporaryFile() as told:
        shared.truncate(WINDOW_BYTES)
        files = [theirs.fileno(), shared.fileno()]
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", PROGRAM, ",".join(map(str, files))],
                env={**environment(), **_PLAIN_MEMORY},
                cwd="/",
                pass_fds=files,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=told,
            )
        except OSError as error:
            raise TryLater(f"cannot start the process that lists: {error}; run the same command again") from error
        child = _Child(process, ours, mmap.mmap(shared.fileno(), WINDOW_BYTES), os.fdopen(os.dup(told.fileno()), "rb"))
    try:
        assert ours.recv_bytes() == READY
    except (EOFError, ConnectionError):
        raise death("tables", child.end(patience_s=10), "its parser", child.told) from None
    return child
