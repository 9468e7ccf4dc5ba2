"""Items at once and in this process, where the package decodes as it is asked for, and in processes of their own."""

from __future__ import annotations

from batchproj.decode.item import decode_pieces
from batchproj.decode.limits import Limits
from batchproj.decode.sniff import from_outside, look_inside
from batchproj.media import Segment, Spec
from batchproj.schema import Modality


def decode(data: bytes, modality: Modality, spec: Spec, limits: Limits) -> list[Segment]:
    return [segment for piece in decode_pieces(data, modality, spec, limits) for segment in piece.segments]


def sniff(data: bytes, name: str) -> Modality:
    return from_outside(data, name) or look_inside(data)
