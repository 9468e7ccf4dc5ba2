"""Where one scene ends and the next begins: the picture changes at once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from batchproj.decode.film import Film, rgb
from batchproj.segments import VideoSegments

_EDGE_PX = 32
"""Small enough that grain, subtitles and what moves a little vanish in the mean."""


def edges(film: Film, wanted: VideoSegments) -> list[float]:
    """Times (seconds) at which segments begin and end, from 0 to the film's length; at least two."""
    if wanted.at == "scene":
        return _of_scenes(film, wanted)
    count = max(1, math.ceil(film.seconds / wanted.seconds - 1e-6))
    found = [*(number * wanted.seconds for number in range(count)), film.seconds]
    if len(found) > 2 and found[-1] - found[-2] < wanted.min_seconds:
        found[-2] = (found[-3] + found[-1]) / 2
    return found


def _of_scenes(film: Film, wanted: VideoSegments) -> list[float]:
    found = [0.0]
    for time in _cuts(film, wanted.cut):
        if time - found[-1] >= wanted.min_seconds and film.seconds - time >= wanted.min_seconds:
            found.append(time)
    found.append(film.seconds)
    parts = [
        np.linspace(begin, end, max(1, math.ceil((end - begin) / wanted.seconds)), endpoint=False)
        for begin, end in itertools.pairwise(found)
    ]
    return [*map(float, np.concatenate(parts)), film.seconds]


def _cuts(film: Film, least: float) -> Iterator[float]:
    """When a frame appears that differs from the one before it by `least` or more.

    The measure is the mean absolute difference of the colours (RGB, 0 to 255) of frames brought to 32 x 32
    pixels; that of consecutive frames, as PySceneDetect's ContentDetector takes it of hue, saturation and value.
    """
    before: npt.NDArray[np.int16] | None = None
    for time, frame in film.frames():
        small = rgb(frame, width=_EDGE_PX, height=_EDGE_PX, interpolation="AREA").astype(np.int16)
        if before is not None and np.abs(small - before).mean() >= least:
            yield time
        before = small
