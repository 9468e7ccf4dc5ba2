"""How a space cuts long items, the `segments` of its file: the settings, and the encoder's wish they change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from batchproj.config import validate
from batchproj.errors import SpaceError
from batchproj.media import AudioSpec, Spec, TextSpec
from batchproj.schema import Modality
from batchproj.text_chunks import chunks

SEGMENTS_EPOCH = 1
"""Raised by hand when our own code cuts differently by the same settings."""

LEAST_STEP_S = 0.1
"""From one window's start to the next, and what a last window must have that is new (`decode.audio_windows`)."""

_LEAST_TOKENS = 8


class TextSegments(BaseModel):
    """Chunks of at most `tokens` tokens of the encoder's own tokenizer, its special ones among them.

    `overlap` tokens at most are in two chunks that follow each other. `at` says where chunks end and
    begin where they can (`text_chunks`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    tokens: int = Field(default=256, ge=_LEAST_TOKENS)
    overlap: int = Field(default=32, ge=0)
    at: Literal["sentence", "paragraph", "token"] = "sentence"

    def check(self, longest: float | None, where: str) -> None:
        """Raises SpaceError if an encoder that takes `longest` tokens cannot take these chunks."""
        if longest is not None and self.tokens > longest:
            raise SpaceError(f"{where}: tokens is {self.tokens}, this encoder takes {longest:.0f}: set fewer")
        if self.overlap >= self.tokens:
            raise SpaceError(f"{where}: overlap is {self.overlap} of {self.tokens} tokens: set fewer than tokens")

    def applied(self, spec: Spec) -> Spec:
        """What the encoder wants, with its long texts cut by these settings."""
        assert isinstance(spec, TextSpec)
        count, room = spec.token_ends, self.tokens - spec.reserved_tokens
        assert count is not None, "every text encoder counts tokens"
        if room <= self.overlap:
            raise SpaceError(
                f"segments of {self.tokens} tokens: the prompt and special tokens take {spec.reserved_tokens} and "
                f"{self.overlap} overlap, so nothing new is left; set more tokens"
            )
        return replace(spec, spans=lambda text: chunks(text, count, room, self.overlap, self.at))


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
            raise SpaceError(f"{where}: seconds is {self.seconds:g}, this encoder takes {longest:g}: set fewer")
        if self.seconds - self.overlap < LEAST_STEP_S - 1e-9:
            raise SpaceError(
                f"{where}: overlap is {self.overlap:g} of {self.seconds:g} s: set at least {LEAST_STEP_S} s less than "
                "seconds"
            )

    def applied(self, spec: Spec) -> Spec:
        """What the encoder wants, with its long sounds cut by these settings."""
        assert isinstance(spec, AudioSpec)
        return replace(spec, window_s=self.seconds, overlap_s=self.overlap, skip_silence=self.skip_silence)


Segments = TextSegments | AudioSegments

_SETTINGS: dict[Modality, type[Segments]] = {Modality.TEXT: TextSegments, Modality.AUDIO: AudioSegments}


def parse(modality: Modality, fields: dict[str, Any] | None, longest: float | None, where: str) -> Segments | None:
    """The settings of a modality, None if there are none: its long items are cut as the encoder must have them.

    `longest` is what the encoder takes at once, in tokens or seconds. Raises SpaceError, starting with `where`.
    """
    if fields is None:
        return None
    model = _SETTINGS.get(modality)
    if model is None:
        raise SpaceError(f"{where}: items of {modality} are not cut; leave out 'segments'")
    settings = validate(model, fields, f"{where}.segments")
    settings.check(longest, f"{where}.segments")
    return settings


def decides(settings: Segments) -> dict[str, Any]:
    """What of the settings decides a vector, for the fingerprint."""
    return {**settings.model_dump(), "epoch": SEGMENTS_EPOCH}
