"""Small real videos: a colour for each second."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import av
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Matrix = tuple[int, int, int, int]

LEVELS = (20, 220, 90, 160, 50, 190, 120, 240)
"""Grey of each second; encoders change it by a few levels."""


def seconds_of(seconds: float, fps: int, size: tuple[int, int] = (64, 48)) -> Iterator[Pixels]:
    """Frames (H, W, 3) of a video that has a grey of `LEVELS` for each second."""
    for number in range(round(seconds * fps)):
        yield np.full((size[1], size[0], 3), LEVELS[number // fps % len(LEVELS)], np.uint8)


def film(
    frames: Iterable[Pixels],
    fps: int = 10,
    first: int = 0,
    format: str = "mp4",
    codec: str = "libx264",
    gop: int = 12,
    sound: bool = False,
    aspect: int | None = None,
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
) -> bytes:
    """A file with these frames in a video stream, the first one at time `first` / `fps`.

    `sound` adds a second of noise as a second stream.
    """
    file = io.BytesIO()
    with _scheduled_as_before(), av.open(file, "w", format=format, container_options=container or {}) as opened:
        stream: Any = None
        heard: Any = opened.add_stream("aac", rate=48_000, layout="mono") if sound else None
        for number, pixels in enumerate(frames):
            if stream is None:
                stream = opened.add_stream(codec, rate=fps, options=options or {})
                stream.height, stream.width = pixels.shape[:2]
                stream.pix_fmt, stream.codec_context.gop_size = "yuv420p", gop
                stream.codec_context.thread_count = 1
                if aspect:
                    stream.codec_context.sample_aspect_ratio = aspect
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = first + number
            opened.mux(stream.encode(frame))
        if heard:
            noise = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 48_000)).astype(np.float32)
            samples: Any = av.AudioFrame.from_ndarray(noise, format="fltp", layout="mono")
            samples.sample_rate = 48_000
            opened.mux([*heard.encode(samples), *heard.encode(None)])
        opened.mux(stream.encode(None))
    return file.getvalue()


@contextmanager
def _scheduled_as_before() -> Iterator[None]:
    """libsvtav1 gives the thread that calls it the highest real-time priority where it may; every process started later
    would inherit it, and one that spins would keep all others off the cores."""
    policy, priority = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, priority)


def displayed_by(data: bytes, matrix: Matrix) -> bytes:
    """An MP4 of one stream with a, b, c, d of its track header's display matrix replaced (ISO/IEC 14496-12, 8.3.2)."""
    a, b, c, d = (value << 16 for value in matrix)
    begin = data.index(b"tkhd") + 4 + 40
    return data[:begin] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[begin + 36 :]


def only_sound() -> bytes:
    """An MP4 without pictures."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream: Any = container.add_stream("aac", rate=48_000, layout="mono")
        frame: Any = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48_000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return file.getvalue()
