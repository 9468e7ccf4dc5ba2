"""Sound and film formats that PyAV opens, and what streams are inside."""

from __future__ import annotations

import io
from typing import NoReturn

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from batchproj.decode import mpeg
from batchproj.decode.content import Content, ContentFile
from batchproj.schema import Modality

_BY_MAGIC = (
    (0, b"OggS", "ogg"),
    (0, b"\x1a\x45\xdf\xa3", "matroska"),  # WebM too
    (4, b"ftyp", "mov"),  # MP4, M4A, 3GP, QuickTime
    (4, b"moov", "mov"),
    (4, b"mdat", "mov"),
    (4, b"wide", "mov"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),  # WMA, WMV
    (0, b"FLV\x01", "flv"),
    (0, b"\0\0\x01\xba", "mpeg"),
    (0, b"fLaC", "flac"),
    (0, b"#!AMR", "amr"),
    (0, b"caff", "caf"),
    (0, b".snd", "au"),
)
_BY_FORM = {b"WAVE": "wav", b"AIFF": "aiff", b"AIFC": "aiff", b"AVI ": "avi"}
_TRANSPORT_SYNC = 0x47
_TRANSPORT_PACKETS = ((0, 188), (4, 192))
"""Where the first packet's sync byte stands in a transport stream, and how far apart they are; of discs the latter."""
MIXED = frozenset({"ogg", "matroska", "mov", "asf", "avi", "flv", "mpeg", "mpegts"})
"""Containers that hold sound alone as readily as film."""


def demuxer(data: Content) -> str | None:
    """Name of the FFmpeg demuxer for these bytes, None if we hand such bytes to no demuxer."""
    if data[:4] in (b"RIFF", b"RF64", b"FORM"):
        return _BY_FORM.get(data[8:12])
    for offset, magic, name in _BY_MAGIC:
        if data[offset : offset + len(magic)] == magic:
            return name
    if _is_transport_stream(data):
        return "mpegts"
    if mpeg.is_adts(data, mpeg.first_frame(data)):
        return "aac"
    return "mp3" if data[:3] == b"ID3" or mpeg.is_mpeg_audio(data) else None


def _is_transport_stream(data: Content) -> bool:
    return any(
        len(data) > first + 2 * step and data[first] == data[first + step] == data[first + 2 * step] == _TRANSPORT_SYNC
        for first, step in _TRANSPORT_PACKETS
    )


def open_container(data: Content, name: str) -> InputContainer:
    """Open with this demuxer and no other; the caller closes.

    The name is never left to FFmpeg to guess: among its formats are playlists, whose bytes could
    make it open other files and URLs; and should a demuxer try that, it is refused. Titles and other tags
    need not be UTF-8: nobody reads them. Raises what PyAV raises.
    """
    file = io.BytesIO(data) if isinstance(data, bytes) else ContentFile(data)
    opened: InputContainer = av.open(file, mode="r", format=name, io_open=_refuse, metadata_errors="replace")
    return opened


def _refuse(url: str, _flags: int, _options: dict[str, str]) -> NoReturn:
    raise PermissionError(f"an item may not open {url}")


def modality_of(container: InputContainer) -> Modality | None:
    """VIDEO if pictures move in it, AUDIO if there is only sound; a cover picture counts for nothing."""
    if moving_pictures(container) is not None:
        return Modality.VIDEO
    return Modality.AUDIO if container.streams.audio else None


def moving_pictures(container: InputContainer) -> VideoStream | None:
    """The first stream of moving pictures, None if there is none; a cover picture counts for nothing."""
    streams = container.streams.video
    return next((stream for stream in streams if not stream.disposition & Disposition.attached_pic), None)
