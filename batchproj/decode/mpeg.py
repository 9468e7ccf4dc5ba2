"""Frames of MPEG audio (layers II and III: MP3, MP2), enough to know one and to count its bytes.

Source: ISO/IEC 11172-3 and 13818-3, section 2.4.2.3 (frame header); Xing/Info header as LAME writes it.
"""

from __future__ import annotations

from dataclasses import dataclass

from batchproj.decode.content import Content

_KBPS_V1_L2 = (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384)
_KBPS_V1_L3 = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_KBPS_V2 = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_HZ_V1 = (44100, 48000, 32000)
_VERSION_2_5, _VERSION_1 = 0, 3
_LAYER_3, _LAYER_2 = 1, 2
_ID3_HEADER_BYTES = 10


@dataclass(frozen=True)
class Frame:
    """One frame's header: the frame's length in bytes, and where a Xing header would sit in it."""

    length: int
    xing_offset: int


def frame_at(data: Content, position: int) -> Frame | None:
    """The frame whose header starts at `position`, or None if no valid header is there."""
    if position + 4 > len(data):
        return None
    header = int.from_bytes(data[position : position + 4], "big")
    version, layer = (header >> 19) & 3, (header >> 17) & 3
    bitrate, rate, padding = (header >> 12) & 15, (header >> 10) & 3, (header >> 9) & 1
    mono = (header >> 6) & 3 == 3
    if header >> 21 != 0x7FF or version == 1 or layer not in (_LAYER_2, _LAYER_3):
        return None
    if bitrate in (0, 15) or rate == 3:
        return None
    first_version = version == _VERSION_1
    kbps_by_index = (_KBPS_V1_L3 if layer == _LAYER_3 else _KBPS_V1_L2) if first_version else _KBPS_V2
    hertz = _HZ_V1[rate] >> (0 if first_version else 2 if version == _VERSION_2_5 else 1)
    per_kbps = 72_000 if layer == _LAYER_3 and not first_version else 144_000
    side_info = (17 if mono else 32) if first_version else (9 if mono else 17)
    return Frame(per_kbps * kbps_by_index[bitrate - 1] // hertz + padding, 4 + side_info)


def first_frame(data: Content) -> int:
    """Where the first frame should start: after the ID3v2 tag, if there is one."""
    if not data.startswith(b"ID3") or len(data) < _ID3_HEADER_BYTES:
        return 0
    size = 0
    for byte in data[6:10]:
        size = size << 7 | byte & 0x7F
    footer = _ID3_HEADER_BYTES if data[5] & 0x10 else 0
    return _ID3_HEADER_BYTES + size + footer


def is_mpeg_audio(data: Content) -> bool:
    """Whether bytes without a tag are MPEG audio: two frames in a row, or one that ends the file."""
    frame = frame_at(data, 0)
    if frame is None:
        return False
    return frame.length + 4 > len(data) or frame_at(data, frame.length) is not None


def is_adts(data: Content, position: int = 0) -> bool:
    """Whether AAC in ADTS frames starts at `position`: two in a row, or one that ends the file."""
    length = _adts_length(data, position)
    if length is None:
        return False
    second = position + length
    return second + 7 > len(data) or _adts_length(data, second) is not None


def _adts_length(data: Content, position: int) -> int | None:
    """Length of the ADTS frame at `position` (ISO/IEC 13818-7, section 6.2), None if none is there."""
    header = data[position : position + 7]
    if len(header) < 7 or header[0] != 0xFF or header[1] & 0xF6 != 0xF0:
        return None
    length = (header[3] & 3) << 11 | header[4] << 3 | header[5] >> 5
    return length if length > 7 and header[2] >> 2 & 15 < 13 else None


@dataclass(frozen=True)
class XingHeader:
    """What a Xing or Info header states: bytes of sound; and the length of the frame it stands in."""

    declared: int
    present: int
    own_frame: int


def xing_header(data: Content) -> XingHeader | None:
    """The header in the first frame, None if there is none or if it states no bytes."""
    begin = first_frame(data)
    frame = frame_at(data, begin)
    if frame is None:
        return None
    position = begin + frame.xing_offset
    if data[position : position + 4] not in (b"Xing", b"Info") or position + 16 > len(data):
        return None
    flags = int.from_bytes(data[position + 4 : position + 8], "big")
    if not flags & 2:
        return None
    field = position + (12 if flags & 1 else 8)
    declared = int.from_bytes(data[field : field + 4], "big")
    return XingHeader(declared, len(data) - begin, frame.length)
