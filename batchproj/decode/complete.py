"""Is the file all there? Decoders take a cut WAV, OGG, MP3, MP4, AVI or WebM without a word."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from batchproj.decode import mpeg
from batchproj.decode.content import Content
from batchproj.decode.faults import one_line

_STREAMED_BYTES = 0x7FFF_F000
"""A RIFF size from here on comes from a writer that could not seek back (sox, arecord, ffmpeg)."""
_EBML, _MATROSKA_SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_OGG_HEADER_BYTES = 27
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNK_BYTES = 12
"""Of length, name and checksum around a chunk's content."""
_OGG_END_OF_STREAM = 4


def shortfall(data: Content) -> str | None:
    """One line on what is missing at the end of a sound or film; None if it looks whole.

    Reads the lengths that WAV, AIFF, AU, OGG, MP4, AVI, WebM and MP3 (with a Xing header) state. FLAC
    states samples, not bytes: the decoder counts them. A cut CAF, ADTS, ASF, FLV or MPEG stream goes
    unseen here, and so does a film that was never finished (a live WebM, an AVI of a crashed recorder).
    """
    form = data[8:12]
    if data[:4] == b"RIFF" and form == b"AVI ":
        return _avi_shortfall(data)
    if data[:4] == _EBML:
        return _matroska_shortfall(data)
    if data[:4] in (b"RIFF", b"RF64") and form == b"WAVE":
        return _wav_shortfall(data)
    if data[:4] == b"FORM" and form in (b"AIFF", b"AIFC"):
        return _short_of("AIFF form", int.from_bytes(data[4:8], "big"), len(data) - 8)
    if data[:4] == b"OggS":
        return _ogg_shortfall(data)
    if data[4:8] in (b"ftyp", b"moov"):
        return _boxes_shortfall(data)
    if data[:4] == b".snd":
        start, size = struct.unpack(">II", data[4:12].ljust(8, b"\0"))
        return None if size == 0xFFFF_FFFF else _short_of("AU data", size, len(data) - start)
    if xing := mpeg.xing_header(data):
        # Encoders disagree on whether the frame of this header counts itself.
        return _short_of("MPEG sound", xing.declared - xing.own_frame, xing.present)
    return None


def png_shortfall(data: bytes) -> str | None:
    """The same of a PNG, behind whose pixels other chunks may stand: the last one is IEND (PNG 1.2, section 4.1.4).

    What follows that is no part of it.
    """
    position = len(_PNG)
    while position + _PNG_CHUNK_BYTES <= len(data):
        size, name = struct.unpack_from(">I4s", data, position)
        if name == b"IEND":
            return None
        position += size + _PNG_CHUNK_BYTES
    return "PNG file ends before its last chunk, IEND"


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


def wav_data(data: Content) -> WavData | None:
    """Find the data chunk of a RIFF or RF64 file; None if the file ends before it."""
    position, long_size = 12, 0
    while position + 8 <= len(data):
        name, size = struct.unpack("<4sI", data[position : position + 8])
        start = position + 8
        if name == b"ds64" and start + 16 <= len(data):
            long_size = int.from_bytes(data[start + 8 : start + 16], "little")
        if name == b"data":
            if data[:4] == b"RF64" and size == 0xFFFF_FFFF and long_size:
                return WavData(start, long_size, streamed=False)
            finished = int.from_bytes(data[4:8], "little") == len(data) - 8
            return WavData(start, size, streamed=size >= _STREAMED_BYTES or (size == 0 and not finished))
        position = start + size + size % 2
    return None


def _wav_shortfall(data: Content) -> str | None:
    found = wav_data(data)
    if found is None:
        return "WAV file ends before its samples"
    return None if found.streamed else _short_of("WAV data", found.declared, len(data) - found.start)


def _ogg_shortfall(data: Content) -> str | None:
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


def _boxes_shortfall(data: Content) -> str | None:
    """Walk the top boxes of an MP4 or QuickTime file (ISO/IEC 14496-12, section 4.2)."""
    position = 0
    while position + 8 <= len(data):
        size, name = struct.unpack(">I4s", data[position : position + 8])
        if size == 1 and position + 16 <= len(data):
            size = int.from_bytes(data[position + 8 : position + 16], "big")
        if size == 0:  # to the end of the file
            return None
        if size < 8:
            return None  # not a box: for the decoder to refuse
        if position + size > len(data):
            label = one_line(name.decode("latin-1"))
            return _short_of(f"MP4 box '{label}'", size, len(data) - position)
        position += size
    return None


def _avi_shortfall(data: Content) -> str | None:
    """The first RIFF chunk; films above 1 GB have more of them (OpenDML 1.02)."""
    declared = int.from_bytes(data[4:8], "little")
    return None if declared >= _STREAMED_BYTES else _short_of("AVI file", declared, len(data) - 8)


def _matroska_shortfall(data: Content) -> str | None:
    """The segment, the one element after the EBML header (RFC 8794, section 4; RFC 9559, section 5)."""
    header = _element_size(data, len(_EBML))
    if header is None:
        return None
    begin = header[0] + header[1]
    if data[begin : begin + len(_MATROSKA_SEGMENT)] != _MATROSKA_SEGMENT:
        return None  # for the decoder to refuse
    segment = _element_size(data, begin + len(_MATROSKA_SEGMENT))
    return None if segment is None else _short_of("Matroska segment", segment[1], len(data) - segment[0])


def _element_size(data: Content, position: int) -> tuple[int, int] | None:
    """Where an EBML element's content begins, and its size: None if that is cut off, invalid or left open."""
    first = data[position] if position < len(data) else 0
    length = 9 - first.bit_length()
    if not first or position + length > len(data):
        return None
    size = int.from_bytes(data[position : position + length], "big") & (1 << 7 * length) - 1
    return None if size == (1 << 7 * length) - 1 else (position + length, size)
