"""What an item is: from its bytes, with its name as a hint."""

from __future__ import annotations

import codecs
import re

import filetype

from batchproj.decode import mpeg
from batchproj.decode.complete import shortfall
from batchproj.decode.container import MIXED, demuxer, modality_of, open_container
from batchproj.decode.content import Content
from batchproj.decode.extensions import hint, picture_named
from batchproj.decode.faults import refusals_as_faults
from batchproj.errors import ItemFault
from batchproj.schema import Modality, Reason

_MAGIC = (
    (b"\x89PNG", Modality.IMAGE),
    (b"\xff\xd8\xff", Modality.IMAGE),
    (b"GIF87a", Modality.IMAGE),
    (b"GIF89a", Modality.IMAGE),
    (b"II*\0", Modality.IMAGE),
    (b"MM\0*", Modality.IMAGE),
    (b"II+\0", Modality.IMAGE),
    (b"MM\0+", Modality.IMAGE),
    (b"fLaC", Modality.AUDIO),
    (b"ID3", Modality.AUDIO),
    (b".snd", Modality.AUDIO),
    (b"caff", Modality.AUDIO),
    (b"#!AMR", Modality.AUDIO),
    (b"\0\0\x01\xb3", Modality.VIDEO),  # MPEG without a container
)
_MAGICS = tuple(magic for magic, _ in _MAGIC)
_FORMS = {
    b"WAVE": Modality.AUDIO,
    b"AIFF": Modality.AUDIO,
    b"AIFC": Modality.AUDIO,
    b"WEBP": Modality.IMAGE,
}
_BMP_HEADER_BYTES = frozenset({12, 40, 52, 56, 64, 108, 124})
_PICTURE_BRANDS = (b"hei", b"hev", b"mif1", b"msf1", b"avif", b"avis", b"crx ")
_UNSUPPORTED_TEXT = ((b"%PDF-", "PDF"), (b"%!PS", "PostScript"), (b"{\\rtf", "RTF"))
_UNSUPPORTED = (
    *_UNSUPPORTED_TEXT,
    (b"\xc5\xd0\xd3\xc6", "EPS"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"wvpk", "WavPack"),
    (b"MAC ", "Monkey's Audio"),
    (b"SIMPLE  =", "FITS"),
)
_PICTURES = (
    (b"\x89PNG", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF8", "GIF"),
    (b"RIFF", "WebP"),
    (b"BM", "BMP"),
    (b"II", "TIFF"),
    (b"MM", "TIFF"),
)
_POINTER = b"version https://git-lfs.github.com/spec/"
_PLAYLISTS = (b"#EXTM3U", b"ffconcat version", b"[playlist]")
_UTF16_BOMS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_CHECK_BYTES = 1 << 20
_SVG = re.compile(rb"(?>\s+|<\?.*?\?>|<!--.*?-->|<![^>]*>|\]>)*+<(?:svg:)?svg[\s>]", re.DOTALL)
_HEAD_BYTES = 4096
# Ours by stricter rules than `filetype` has: its word for them, on bytes that we did not know, is void.
_OURS = frozenset(
    {f"image/{name}" for name in ("jpeg", "png", "apng", "gif", "bmp", "tiff", "webp")}
    | {f"audio/{name}" for name in ("mpeg", "aac", "mp4", "ogg", "x-flac", "x-wav", "amr", "x-aiff")}
    | {kind.mime for kind in filetype.video_matchers}
)


def from_outside(data: bytes, name: str) -> Modality | None:
    """Modality of the content; `data` is the whole file.

    Content wins over the name: a PNG called `.txt` is an image. The name decides only what content
    cannot: text under a medium's name is an error page, not a medium (WRONG_TYPE), and bytes that
    are neither text nor known are CORRUPT under a medium's name, TEXT under a text's (decode then
    says which byte is wrong), UNKNOWN_TYPE otherwise.

    None is for a container that must be opened: `look_inside`, which a decoder process does.

    Raises ItemFault: EMPTY, UNKNOWN_TYPE, WRONG_TYPE, UNSUPPORTED_FORMAT, INVALID_UTF8 (UTF-16), CORRUPT.
    """
    if not data:
        raise ItemFault(Reason.EMPTY, "0 bytes")
    expected = hint(name)
    if _is_text(data):
        # Magic bytes made of letters ("GIF89a", "ID3") begin many a text, never a whole medium.
        is_medium = expected not in (None, Modality.TEXT) and _known(data) is expected
        return expected if is_medium else _text(data, expected)
    _refuse_by_magic(data)
    if (found := _known(data)) is not None:
        return found
    return None if demuxer(data) in MIXED else _unknown(data, expected)


def misnamed(data: bytes, name: str, found: Modality) -> str | None:
    """In a few words what the name promises in vain, of content that is embedded as what it is; None if it keeps it."""
    if found is Modality.TEXT:  # under a medium's name it is refused before (`from_outside`)
        return None
    if (expected := hint(name)) not in (None, found):
        return f"named as {expected}, it is {found}"
    if found is not Modality.IMAGE or (promised := picture_named(name)) is None:
        return None
    is_format = next((label for magic, label in _PICTURES if data.startswith(magic)), None)
    if is_format in (None, promised):
        return None
    return f"named as {promised}, it is {is_format}"


def sound_of(film: Modality) -> Modality:
    """AUDIO, of the sound track of what is a film; raises ItemFault NO_SOUND_TRACK for what is none."""
    if film is not Modality.VIDEO:
        raise ItemFault(Reason.NO_SOUND_TRACK, f"no film but {film}, which is embedded by itself")
    return Modality.AUDIO


def _known(data: bytes) -> Modality | None:
    """Modality by magic bytes that leave no doubt."""
    if data.startswith(_MAGICS):
        return next(modality for magic, modality in _MAGIC if data.startswith(magic))
    if data[:4] in (b"RIFF", b"RF64", b"FORM"):
        return _FORMS.get(data[8:12])
    if data[:2] == b"BM" and int.from_bytes(data[14:18], "little") in _BMP_HEADER_BYTES:
        return Modality.IMAGE
    if mpeg.is_mpeg_audio(data) or mpeg.is_adts(data):
        return Modality.AUDIO
    return None


def _is_text(data: bytes) -> bool:
    """Whether all of it is UTF-8 without NUL; in pieces, so that a film is known by its first."""
    if data.isascii():  # as most short texts are: no decoder is wanted
        return b"\0" not in data
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for begin in range(0, len(data), _CHECK_BYTES):
            piece = data[begin : begin + _CHECK_BYTES]
            if b"\0" in piece:
                return False
            decoder.decode(piece, final=begin + _CHECK_BYTES >= len(data))
    except UnicodeDecodeError:
        return False
    return True


def _text(data: bytes, expected: Modality | None) -> Modality:
    """What to make of bytes that are text."""
    _refuse_by_magic(data, _UNSUPPORTED_TEXT)  # others have letters that begin many a text: "MAC "
    if data.startswith(_POINTER):
        raise ItemFault(Reason.WRONG_TYPE, "a Git LFS pointer and not the file: run `git lfs pull` where it came from")
    if expected is Modality.TEXT:
        return Modality.TEXT
    if data.removeprefix(codecs.BOM_UTF8).startswith(_PLAYLISTS):
        raise ItemFault(Reason.UNSUPPORTED_FORMAT, "a playlist is not opened: it only names other files")
    if _SVG.match(data[:_HEAD_BYTES].removeprefix(codecs.BOM_UTF8)):
        raise ItemFault(Reason.UNSUPPORTED_FORMAT, "SVG is not opened: draw it to PNG first")
    if expected is None:
        return Modality.TEXT
    raise ItemFault(Reason.WRONG_TYPE, f"named as {expected} but it is text, as an error page would be")


def _refuse_by_magic(data: bytes, magics: tuple[tuple[bytes, str], ...] = _UNSUPPORTED) -> None:
    """Raise UNSUPPORTED_FORMAT for what is recognised by strict magic bytes and not opened."""
    for magic, label in magics:
        if data.startswith(magic):
            raise ItemFault(Reason.UNSUPPORTED_FORMAT, f"{label} is not opened")
    if data[4:8] == b"ftyp" and data[8:12].startswith(_PICTURE_BRANDS):
        raise ItemFault(Reason.UNSUPPORTED_FORMAT, "HEIC, AVIF and CR3 pictures are not opened")
    if data[:4] in (b"II*\0", b"MM\0*") and data[8:10] == b"CR":
        raise ItemFault(Reason.UNSUPPORTED_FORMAT, "CR2 raw pictures are not opened")


def look_inside(data: Content) -> Modality:
    """Modality by the streams of a container that may hold sound or film. Raises ItemFault: CORRUPT, TRUNCATED,
    UNSUPPORTED_FORMAT (neither in it)."""
    container = demuxer(data)
    assert container is not None, "not a container"
    try:
        with refusals_as_faults("PyAV"), open_container(data, container) as opened:
            found = modality_of(opened)
    except ItemFault as fault:
        if missing := shortfall(data):
            raise ItemFault(Reason.TRUNCATED, missing) from fault
        raise
    if found is None:
        if missing := shortfall(data):
            raise ItemFault(Reason.TRUNCATED, missing)
        raise ItemFault(Reason.UNSUPPORTED_FORMAT, f"{container} file with neither sound nor pictures")
    return found


def _unknown(data: bytes, expected: Modality | None) -> Modality:
    """Last word on bytes that are neither text nor a medium that we open."""
    if data[:2] in _UTF16_BOMS:
        raise ItemFault(Reason.INVALID_UTF8, "byte offset 0: UTF-16 byte order mark, save it as UTF-8")
    kind = filetype.guess(data)
    if kind is not None and kind.mime not in _OURS:
        raise ItemFault(Reason.UNSUPPORTED_FORMAT, f"{kind.mime} is not opened")
    if expected is Modality.TEXT:
        return Modality.TEXT
    if expected is None:
        raise ItemFault(Reason.UNKNOWN_TYPE, "neither text nor a known format, and the name does not tell")
    raise ItemFault(Reason.CORRUPT, f"named as {expected}, but no {expected} format begins with these bytes")
