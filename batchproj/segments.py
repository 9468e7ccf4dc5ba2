"""How a space cuts long items: the settings, `segments` beside `encoder` in its file, by modality."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from batchproj.config import validate
from batchproj.errors import SpaceError
from batchproj.schema import Modality

SEGMENTS_EPOCH = 1
"""Raised by hand when our own code cuts differently by the same settings."""

LEAST_STEP_S = 0.1
"""Of sound: from one window's start to the next, and what a last window must have that is new."""

LEAST_TOKENS = 8
"""Of a text: what a chunk, a model's limit, and what a prompt leaves of it must have."""


class TextSegments(BaseModel):
    """Chunks of at most `tokens` tokens of the encoder's own tokenizer, its special ones among them.

    `overlap` tokens at most are in two chunks that follow each other. `at` says where chunks end and
    begin where they can (`text_chunks`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    tokens: int = Field(default=256, ge=LEAST_TOKENS)
    overlap: int = Field(default=32, ge=0)
    at: Literal["sentence", "paragraph", "token"] = "sentence"

    def check(self, longest: float | None, where: str) -> None:
        """Raises SpaceError if an encoder that takes `longest` tokens cannot take these chunks."""
        if longest is not None and self.tokens > longest:
            raise SpaceError(f"{where}: {told(self, 'tokens')}, this encoder takes {longest:.0f}: set fewer")
        if self.overlap >= self.tokens:
            raise SpaceError(f"{where}: {told(self, 'tokens')} and {told(self, 'overlap')}: set 'overlap' to fewer")


class AudioSegments(BaseModel):
    """Windows of `seconds`, each beginning `seconds - overlap` after the one before it.

    `skip_silence` leaves out the windows in which nothing is to be heard (`decode.audio`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    seconds: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    overlap: float = Field(default=2.0, ge=0, allow_inf_nan=False)
    skip_silence: bool = True

    def check(self, longest: float | None, where: str) -> None:
        """Raises SpaceError if an encoder that takes `longest` seconds cannot take these windows."""
        if longest is not None and self.seconds > longest:
            raise SpaceError(f"{where}: {told(self, 'seconds')}, this encoder takes {longest:g}: set fewer")
        if self.seconds - self.overlap < LEAST_STEP_S - 1e-9:
            raise SpaceError(
                f"{where}: {told(self, 'seconds')} and {told(self, 'overlap')}: set 'overlap' at least {LEAST_STEP_S} "
                "s below seconds"
            )


class VideoSegments(BaseModel):
    """Where a video is cut, and how many frames of each piece the encoder sees.

    at `length`: every `seconds`; at `scene`: where the picture changes at once, and what is longer than `seconds`
    in equal parts. A cut that would leave less than `min_seconds` on a side is not made, but for the last piece of
    `length`, which then shares the time with the one before it in equal halves. `cut` is the mean difference of two
    frames in a row, of 0 to 255, from which on it is another scene.
    Without `frames` there are as many as the model takes, and 8 of one that is free.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    seconds: float = Field(default=10.0, ge=0.1, le=3600, allow_inf_nan=False)
    frames: int = Field(default=8, ge=1, le=256)
    at: Literal["length", "scene"] = "length"
    min_seconds: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    cut: float = Field(default=20.0, gt=0, lt=255)


Segments = TextSegments | AudioSegments | VideoSegments


def told(settings: Segments, name: str) -> str:
    """A number as an error names it: nobody has written a default."""
    return f"{name} is {getattr(settings, name):g}{'' if name in settings.model_fields_set else ' unless you set it'}"


_SETTINGS: dict[Modality, type[Segments]] = {
    Modality.TEXT: TextSegments,
    Modality.AUDIO: AudioSegments,
    Modality.VIDEO: VideoSegments,
}


def parse(
    modality: Modality, fields: dict[str, Any] | None, longest: float | None, frames: int | None, where: str
) -> Segments | None:
    """The settings of a modality, None if there are none: its long items are cut as the encoder must have them.

    A video is always cut. `longest` is what the encoder takes at once, in tokens or seconds, `frames` how many of a
    video it takes, None where it is free. Raises SpaceError, starting with `where`.
    """
    if fields is None and modality is not Modality.VIDEO:
        return None
    model = _SETTINGS.get(modality)
    if model is None:
        raise SpaceError(f"{where}: items of {modality} are not cut; leave out 'segments'")
    settings = validate(model, fields or {}, f"{where}.segments")
    if isinstance(settings, VideoSegments):
        return _with_frames(settings, frames, where)
    settings.check(longest, f"{where}.segments")
    return settings


def _with_frames(settings: VideoSegments, frames: int | None, where: str) -> VideoSegments:
    if frames in (None, settings.frames):
        return settings
    if "frames" in settings.model_fields_set:
        raise SpaceError(
            f"{where}: the model takes {frames} frames, 'segments' says {settings.frames}; leave 'frames' out"
        )
    return settings.model_copy(update={"frames": frames})


def decides(settings: Segments) -> dict[str, Any]:
    """What of the settings decides a vector, for the fingerprint."""
    return {**settings.model_dump(), "epoch": SEGMENTS_EPOCH}
