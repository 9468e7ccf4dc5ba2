"""What listing a table may take, and what it means when a process that lists one ends instead of answering."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass

from batchproj.errors import BatchprojError, SourceError, TryLater

_DAMAGE = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP)
"""What a process dies of by itself."""

_SPENT = {-signal.SIGXCPU: "processor time", -signal.SIGALRM: "time"}

_RUST_HAS_NO_MEMORY = re.compile(r"memory allocation of \d+ bytes failed")
"""What a library in Rust says before it aborts."""


@dataclass(frozen=True)
class Allowed:
    """Memory in bytes that listing a table may take, and processor time in seconds, more of it for a larger table."""

    memory_bytes: int = 2 << 30
    cpu_s: float = 60.0

    def too_much_memory(self, uri: str) -> SourceError:
        return _too_much(uri, "memory", f"{self.memory_bytes:,} bytes", "table_bytes")

    def exceeded(self, uri: str, size: str, status: int, last_words: str) -> SourceError | None:
        """Whether that is what a process died of, which had a table of this size, in words, to list."""
        if status in _SPENT:
            return _too_much(uri, _SPENT[status], f"its {size} allow", "decode_s")
        return self.too_much_memory(uri) if _RUST_HAS_NO_MEMORY.search(last_words) else None


def _too_much(uri: str, what: str, limit: str, field: str) -> SourceError:
    return SourceError(
        f"{uri} takes more {what} to list than {limit}: it is damaged, or packs far too much into few bytes; write it "
        f"again, or raise limits.{field} in the recipe"
    )


def death(uri: str, status: int, who: str, last_line: str) -> BatchprojError:
    """What to raise for a process that ended with this status in place of an answer, within what it is allowed;
    `last_line` is of its stderr."""
    if status >= 0:
        return BatchprojError(f"the process that lists {uri} ended with exit code {status}: {last_line[:200]}")
    name = signal.Signals(-status).name
    if -status in _DAMAGE:
        return SourceError(f"{uri} cannot be read: it is damaged, and {who} ends with {name}; write it again")
    hint = ", perhaps for want of memory" if -status == signal.SIGKILL else ""
    return TryLater(f"the process that lists {uri} was ended by {name}{hint}; run the same command again")
