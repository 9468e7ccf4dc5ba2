"""What it means when a process that parses a table ends instead of answering."""

from __future__ import annotations

import os
import signal
from typing import IO

from batchproj.errors import BatchprojError, SourceError, TryLater

_DAMAGE = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP)
"""What a process dies of by itself."""

_LAST_BYTES = 4_096


def death(uri: str, status: int, who: str, told: IO[bytes]) -> BatchprojError:
    """What to raise for a process that ended with this status in place of an answer; `told` is its stderr."""
    if status >= 0:
        told.seek(max(0, told.seek(0, os.SEEK_END) - _LAST_BYTES))
        last = told.read().decode(errors="replace").strip().rpartition("\n")[2]
        return BatchprojError(f"the process that lists {uri} ended with exit code {status}: {last[:200]}")
    name = signal.Signals(-status).name
    if -status in _DAMAGE:
        return SourceError(f"{uri} cannot be read: it is damaged, and {who} ends with {name}; write it again")
    hint = ", perhaps for want of memory" if -status == signal.SIGKILL else ""
    return TryLater(f"the process that lists {uri} was ended by {name}{hint}; run the same command again")
