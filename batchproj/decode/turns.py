"""Large pictures are decoded one at a time by the decoder processes of a worker: their memory adds up.

The turn is a lock on a file that they share, which the kernel gives on when its holder dies. Where none is
shared, as outside a decoder process, nobody waits.
"""

from __future__ import annotations

import fcntl

LARGE_PIXELS = 16_000_000

_shared: int | None = None


def share(file: int | None = None) -> None:
    """Take turns with the other processes that have this file open; with none, nobody waits."""
    global _shared
    _shared = file


def wait_if_large(size: tuple[int, int]) -> None:
    """Before pixels of so large a picture are allocated; the turn is kept until `end`."""
    if _shared is not None and size[0] * size[1] > LARGE_PIXELS:
        fcntl.lockf(_shared, fcntl.LOCK_EX)


def end() -> None:
    """The item is done, and its memory given back."""
    if _shared is not None:
        fcntl.lockf(_shared, fcntl.LOCK_UN)
