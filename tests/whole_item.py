"""Items decoded at once, where the package decodes them as they are asked for."""

from __future__ import annotations

from batchproj.decode.item import decode_pieces
from batchproj.decode.limits import Limits
from batchproj.media import Segment, Spec
from batchproj.schema import Modality


def decode(data: bytes, modality: Modality, spec: Spec, limits: Limits) -> list[Segment]:
    return [segment for piece in decode_pieces(data, modality, spec, limits) for segment in piece.segments]
