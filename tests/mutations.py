"""Ways to damage a file, as disks, networks, other people's writers and attackers do; decided by a seed alone."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import numpy as np

Rng = np.random.Generator
Change = Callable[[bytes, bytes, Rng], bytes]

_SIZES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 1 << 62, 1 << 63)
"""What length fields and counts are set to, as far as they have the room."""

_WORDS = (
    *(b"\0 \n \r\n \" ' { } [ ] : , # & * ! % | > - -1 0 1e999 NaN .inf ~ null true 99999999999999999999".split(b" ")),
    *(b"&a [*a] *a !!python/object/apply:os.system [x] 2024-99-99 0x 1:99 ../../x file:///etc/passwd \xff".split(b" ")),
    *("\u202e \ufeff \x1b[31m 🐸 \u0661 \\ud800 \\u0000 =cmd ::".encode().split(b" ")),
    b'"a": ' * 3,
    b"[" * 3_000,
    b'{"a":' * 3_000,
    b"x" * 5_000,
)
"""What is put into text, and into the names and numbers that binary files have in letters."""


def mutated(data: bytes, other: bytes, rng: Rng) -> bytes:
    """`data` after a few changes, most often one, some of them with parts of `other`, another whole file.

    In every second case the checksums that would give the damage away are made right.
    """
    text = is_text(data)
    for _ in range(rng.geometric(0.5)):
        changes = _OF_TEXT if text and rng.random() < 0.7 else _CHANGES
        data = changes[rng.integers(len(changes))](data, other, rng)
    return data if text or rng.random() < 0.5 else repaired(data)


def is_text(data: bytes) -> bool:
    try:
        return "\0" not in data.decode()
    except UnicodeDecodeError:
        return False


def _place(size: int, rng: Rng) -> int:
    """As often near one of the ends, where headers and directories are, as anywhere."""
    near = int(size ** rng.random()) - 1
    return (near, size - 1 - near, int(rng.integers(max(1, size))))[rng.integers(3)]


def _span(data: bytes, rng: Rng) -> tuple[int, int]:
    begin = max(0, _place(len(data), rng))
    return begin, min(len(data), begin + int(max(1, len(data) // 3) ** rng.random()))


def _flip_bits(data: bytes, _: bytes, rng: Rng) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.integers(1, 9)):
        if changed:
            changed[_place(len(changed), rng)] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _set_bytes(data: bytes, _: bytes, rng: Rng) -> bytes:
    """A run of one value: zeros as a hole in a file has, 0xFF as erased flash."""
    begin, end = _span(data, rng)
    return data[:begin] + bytes([(0, 0xFF, 0x7F, 0x80)[rng.integers(4)]]) * (end - begin) + data[end:]


def _randomise(data: bytes, _: bytes, rng: Rng) -> bytes:
    begin, end = _span(data, rng)
    return data[:begin] + rng.bytes(end - begin) + data[end:]


def _set_field(data: bytes, _: bytes, rng: Rng) -> bytes:
    """A number of 1, 2, 4 or 8 bytes in either order: to a border, or one more or less than it is."""
    width, order = int(2 ** rng.integers(4)), ("little", "big")[rng.integers(2)]
    begin = max(0, _place(len(data), rng))
    if rng.random() < 0.3:
        value = int.from_bytes(data[begin : begin + width], order) + (-1, 1)[rng.integers(2)]  # type: ignore[arg-type]
    else:
        value = _SIZES[rng.integers(len(_SIZES))]
    return data[:begin] + (value % 256**width).to_bytes(width, order) + data[begin + width :]  # type: ignore[arg-type]


def _cut_out(data: bytes, _: bytes, rng: Rng) -> bytes:
    begin, end = _span(data, rng)
    return data[:begin] + data[end:]


def _double(data: bytes, _: bytes, rng: Rng) -> bytes:
    begin, end = _span(data, rng)
    return data[:end] + data[begin:end] * int(rng.integers(1, 4)) + data[end:]


def _swap(data: bytes, _: bytes, rng: Rng) -> bytes:
    (a, b), (c, d) = sorted((_span(data, rng), _span(data, rng)))
    return data if b > c else data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def _insert_other(data: bytes, other: bytes, rng: Rng) -> bytes:
    begin, end = _span(other, rng)
    at = max(0, _place(len(data), rng))
    return data[:at] + other[begin:end] + data[at:]


def _overwrite_by_other(data: bytes, other: bytes, rng: Rng) -> bytes:
    begin, end = _span(other, rng)
    at = max(0, _place(len(data), rng))
    return data[:at] + other[begin:end] + data[at + end - begin :]


def _truncate(data: bytes, _: bytes, rng: Rng) -> bytes:
    return data[: max(0, _place(len(data), rng))]


def _take_header(data: bytes, other: bytes, rng: Rng) -> bytes:
    """The first bytes of one format on another's body."""
    size = int(rng.integers(1, 65))
    return other[:size] + data[size:]


