"""Bytes of a video to segments of a few frames, each of exactly the encoder's size.

T frames of a segment, H, W rows and columns; C is 3: red, green, blue.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame
from PIL import Image

from batchproj.decode.complete import shortfall
from batchproj.decode.content import Content
from batchproj.decode.film import Film, rgb
from batchproj.decode.image import check_ratio, check_resized, fitted
from batchproj.decode.limits import Limits
from batchproj.decode.scenes import edges
from batchproj.errors import ItemFault
from batchproj.media import ImageSpec, Segment, VideoSpec
from batchproj.schema import Reason

Picture = npt.NDArray[np.uint8]

_TURNS = {
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
}
"""By the signs of a, b, c, d of the display matrix: x' = ax + cy, y' = bx + dy (ISO/IEC 14496-12, 8.3.2)."""
_SWAPS_EDGES = frozenset(turn for (a, *_), turn in _TURNS.items() if a == 0)


def decode_video(data: Content, spec: VideoSpec, limits: Limits) -> Iterator[Segment]:
    """Decode a video to (T, height, width, 3) uint8 segments, one after the other, cut as `spec.segments` says.

    The T frames are those on show at the middles of T equal shares of a segment, so that frame rate and keyframes
    do not matter; where frames are rarer than that, one is taken several times. Rotation, mirroring and pixel aspect
    of the container are applied, then each frame is resized as `decode_image` does it. Interlaced lines are left as
    they are and HDR is not brought to the range of SDR. `start`, `end` are seconds from the first frame on.

    Memory: a segment, a frame, and what the codec keeps to refer to; nothing of the video's length.

    Raises ItemFault, with the first segment or with a later one: TRUNCATED (where the container states its length),
    CORRUPT, TOO_LARGE, UNSUPPORTED_FORMAT (unknown container or codec, no moving pictures).
    """
    if missing := shortfall(data):
        raise ItemFault(Reason.TRUNCATED, missing)
    film = Film(data, limits)
    spans = list(itertools.pairwise(edges(film, spec.segments)))
    count = spec.segments.frames
    times = (time for span in spans for time in _middles(*span, count))
    pictures = _pictures(film.frames_at(times), film.pixel_aspect, spec.image, limits)
    for start, end in spans:
        yield Segment(np.stack(list(itertools.islice(pictures, count))), start, end)


def _middles(start: float, end: float, count: int) -> Iterator[float]:
    share = (end - start) / count
    return (start + (number + 0.5) * share for number in range(count))


def _pictures(frames: Iterable[VideoFrame], aspect: float, spec: ImageSpec, limits: Limits) -> Iterator[Picture]:
    last: VideoFrame | None = None
    rotation: int | None = None
    for frame in frames:
        if frame.rotation != rotation:
            turn, rotation = _turn(frame), frame.rotation
        if frame is not last:
            picture, last = _picture(frame, turn, aspect, spec, limits), frame
        yield picture


def _picture(
    frame: VideoFrame, turn: Image.Transpose | None, aspect: float, spec: ImageSpec, limits: Limits
) -> Picture:
    """A frame whose pixels are `aspect` times as wide as high, turned upright and of the encoder's size."""
    full = (max(1, round(frame.width * aspect)), frame.height)
    if turn in _SWAPS_EDGES:
        full = full[::-1]
    check_ratio(full, limits, "video frame")
    check_resized(full, spec)
    image = Image.fromarray(rgb(frame))
    return fitted(image if turn is None else image.transpose(turn), full, spec)


def _turn(frame: VideoFrame) -> Image.Transpose | None:
    """By its display matrix. Not of every frame: one that was asked for its side data refers to itself, and its pixels
    are kept until the garbage collector comes by, some hundred frames later."""
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return None
    a, b, _, c, d, *_ = np.sign(np.frombuffer(bytes(matrix), np.int32)).tolist()
    return _TURNS.get((a, b, c, d))
