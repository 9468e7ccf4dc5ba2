"""Large pictures are decoded one at a time by the decoder processes of a worker: their memory adds up.

The turn is a lock on a file that they share, which the kernel gives on when its holder dies. Where none is
shared, as outside a decoder process, nobody waits.
"""

from __future__ import annotations

import fcntl
import signal

from batchproj.errors import BatchprojError

LARGE_PIXELS = 16_000_000

_shared: int | None = None


def share(file: int | None = None) -> None:
    """Take turns with the other processes that have this file open; with none, nobody waits."""
    global _shared
    _shared = file


def wait_if_large(size: tuple[int, int]) -> None:
    """Before pixels of so large a picture are allocated; the turn is kept until `end`, and to wait takes none of the
    item's time. Raises BatchprojError where files cannot be locked."""
    if _shared is None or size[0] * size[1] <= LARGE_PIXELS:
        return
    left, _ = signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        fcntl.lockf(_shared, fcntl.LOCK_EX)
    except OSError as error:
        raise BatchprojError(f"decoders cannot take turns, as a file cannot be locked here: {error}") from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, left)


def end() -> None:
    """The item is done, and its memory given back."""
    if _shared is not None:
        fcntl.lockf(_shared, fcntl.LOCK_UN)
