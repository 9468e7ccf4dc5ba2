"""What decode hands to encode: how an encoder wants its input, and the pieces cut to that wish."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from batchproj.segments import VideoSegments

Tokens = npt.NDArray[np.int64]
"""Token ids of one text, special tokens included, no padding."""

TOKENS_OF_A_SPACE = 4
"""So many of the limit are kept free for a character of white space around a text: more than tokenizers make of it."""

Fit = Literal["crop", "crop_down", "squash", "squash_crop", "squash_crop_down"]


@dataclass(frozen=True)
class ImageSpec:
    """Geometry of an image encoder's input; pixels stay uint8, normalisation is the encoder's.

    fit `crop`: shortest edge resized to `resize_px`, then the centre cut to `height` x `width`;
    fit `squash`: both edges resized to `height` x `width`, aspect ratio given up;
    fit `squash_crop`: both edges resized to `resize_px`, then the centre cut.
    With `_down` the centre is cut as transformers' processors do: of an odd number of rows or columns
    too many the smaller half is above or left; without it as torchvision does, which rounds that to even.
    """

    height: int
    width: int
    resize_px: int
    fit: Fit = "crop"
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"


@dataclass(frozen=True)
class AudioSpec:
    """Sample rate (Hz) an audio encoder hears, and how a long sound is cut into pieces of `window_s` seconds.

    `overlap_s` of a piece are the end of the piece before it; with `skip_silence` pieces in which
    nothing is to be heard are left out.
    """

    sample_rate: int
    window_s: float
    overlap_s: float = 0.0
    skip_silence: bool = False


@dataclass(frozen=True)
class TextSpec:
    """How a text encoder cuts a long text.

    `spans(text)` gives character ranges (start, end), in order, each within the encoder's
    token limit; one range for a short text. `token_ends` gives the character each token of a text
    ends at, without the `reserved_tokens` (special ones, a prompt's) that every piece has beside them.
    `whole(texts)` gives the token ids (L,) of texts without outer white space that may be short enough not to be cut,
    many at a time; None says nothing: then `spans` tells. `limit`: with so many tokens, special ones and a prompt's
    among them, a text is not cut.
    """

    spans: Callable[[str], Iterable[tuple[int, int]]]
    token_ends: Callable[[str], Sequence[int]]
    reserved_tokens: int = 0
    whole: Callable[[Sequence[str]], Sequence[Tokens | None]] = lambda texts: [None] * len(texts)
    limit: int = 0


@dataclass(frozen=True)
class VideoSpec:
    """Geometry of each frame a video encoder sees, how many it sees of a segment, and where segments are cut."""

    image: ImageSpec
    segments: VideoSegments


Spec = ImageSpec | AudioSpec | TextSpec | VideoSpec


@dataclass(frozen=True)
class Segment:
    """A piece of an item that gets one vector.

    `data` is a (H, W, 3) uint8 image, a (T, H, W, 3) uint8 video of T frames, a (N,) float32 sound
    in [-1, 1], or a text. `start`, `end` are seconds for sound and video, characters for text, None
    for a whole image. `tokens` are a text's, where they were found on the way.
    """

    data: npt.NDArray[np.uint8] | npt.NDArray[np.float32] | str
    start: float | None = None
    end: float | None = None
    text: str | None = None
    tokens: Tokens | None = None

    @property
    def nbytes(self) -> int:
        """Memory the decoded piece takes, in bytes (characters for text, and its tokens)."""
        if isinstance(self.data, str):
            return len(self.data) + (0 if self.tokens is None else self.tokens.nbytes)
        return self.data.nbytes
