"""Bytes to text segments, cut where the encoder's token limit asks for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from batchproj.decode.limits import Limits
from batchproj.errors import ItemFault
from batchproj.media import TOKENS_OF_A_SPACE, Segment, TextSpec
from batchproj.schema import Reason
from batchproj.text_chunks import BLOCK_CHARS

_BOM = b"\xef\xbb\xbf"


def decode_text(data: bytes, spec: TextSpec, limits: Limits) -> list[Segment]:
    """Cut UTF-8 text into the spans the encoder asks for, each without outer white space.

    `start`, `end` of a segment are offsets, in characters, into the text without its byte order
    mark; a span of nothing but white space is left out. Line breaks stay as they are.

    Raises ItemFault: TOO_LARGE, INVALID_UTF8 (detail has the byte offset), CORRUPT (a NUL
    character: a binary file, or a database dump cut to its zeros), BLANK_TEXT.
    """
    return list(stream_text(data, spec, limits))


def short_text(data: bytes, spec: TextSpec, limits: Limits) -> Segment | None:
    """The one segment of a text that need not be cut, in a fraction of the time of `decode_pieces`.

    None of another one, and of one that is larger than an item may be. Raises as `decode_text`.
    """
    return _whole(_decoded(data, limits), spec) if len(data) <= limits.item_bytes else None


def stream_text(data: bytes, spec: TextSpec, limits: Limits) -> Iterator[Segment]:
    """The same as `decode_text`, cut as it is asked for."""
    text, is_blank = _decoded(data, limits), True
    if (whole := _whole(text, spec)) is not None:
        yield whole
        return
    for start, end in spec.spans(text):
        piece = text[start:end].strip()
        if piece:
            is_blank = False
            begin = start + len(text[start:end]) - len(text[start:end].lstrip())
            yield Segment(piece, float(begin), float(begin + len(piece)), piece)
    if is_blank:
        raise ItemFault(Reason.BLANK_TEXT, f"{len(text)} characters, no span of them with text in it")


def _whole(text: str, spec: TextSpec) -> Segment | None:
    stripped = text.strip()
    (tokens,) = spec.whole([stripped])
    if tokens is None or len(tokens) + TOKENS_OF_A_SPACE * (len(text) - len(stripped)) > spec.limit:
        return None
    begin = len(text) - len(text.lstrip())
    return Segment(stripped, float(begin), float(begin + len(stripped)), stripped, tokens)


def knowing(spec: TextSpec, contents: Iterable[bytes]) -> TextSpec:
    """The same, which knows the tokens of these texts already: all at once they take half the time (measured)."""
    texts = [data.removeprefix(_BOM).decode("utf-8", "ignore").strip() for data in contents if len(data) <= BLOCK_CHARS]
    known = dict(zip(texts, spec.whole(texts), strict=True))
    return replace(spec, whole=lambda texts: [known.get(text) for text in texts])


def _decoded(data: bytes, limits: Limits) -> str:
    """Text of `data`, with the faults of `decode_text`."""
    if len(data) > limits.text_bytes:
        raise ItemFault(Reason.TOO_LARGE, f"text of {len(data)} bytes, the limit is {limits.text_bytes}")
    body = data.removeprefix(_BOM)
    skipped = len(data) - len(body)
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = f"0x{body[error.start]:02x}"
        detail = f"byte {byte} at offset {error.start + skipped} is not UTF-8"
        raise ItemFault(Reason.INVALID_UTF8, detail) from error
    if (nul := body.find(b"\0")) >= 0:
        raise ItemFault(Reason.CORRUPT, f"NUL character at byte offset {nul + skipped}: not a text")
    if not text or text.isspace():
        raise ItemFault(Reason.BLANK_TEXT, f"{len(text)} characters, all white space")
    return text
