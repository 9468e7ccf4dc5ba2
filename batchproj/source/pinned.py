"""An object as a file that is read by ranges, for libraries that want a file."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from typing import Any

from batchproj.errors import ItemFault, SourceError
from batchproj.objectstore import Listed, read_range
from batchproj.schema import Reason

BUFFER_BYTES = 1 << 20
"""Read at once: as much as streams in the time that another request would take, so gaps below it are not skipped."""


class RangedFile(io.RawIOBase):
    """Read-only and seekable, of so many bytes; `read` gives some from a place on, at most as many as asked for."""

    def __init__(self, size: int, read: Callable[[int, int], bytes | memoryview]) -> None:
        super().__init__()
        self._size = size
        self._read = read
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        length, begun = max(0, min(len(view), self._size - self._at)), self._at
        while (done := self._at - begun) < length:
            if not (data := self._read(self._at, length - done)):
                break
            view[done : done + len(data)] = data
            self._at += len(data)
        return done


def read_pinned_range(listed: Listed, start: int, length: int) -> bytes:
    """Raises ItemFault CHANGED once the object is not the one that was listed, SourceError if it may not be read."""
    try:
        return read_range(listed.uri, start, length, listed.version)
    except FileNotFoundError:
        raise ItemFault(Reason.CHANGED, f"{listed.uri} is gone since it was listed") from None
    except PermissionError as error:
        raise SourceError(f"{listed.uri} may not be read: {error}; check the credentials") from error


def open_pinned(listed: Listed) -> RangedFile:
    """Every read raises what `read_pinned_range` does."""
    return RangedFile(listed.size, partial(read_pinned_range, listed))


def buffered(file: RangedFile) -> io.BufferedReader:
    return io.BufferedReader(file, BUFFER_BYTES)


def open_buffered(listed: Listed) -> io.BufferedReader:
    return buffered(open_pinned(listed))