def _insert_word(data: bytes, _: bytes, rng: Rng) -> bytes:
    at = max(0, _place(len(data), rng))
    return data[:at] + _WORDS[rng.integers(len(_WORDS))] + data[at:]


def _replace_value(data: bytes, _: bytes, rng: Rng) -> bytes:
    """What stands between two of the marks that texts are divided by."""
    marks = [at for at, byte in enumerate(data) if byte in b':,"\n{}[] ']
    if not marks:
        return data
    number = int(rng.integers(len(marks)))
    end = marks[number + 1] if number + 1 < len(marks) else len(data)
    return data[: marks[number] + 1] + _WORDS[rng.integers(len(_WORDS))] + data[end:]


_CHANGES: tuple[Change, ...] = (
    _flip_bits,
    _flip_bits,
    _set_bytes,
    _randomise,
    _set_field,
    _set_field,
    _set_field,
    _cut_out,
    _double,
    _swap,
    _insert_other,
    _overwrite_by_other,
    _truncate,
    _take_header,
    _insert_word,
)
_OF_TEXT: tuple[Change, ...] = (_insert_word, _replace_value, _replace_value, _cut_out, _double, _swap)


# --- checksums ---------------------------------------------------------------------------------


def repaired(data: bytes) -> bytes:
    """With right checksums, where it is a PNG, OGG or tar: else most changes get no further than them."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(data)
    if data.startswith(b"OggS"):
        return _ogg(data)
    return _tar(data) if data[257:262] == b"ustar" else data


def _png(data: bytes) -> bytes:
    fixed, at = bytearray(data), 8
    while at + 12 <= len(fixed):
        end = at + 8 + int.from_bytes(fixed[at : at + 4], "big")
        if end + 4 > len(fixed):
            break
        fixed[end : end + 4] = struct.pack(">I", zlib.crc32(fixed[at + 4 : end]))
        at = end + 4
    return bytes(fixed)


def _ogg(data: bytes) -> bytes:
    fixed = bytearray(data)
    at = 0
    while (at := data.find(b"OggS", at)) >= 0 and at + 27 <= len(data):
        segments = data[26 + at]
        end = at + 27 + segments + sum(data[at + 27 : at + 27 + segments])
        fixed[at + 22 : at + 26] = bytes(4)
        fixed[at + 22 : at + 26] = struct.pack("<I", _ogg_crc(bytes(fixed[at:end])))
        at += 4
    return bytes(fixed)


def _ogg_crc(page: bytes) -> int:
    """RFC 3533, section 6: polynomial 0x04c11db7, neither reflected nor inverted."""
    crc = 0
    for byte in page:
        crc = (crc << 8) & 0xFFFF_FFFF ^ _OGG_TABLE[crc >> 24 ^ byte]
    return crc


def _ogg_table() -> list[int]:
    table = []
    for index in range(256):
        value = index << 24
        for _ in range(8):
            value = (value << 1) & 0xFFFF_FFFF ^ (0x04C1_1DB7 if value >> 31 else 0)
        table.append(value)
    return table


_OGG_TABLE = _ogg_table()


def _tar(data: bytes) -> bytes:
    """Of every block that looks like a header."""
    fixed = bytearray(data)
    for at in range(0, len(fixed) - 511, 512):
        if fixed[at + 257 : at + 262] == b"ustar":
            fixed[at + 148 : at + 156] = b" " * 8
            fixed[at + 148 : at + 156] = b"%06o\0 " % sum(fixed[at : at + 512])
    return bytes(fixed)
