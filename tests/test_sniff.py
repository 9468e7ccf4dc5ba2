"""What an item is: content over name."""

from __future__ import annotations

import gzip
import io
import zipfile
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from av.stream import Disposition
from PIL import Image
from whole_item import sniff

from batchproj.decode.container import demuxer
from batchproj.decode.extensions import hint
from batchproj.errors import ItemFault
from batchproj.schema import Modality, Reason

NOISE = np.random.default_rng(5).uniform(-0.5, 0.5, 12_000).astype(np.float32)
PICTURE = Image.fromarray(np.random.default_rng(5).integers(0, 256, (24, 32, 3), dtype=np.uint8))


def picture(format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    PICTURE.save(file, format, **options)
    return file.getvalue()


def sound(format: str, subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, NOISE, 24_000, format=format, subtype=subtype)
    return file.getvalue()


def muxed(format: str, audio: str | None = None, video: str | None = None, cover: bool = False) -> bytes:
    """A container with a sound stream, a picture stream, or both; `cover`: the picture is its cover."""
    file = io.BytesIO()
    with av.open(file, "w", format=format) as container:
        streams: list[tuple[Any, Any]] = []
        if audio:
            frame: Any = av.AudioFrame.from_ndarray(np.tile(NOISE, (1, 4)), format="fltp", layout="mono")
            frame.sample_rate = 48_000
            streams.append((container.add_stream(audio, rate=48_000, layout="mono"), frame))
        if video:
            stream: Any = container.add_stream(video, rate=25)
            stream.width = stream.height = 64
            stream.pix_fmt = "yuvj420p" if video == "mjpeg" else "yuv420p"
            if cover:
                stream.disposition = Disposition.attached_pic
            pixels = np.zeros((64, 64, 3), np.uint8)
            streams.append((stream, av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        for stream, frame in streams:
            container.mux([*stream.encode(frame), *stream.encode(None)])
    return file.getvalue()


def fault(data: bytes, name: str) -> ItemFault:
    with pytest.raises(ItemFault) as raised:
        sniff(data, name)
    return raised.value


@pytest.mark.parametrize(
    ("name", "modality"),
    [
        ("a/b/frog.PNG", Modality.IMAGE),
        ("s3://bucket/x.y/frog.spoken.Ogg", Modality.AUDIO),
        ("notes.md", Modality.TEXT),
        ("rows.jsonl", Modality.TEXT),
        ("film.mkv", Modality.VIDEO),
        ("drawing.svg", Modality.IMAGE),
        ("module.ts", None),  # TypeScript or a transport stream
        ("archive.zip", None),
        ("README", None),
        (".jpg", None),
        ("", None),
    ],
)
def test_hint_goes_by_the_extension(name: str, modality: Modality | None):
    assert hint(name) is modality


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("name", ["x.txt", "x.jpg", "x.mp3", "x", "x.zip"])
def test_picture_is_an_image_under_any_name(format: str, name: str):
    assert sniff(picture(format), name) is Modality.IMAGE


@pytest.mark.parametrize("format", ["WAV", "RF64", "FLAC", "OGG", "MP3", "AIFF", "CAF", "AU"])
@pytest.mark.parametrize("name", ["x.txt", "x.jpg", "x.mp4", "x"])
def test_sound_is_audio_under_any_name(format: str, name: str):
    assert sniff(sound(format), name) is Modality.AUDIO


def test_mp3_with_a_tag_before_it():
    tag = b"ID3\x04\0\0\0\0\0\x0a" + b"TIT2\0\0\0\0\0\0"
    assert sniff(tag + sound("MP3"), "x") is Modality.AUDIO


@pytest.mark.parametrize("data", ["héllo\nwörld\n".encode(), b"\xef\xbb\xbfwith a mark", b"x", b'{"a": 1}'])
@pytest.mark.parametrize("name", ["x.txt", "x", "x.zip", "x.JSON"])
def test_utf8_is_text(data: bytes, name: str):
    assert sniff(data, name) is Modality.TEXT


@pytest.mark.parametrize(
    "start", ["BM", "GIF89a", "ID3", "MZ", "BMW", "fLaC", "RIFF....WAVE", "MM", "OggS", "%!", "MAC", "wvpk"]
)
def test_text_that_begins_like_a_format_is_text(start: str):
    assert sniff(f"{start} are letters that begin this sentence.".encode(), "x.txt") is Modality.TEXT
    assert sniff(f"{start} are letters that begin this sentence.".encode(), "x") is Modality.TEXT


@pytest.mark.parametrize(
    ("format", "streams", "modality"),
    [
        ("mp4", {"audio": "aac"}, Modality.AUDIO),
        ("ipod", {"audio": "aac"}, Modality.AUDIO),
        ("adts", {"audio": "aac"}, Modality.AUDIO),
        ("webm", {"audio": "libopus"}, Modality.AUDIO),
        ("matroska", {"audio": "libopus"}, Modality.AUDIO),
        ("ogg", {"audio": "libopus"}, Modality.AUDIO),
        ("mp4", {"audio": "aac", "video": "mjpeg", "cover": True}, Modality.AUDIO),
        ("mp4", {"video": "mpeg4"}, Modality.VIDEO),
        ("mp4", {"audio": "aac", "video": "mpeg4"}, Modality.VIDEO),
        ("mov", {"video": "mpeg4"}, Modality.VIDEO),
        ("matroska", {"audio": "libopus", "video": "mpeg4"}, Modality.VIDEO),
        ("avi", {"video": "mpeg4"}, Modality.VIDEO),
        ("mpeg", {"video": "mpeg1video"}, Modality.VIDEO),
        ("mpegts", {"video": "mpeg1video"}, Modality.VIDEO),
        ("flv", {"video": "flv1"}, Modality.VIDEO),
        ("flv", {"audio": "aac"}, Modality.AUDIO),
        ("avi", {"audio": "mp2"}, Modality.AUDIO),
        ("mpegts", {"audio": "aac"}, Modality.AUDIO),
        ("asf", {"video": "msmpeg4v3"}, Modality.VIDEO),
    ],
)
def test_container_is_what_its_streams_are(format: str, streams: dict[str, Any], modality: Modality):
    data = muxed(format, **streams)
    assert sniff(data, "x.mp4") is modality
    assert sniff(data, "x") is modality


@pytest.mark.parametrize("name", ["x.jpg", "x.wav", "x.mp4", "x.svg"])
def test_page_saved_under_the_name_of_a_medium_is_of_the_wrong_type(name: str):
    refused = fault(b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>", name)
    assert refused.reason is Reason.WRONG_TYPE


DRAWING = b"""<?xml version="1.0"?><!-- made by hand --><!DOCTYPE svg [ <!ENTITY w "3"> ]>
<svg xmlns="http://www.w3.org/2000/svg"><path d="M0 0L1 1"/></svg>"""


def test_svg_is_not_opened_but_stays_text_where_the_name_says_so():
    assert fault(DRAWING, "x.svg").reason is Reason.UNSUPPORTED_FORMAT
    assert fault(b"\xef\xbb\xbf <svg/>".replace(b"/", b" /"), "x").reason is Reason.UNSUPPORTED_FORMAT
    assert sniff(DRAWING, "x.xml") is Modality.TEXT
    assert sniff(b"<p>an <svg> element</p>", "x") is Modality.TEXT


def test_svg_search_is_linear_on_hostile_text():
    assert sniff(b"<!---->" * 600, "x") is Modality.TEXT


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", "text")
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        zipped(),
        gzip.compress(b"text", mtime=0),
        b"%PDF-1.7\n%text only",
        b"%PDF-1.7\n%\xe2\xe3\xcf\xd3",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"\xc5\xd0\xd3\xc6" + bytes(28),
        b"8BPS\0\1" + bytes(20),
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        b"\0\0\0\x18ftypavif\0\0\0\0mif1avif",
        b"II*\0\x10\0\0\0CR\2\0" + bytes(20),
        b"\0\0\1\0\1\0\x10\x10" + bytes(20),
        b"\x7fELF\2\1\1" + bytes(60),
        b"MZ\x90\0\3" + bytes(60),
        b"MThd\0\0\0\6\0\1\0\1\0\x60",
        b"\xff\x0a\xfa\x1f" + bytes(20),
        b"SQLite format 3\0" + bytes(20),
    ],
)
@pytest.mark.parametrize("name", ["x.jpg", "x.txt", "x"])
def test_known_formats_that_are_not_opened(data: bytes, name: str):
    assert fault(data, name).reason is Reason.UNSUPPORTED_FORMAT


def test_empty():
    assert fault(b"", "x.png").reason is Reason.EMPTY


@pytest.mark.parametrize("data", ["naïve".encode("latin-1"), b"text with \0 in it", b"good\n" * 400_000 + b"\xff"])
def test_bytes_without_a_mark_go_by_the_name(data: bytes):
    assert sniff(data, "x.csv") is Modality.TEXT  # decode_text then says where it is wrong
    assert fault(data, "x.png").reason is Reason.CORRUPT
    assert fault(data, "x").reason is Reason.UNKNOWN_TYPE


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_utf16_is_refused_with_advice(encoding: str):
    refused = fault("frog".encode(encoding), "x.txt")
    assert refused.reason is Reason.INVALID_UTF8
    assert "UTF-8" in refused.detail


def outcome(data: bytes, name: str) -> Modality | Reason:
    try:
        return sniff(data, name)
    except ItemFault as refused:
        return refused.reason


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WAV", "FLAC", "OGG", "MP3", "mp4", "webm"])
def test_a_header_cut_anywhere_is_a_fault_or_a_modality(kind: str):
    if kind in ("PNG", "JPEG"):
        data = picture(kind)
    elif kind in ("mp4", "webm"):
        data = muxed(kind, "aac" if kind == "mp4" else "libopus")
    else:
        data = sound(kind)
    outcomes = {outcome(data[:size], name) for size in range(1, 60) for name in (f"x.{kind.lower()}", "x")}
    assert outcomes <= {*Modality, *Reason}
    assert Modality.VIDEO not in outcomes


def test_container_that_does_not_open_is_a_fault():
    data = muxed("mp4", "aac")
    assert fault(data[: len(data) // 2], "x.m4a").reason is Reason.TRUNCATED
    assert fault(b"\x1a\x45\xdf\xa3" + bytes(100), "x.webm").reason is Reason.CORRUPT


def test_playlists_of_ffmpeg_are_never_followed():
    """FFmpeg, left to guess, would open the files and URLs that such bytes name."""
    for playlist in (
        b"ffconcat version 1.0\nfile 'other.wav'\n",
        b"#EXTM3U\n#EXTINF:1,\nhttp://localhost/a.ts\n",
    ):
        assert demuxer(playlist) is None
        assert sniff(playlist, "x.txt") is Modality.TEXT
        assert fault(playlist, "x").reason is Reason.UNSUPPORTED_FORMAT
        assert fault(playlist, "x.mp4").reason is Reason.UNSUPPORTED_FORMAT
