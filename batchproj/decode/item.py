"""One item: bytes -> segments, by its modality."""

from __future__ import annotations

from collections.abc import Iterator

from batchproj.decode.audio import stream_audio
from batchproj.decode.image import decode_image
from batchproj.decode.limits import Limits
from batchproj.decode.text import stream_text
from batchproj.errors import ItemFault
from batchproj.media import AudioSpec, ImageSpec, Segment, Spec, TextSpec
from batchproj.schema import Modality, Reason


def decode(data: bytes, modality: Modality, spec: Spec, limits: Limits) -> list[Segment]:
    """Decode one item, whole in memory, into at least one segment.

    Raises ItemFault where the content is at fault; TypeError where `spec` is not of `modality`.
    """
    return list(stream(data, modality, spec, limits))


def stream(data: bytes, modality: Modality, spec: Spec, limits: Limits) -> Iterator[Segment]:
    """The same, decoded as it is asked for: the pieces of a long item need not be in memory at once.

    A fault is raised where it is come upon, after the segments before it.
    """
    if len(data) > limits.item_bytes:
        raise ItemFault(Reason.TOO_LARGE, f"item of {len(data)} bytes, the limit is {limits.item_bytes}")
    match modality, spec:
        case Modality.IMAGE, ImageSpec():
            return iter(decode_image(data, spec, limits))
        case Modality.AUDIO, AudioSpec():
            return stream_audio(data, spec, limits)
        case Modality.TEXT, TextSpec():
            return stream_text(data, spec, limits)
        case Modality.VIDEO, _:
            raise ItemFault(Reason.NO_ENCODER, "video cannot be decoded yet")
        case _:
            raise TypeError(f"{modality} cannot be decoded for {type(spec).__name__}")
