"""An item's bytes as decoders take them: all of them here, or read range by range from the process that has them."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, SupportsIndex, overload

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BLOCK_BYTES = 1 << 20
_BLOCKS_KEPT = 8
"""Sound and pictures of a film may lie far apart in it, and are read by turns."""
KEPT_BYTES = _BLOCKS_KEPT * BLOCK_BYTES

ReadRange = Callable[[int, int], bytes]
"""Bytes from one offset up to another."""


class Ranges:
    """Has of `bytes` what decoders use, and holds no more than a few blocks; `read` is asked for whole blocks."""

    def __init__(self, size: int, read: ReadRange) -> None:
        self._size, self._read = size, read
        self._kept: OrderedDict[int, bytes] = OrderedDict()

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, at: SupportsIndex) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> bytes: ...
    def __getitem__(self, at: SupportsIndex | slice) -> int | bytes:
        if not isinstance(at, slice):
            place = range(self._size)[at]
            return self._block(place // BLOCK_BYTES)[place % BLOCK_BYTES]
        begin, end, step = at.indices(self._size)
        assert step == 1, "bytes are read forwards"
        found = bytearray(max(0, end - begin))
        self.copy_into(memoryview(found), begin)
        return bytes(found)

    def copy_into(self, buffer: memoryview, begin: int) -> None:
        """Fill the buffer with the bytes from an offset on; they must be there."""
        done = 0
        while done < len(buffer):
            number, offset = divmod(begin + done, BLOCK_BYTES)
            part = memoryview(self._block(number))[offset : offset + len(buffer) - done]
            buffer[done : done + len(part)] = part
            done += len(part)

    def startswith(self, prefix: bytes) -> bool:
        return self[: len(prefix)] == prefix

    def rfind(self, sought: bytes) -> int:
        """Where the last occurrence begins, -1 if there is none; reads from the end on."""
        for begin in reversed(range(0, self._size, BLOCK_BYTES)):
            found = self[begin : begin + BLOCK_BYTES + len(sought) - 1].rfind(sought)
            if found >= 0:
                return begin + found
        return -1

    def _block(self, number: int) -> bytes:
        if number not in self._kept:
            if len(self._kept) == _BLOCKS_KEPT:
                self._kept.popitem(last=False)
            begin = number * BLOCK_BYTES
            self._kept[number] = self._read(begin, min(begin + BLOCK_BYTES, self._size))
        self._kept.move_to_end(number)
        return self._kept[number]


Content = bytes | Ranges


class ContentFile(io.RawIOBase):
    """A file of ranges, to be read. What seeks to before the start, as libsndfile does on damaged headers, is there:
    an exception would be printed, from its callback, and not raised."""

    def __init__(self, content: Ranges) -> None:
        super().__init__()
        self.size = len(content)
        self._content, self._at = content, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._at = max(0, offset + (0, self._at, self.size)[whence])
        return self._at

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """All that the buffer takes: libsndfile takes less for the end of the file."""
        asked = memoryview(buffer).cast("B")
        count = max(0, min(len(asked), self.size - self._at))
        self._content.copy_into(asked[:count], self._at)
        self._at += count
        return count


def replaced(content: Content, at: int, value: bytes) -> Content:
    """The content with other bytes at an offset."""
    if isinstance(content, bytes):
        return content[:at] + value + content[at + len(value) :]

    def read(begin: int, end: int) -> bytes:
        block = bytearray(content[begin:end])
        for place in range(max(begin, at), min(end, at + len(value))):
            block[place - begin] = value[place - at]
        return bytes(block)

    return Ranges(len(content), read)
