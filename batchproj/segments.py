"""How an item is cut into segments: settings of a space file, `segments` beside `encoder`, by modality."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from batchproj.schema import Modality


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


SETTINGS: dict[Modality, type[VideoSegments]] = {Modality.VIDEO: VideoSegments}
"""What `segments` may say of each modality."""
