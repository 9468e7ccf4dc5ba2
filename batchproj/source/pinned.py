"""An object as a file that is read by ranges, for libraries that want a file."""

from __future__ import annotations

import io
from typing import Any

from batchproj.errors import ItemFault, SourceError
from batchproj.objectstore import Listed, read_range
from batchproj.schema import Reason

BUFFER_BYTES = 1 << 20
"""Read at once: as much as streams in the time that another request would take, so gaps below it are not skipped."""


class PinnedFile(io.RawIOBase):
    """Read-only and seekable.

    Every read raises ItemFault CHANGED once the object is not the one that was listed, SourceError if it
    may not be read.
    """

    def __init__(self, listed: Listed) -> None:
        super().__init__()
        self._listed = listed
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._listed.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        length = min(len(view), self._listed.size - self._at)
        if length <= 0:
            return 0
        uri = self._listed.uri
        try:
            data = read_range(uri, self._at, length, self._listed.version)
        except FileNotFoundError:
            raise ItemFault(Reason.CHANGED, f"{uri} is gone since it was listed") from None
        except PermissionError as error:
            raise SourceError(f"{uri} may not be read: {error}; check the credentials") from error
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


def open_buffered(listed: Listed) -> io.BufferedReader:
    return io.BufferedReader(PinnedFile(listed), BUFFER_BYTES)
