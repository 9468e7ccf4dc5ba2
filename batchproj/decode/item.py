"""One item: bytes -> segments, by its modality."""

from __future__ import annotations

from batchproj.decode.audio import decode_audio
from batchproj.decode.image import decode_image
from batchproj.decode.limits import Limits
from batchproj.decode.text import decode_text
from batchproj.errors import ItemFault
from batchproj.media import AudioSpec, ImageSpec, Segment, Spec, TextSpec
from batchproj.schema import Modality, Reason


def decode(data: bytes, modality: Modality, spec: Spec, limits: Limits) -> list[Segment]:
    """Decode one item, whole in memory, into at least one segment.

    Raises ItemFault where the content is at fault; TypeError where `spec` is not of `modality`.
    """
    if len(data) > limits.item_bytes:
        raise ItemFault(Reason.TOO_LARGE, f"item of {len(data)} bytes, the limit is {limits.item_bytes}")
    match modality, spec:
        case Modality.IMAGE, ImageSpec():
            return decode_image(data, spec, limits)
        case Modality.AUDIO, AudioSpec():
            return decode_audio(data, spec, limits)
        case Modality.TEXT, TextSpec():
            return decode_text(data, spec, limits)
        case Modality.VIDEO, _:
            raise ItemFault(Reason.NO_ENCODER, "video cannot be decoded yet")
        case _:
            raise TypeError(f"{modality} cannot be decoded for {type(spec).__name__}")
