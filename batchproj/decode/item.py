"""One item: bytes -> segments, by its modality."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from batchproj.decode.audio import stream_audio
from batchproj.decode.content import Content
from batchproj.decode.image import decode_image
from batchproj.decode.limits import Limits
from batchproj.decode.text import stream_text
from batchproj.decode.video import decode_video
from batchproj.errors import ItemFault
from batchproj.media import AudioSpec, ImageSpec, Segment, Spec, TextSpec, VideoSpec
from batchproj.schema import Modality, Reason


@dataclass(frozen=True)
class PieceSize:
    """An item is handed on in pieces of about so many bytes, and segments: its length must not decide the memory.

    A text chunk is small, and what a tokenizer makes of it is not.
    """

    nbytes: int = 8 * 2**20
    segments: int = 1_024


PIECE = PieceSize()


@dataclass(frozen=True)
class Piece:
    """Some of an item's segments, in order; `last` if there are no more."""

    segments: list[Segment]
    last: bool = True


def decode_pieces(
    data: Content, modality: Modality, spec: Spec, limits: Limits, size: PieceSize = PIECE
) -> Iterator[Piece]:
    """Decode one item piece by piece, in order; a short one is one piece.

    Raises, when the next piece is asked for, ItemFault where the content is at fault; TypeError where `spec` is not
    of `modality`.
    """
    if len(data) > limits.item_bytes:
        raise ItemFault(Reason.TOO_LARGE, f"item of {len(data)} bytes, the limit is {limits.item_bytes}")
    match modality, spec:
        case Modality.IMAGE, ImageSpec():
            yield Piece(decode_image(data[:], spec, limits))
        case Modality.AUDIO, AudioSpec():
            yield from _pieces(stream_audio(data, spec, limits), size)
        case Modality.TEXT, TextSpec():
            yield from _pieces(stream_text(data[:], spec, limits), size)
        case Modality.VIDEO, VideoSpec():
            yield from _pieces(decode_video(data, spec, limits), size)
        case _:
            raise TypeError(f"{modality} cannot be decoded for {type(spec).__name__}")


def _pieces(segments: Iterator[Segment], size: PieceSize) -> Iterator[Piece]:
    piece: list[Segment] = []
    held = 0
    for segment in segments:
        if held >= size.nbytes or len(piece) >= size.segments:
            yield Piece(piece, last=False)
            piece, held = [], 0
        piece.append(segment)
        held += segment.nbytes
    yield Piece(piece)
