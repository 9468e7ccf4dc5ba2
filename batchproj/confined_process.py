"""A process of our own that parses what strangers wrote, as whoever started it has it.

What it is told of our environment, and what it may do once it runs: see `confinement`. Between the two are messages on
a socket and, if wanted, memory that both sides see.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from typing import IO, Any

from batchproj.errors import TryLater

READY = b"ready"
"""What such a process says first, once its libraries are loaded."""

_LAST_BYTES = 4_096

# else it could take pages away that we are about to read, which is the end of who reads them (SIGBUS)
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


@dataclass
class ConfinedProcess:
    """Messages go by `connection`. `last_words` is the end of what it printed to its stderr, once it has ended."""

    process: subprocess.Popen[bytes]
    connection: Connection[Any, Any]
    _window: mmap.mmap | None
    _printed: IO[bytes]
    last_words: str = ""

    @property
    def window(self) -> mmap.mmap:
        """The memory that both sides see."""
        assert self._window is not None, "started without a window"
        return self._window

    @property
    def last_line(self) -> str:
        return self.last_words.rpartition("\n")[2]

    def wait_until_ready(self) -> None:
        """Raises EOFError or ConnectionError if it ends before."""
        assert self.connection.recv_bytes() == READY

    def end(self, patience_s: float = 0) -> int:
        """Make sure that it is gone, of itself if it does so in time; its exit status."""
        self.connection.close()
        if self._window is not None:
            self._window.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(patience_s)
        self.process.kill()
        status = self.process.wait()
        if not self._printed.closed:
            with self._printed as printed:
                printed.seek(max(0, printed.seek(0, os.SEEK_END) - _LAST_BYTES))
                self.last_words = printed.read().decode(errors="replace").strip()
        return status


def start(
    program: str,
    *told: str,
    what: str,
    window_bytes: int = 0,
    shared: Sequence[int] = (),
    variables: Mapping[str, str],
) -> ConfinedProcess:
    """Run `python -P -m PROGRAM FILES TOLD ...`: FILES are, with a comma between, the descriptors of its socket, of
    the window if there is to be one, and those that are `shared` with it.

    All that it knows of our environment are `variables`. Raises TryLater if the machine has no room for it.
    """
    ours, theirs = Pipe()
    with theirs, ExitStack() as held:
        printed = held.enter_context(tempfile.TemporaryFile())
        window = held.enter_context(_window(window_bytes)) if window_bytes else None
        files = [theirs.fileno(), *([window.fileno()] if window else []), *shared]
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", program, ",".join(map(str, files)), *told],
                env=variables,
                cwd="/",
                pass_fds=files,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=printed,
            )
        except OSError as error:
            raise TryLater(f"cannot start {what}: {error}; run the same command again") from error
        seen = mmap.mmap(window.fileno(), window_bytes) if window else None
        return ConfinedProcess(process, ours, seen, os.fdopen(os.dup(printed.fileno()), "rb"))


def _window(nbytes: int) -> IO[bytes]:
    """Memory of a fixed size."""
    file = os.fdopen(os.memfd_create("window", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "r+b", 0)
    file.truncate(nbytes)
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
    return file
