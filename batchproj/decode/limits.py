"""The largest item that decode takes; beyond it the item is quarantined before memory is spent on it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

_PILLOW_REFUSES_PIXELS = 178_956_970
"""From here on Pillow refuses WebP and TIFF by itself, by a limit that is global to the process."""

_WALL = 10


class Limits(BaseModel):
    """Ceilings per item, checked on headers first and again while decoding, for headers lie.

    At `image_pixels` a picture with transparency takes 0.7 GB while it is decoded.

    `jpeg_pixels` is for JPEG that decodes at a reduced scale (baseline, much larger than what the
    encoder wants): its memory is that of the reduced picture, which still obeys `image_pixels`.
    `video_pixels` is for a frame, of which a decoder holds up to 16; the default takes 8K.
    `image_ratio` is the longer edge over the shorter one, of pictures and of frames: of what is longer
    the encoder's crop shows nothing, and resizing by the shorter edge makes a large picture of a small file.
    `decode_bytes` is the memory that decoding an item may take beside the item itself; `decode_s` the processor
    time in seconds, and a quarter of it more for each MiB of the item; listing a table may take as much.
    `table_bytes` is the memory that listing a table may take.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    item_bytes: int = Field(default=2 << 30, gt=0)
    image_pixels: int = Field(default=64_000_000, gt=0, le=_PILLOW_REFUSES_PIXELS)
    jpeg_pixels: int = Field(default=500_000_000, gt=0)
    image_ratio: float = Field(default=200, ge=1)
    audio_s: float = Field(default=4 * 3600.0, gt=0)
    video_s: float = Field(default=4 * 3600.0, gt=0)
    video_pixels: int = Field(default=36_000_000, gt=0)
    text_bytes: int = Field(default=50_000_000, gt=0)
    decode_bytes: int = Field(default=1 << 30, gt=0)
    decode_s: float = Field(default=60.0, gt=0)
    table_bytes: int = Field(default=2 << 30, gt=0)

    def cpu_seconds(self, size: int) -> float:
        """Processor time that decoding an item of so many bytes may take."""
        return self.decode_s * (1 + size / (4 << 20))

    def wall_seconds(self, size: int) -> float:
        """How long it may take to the next piece of it, on however busy a machine."""
        return _WALL * self.cpu_seconds(size)
