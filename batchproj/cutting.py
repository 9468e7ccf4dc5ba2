"""An encoder's wish, with long items cut as a space says."""

from __future__ import annotations

from dataclasses import replace

from batchproj.errors import SpaceError
from batchproj.media import AudioSpec, Spec, TextSpec, VideoSpec
from batchproj.segments import AudioSegments, Segments, TextSegments, VideoSegments, told
from batchproj.text_chunks import chunks


def cut(spec: Spec, settings: Segments) -> Spec:
    """What the encoder wants, cut by these settings of its modality; SpaceError if that leaves a text no room."""
    match spec, settings:
        case TextSpec(), TextSegments():
            return _texts(spec, settings)
        case AudioSpec(), AudioSegments():
            return AudioSpec(spec.sample_rate, settings.seconds, settings.overlap, settings.skip_silence)
        case VideoSpec(), VideoSegments():
            return replace(spec, segments=settings)
        case _:
            raise TypeError(f"{type(settings).__name__} do not cut what {type(spec).__name__} wants")


def _texts(spec: TextSpec, settings: TextSegments) -> TextSpec:
    count, room = spec.token_ends, settings.tokens - spec.reserved_tokens
    if room <= settings.overlap:
        raise SpaceError(
            f"segments: {told(settings, 'tokens')} and {told(settings, 'overlap')}, and the prompt and special tokens "
            f"take {spec.reserved_tokens}, so nothing new is left; set more tokens or less overlap"
        )
    # not what the reserved tokens leave: next to a text a prompt's may be fewer than alone
    return replace(spec, spans=lambda text: chunks(text, count, room, settings.overlap, settings.at), limit=room)
