"""Is the file all there? Sound decoders take a cut WAV, OGG, MP3 or MP4 without a word."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from batchproj.decode import mpeg
from batchproj.decode.faults import one_line

_STREAMED_BYTES = 0x7FFF_F000
"""A RIFF size from here on comes from a writer that could not seek back (sox, arecord, ffmpeg)."""
_OGG_HEADER_BYTES = 27
_OGG_END_OF_STREAM = 4


def shortfall(data: bytes) -> str | None:
    """One line on what is missing at the end of a sound file; None if it looks whole.

    Reads the lengths that WAV, AIFF, AU, OGG, MP4 and MP3 (with a Xing header) state. FLAC states
    samples, not bytes: the decoder counts them. A cut CAF, WebM or ADTS file goes unseen here.
    """
    form = data[8:12]
    if data[:4] in (b"RIFF", b"RF64") and form == b"WAVE":
        return _wav_shortfall(data)
    if data[:4] == b"FORM" and form in (b"AIFF", b"AIFC"):
        return _short_of("AIFF form", int.from_bytes(data[4:8], "big"), len(data) - 8)
    if data[:4] == b"OggS":
        return _ogg_shortfall(data)
    if data[4:8] in (b"ftyp", b"moov"):
        return _boxes_shortfall(data)
    if data[:4] == b".snd":
        start, size = struct.unpack_from(">II", data.ljust(12, b"\0"), 4)
        return None if size == 0xFFFF_FFFF else _short_of("AU data", size, len(data) - start)
    if xing := mpeg.xing_header(data):
        # Encoders disagree on whether the frame of this header counts itself.
        return _short_of("MPEG sound", xing.declared - xing.own_frame, xing.present)
    return None


def _short_of(what: str, declared: int, present: int) -> str | None:
    if declared <= present:
        return None
    return f"{what} of {declared} bytes, {max(present, 0)} are there"


@dataclass(frozen=True)
class WavData:
    """Where the samples of a WAV start, and how many bytes of them the header states."""

    start: int
    declared: int
    streamed: bool  # written to a pipe: the size was never filled in


def wav_data(data: bytes) -> WavData | None:
    """Find the data chunk of a RIFF or RF64 file; None if the file ends before it."""
    position, long_size = 12, 0
    while position + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, position)
        start = position + 8
        if name == b"ds64" and start + 16 <= len(data):
            (long_size,) = struct.unpack_from("<Q", data, start + 8)
        if name == b"data":
            if data[:4] == b"RF64" and size == 0xFFFF_FFFF and long_size:
                return WavData(start, long_size, streamed=False)
            finished = int.from_bytes(data[4:8], "little") == len(data) - 8
            return WavData(start, size, streamed=size >= _STREAMED_BYTES or (size == 0 and not finished))
        position = start + size + size % 2
    return None


def _wav_shortfall(data: bytes) -> str | None:
    found = wav_data(data)
    if found is None:
        return "WAV file ends before its samples"
    return None if found.streamed else _short_of("WAV data", found.declared, len(data) - found.start)


def _ogg_shortfall(data: bytes) -> str | None:
    """Look at the last page: it must be whole and must say that the stream ends with it.

    Source: RFC 3533, section 6 (page header: flags in byte 5, lacing values from byte 27).
    """
    page = data.rfind(b"OggS")
    header = data[page : page + _OGG_HEADER_BYTES]
    if len(header) < _OGG_HEADER_BYTES:
        return "last OGG page is cut in its header"
    lacing = data[page + _OGG_HEADER_BYTES : page + _OGG_HEADER_BYTES + header[26]]
    end = page + _OGG_HEADER_BYTES + header[26] + sum(lacing)
    if len(lacing) < header[26] or end > len(data):
        return "last OGG page is cut"
    if not header[5] & _OGG_END_OF_STREAM:
        return "no OGG page says that the stream ends"
    return None


def _boxes_shortfall(data: bytes) -> str | None:
    """Walk the top boxes of an MP4 or QuickTime file (ISO/IEC 14496-12, section 4.2)."""
    position = 0
    while position + 8 <= len(data):
        size, name = struct.unpack_from(">I4s", data, position)
        if size == 1 and position + 16 <= len(data):
            (size,) = struct.unpack_from(">Q", data, position + 8)
        if size == 0:  # to the end of the file
            return None
        if size < 8:
            return None  # not a box: for the decoder to refuse
        if position + size > len(data):
            label = one_line(name.decode("latin-1"))
            return _short_of(f"MP4 box '{label}'", size, len(data) - position)
        position += size
    return None
