"""The frames of a video, by time, with no more than one of them in memory beside the decoder's own.

A first look at the packets, without decoding, tells the length and where the keyframes are. A second
one decodes: packets are fed from the keyframe before a wanted time on until the frame of that time is
there, and those up to the next keyframe that is of use are passed over. That is what a seek would save,
in every container, without trust in its index.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from batchproj.decode.container import demuxer, moving_pictures, open_container
from batchproj.decode.content import Content
from batchproj.decode.faults import refusals_as_faults
from batchproj.decode.image import check_pixels
from batchproj.decode.limits import Limits
from batchproj.errors import ItemFault
from batchproj.schema import Reason

_NOTHING_FED = -(1 << 63)


@dataclass
class _Packets:
    """What a look at all packets tells, in units of the stream's time base."""

    first: int = 1 << 62
    last: int = -(1 << 62)
    end: int = -(1 << 62)
    count: int = 0
    keyframes: array[int] = field(default_factory=lambda: array("q"))

    def add(self, packet: Packet[VideoStream]) -> None:
        when = _when(packet)
        if when is None:
            return
        if packet.is_keyframe or not self.keyframes:
            self.keyframes.append(when)
        if packet.is_discard:  # decoded for the sake of others, never shown
            return
        self.first, self.last = min(self.first, when), max(self.last, when)
        self.end = max(self.end, when + (packet.duration or 0))
        self.count += 1

    def finish(self) -> None:
        """Sort, and give the last frame the average duration where its packet states none."""
        self.keyframes = array("q", sorted(self.keyframes))
        if self.end == self.last:
            self.end += round((self.last - self.first) / max(1, self.count - 1))


class Film:
    """A video whose packets were looked at; `seconds` is its length, a pixel is `pixel_aspect` times as wide as high.

    Times are seconds from its first frame on. Raises ItemFault: UNSUPPORTED_FORMAT, CORRUPT, TRUNCATED, TOO_LARGE.
    """

    def __init__(self, data: Content, limits: Limits) -> None:
        self._data, self._limits = data, limits
        packets = _Packets()
        with self._opened() as (container, stream):
            self.pixel_aspect = float(stream.sample_aspect_ratio or 1)
            self._unit_s = float(stream.time_base or 1)
            for packet in container.demux(stream):
                packets.add(packet)
        if not packets.count:
            raise ItemFault(Reason.CORRUPT, f"{container.format.name} file with a video stream, and no frame in it")
        packets.finish()
        self._first, self._keyframes = packets.first, packets.keyframes
        self.seconds = (packets.end - packets.first) * self._unit_s
        if self.seconds > limits.video_s:
            detail = f"{self.seconds:.0f} s of video, the limit is {limits.video_s:.0f} s"
            raise ItemFault(Reason.TOO_LARGE, detail)

    def frames(self) -> Iterator[tuple[float, VideoFrame]]:
        """Every frame that has a time, and when it appears."""
        with self._opened() as (container, stream):
            for frame in container.decode(stream):
                if (appears := self._time(frame)) is not None:
                    yield appears, frame

    def frames_at(self, times: Iterable[float]) -> Iterator[VideoFrame]:
        """The frame on show at each of these times, which ascend; the last frame stays on show for ever."""
        waiting = iter(times)
        time = next(waiting, None)
        shown: VideoFrame | None = None
        fed = _NOTHING_FED
        with self._opened() as (container, stream):
            for packet in container.demux(stream):
                if time is None:
                    return
                begin, when = self._keyframe(time), _when(packet)
                # from the first one on all is fed: what comes before it in the file may have no time
                if begin > max(fed, self._keyframes[0]) and not _is_last(packet):
                    if when != begin:
                        continue
                    stream.codec_context.flush_buffers()
                    fed, shown = begin, None
                elif packet.is_keyframe and when is not None:
                    fed = max(fed, when)
                for frame in stream.decode(packet):
                    appears = self._time(frame)
                    while time is not None and appears is not None and appears > time:
                        yield shown or frame
                        time = next(waiting, None)
                    shown = frame
            if shown is None:
                raise ItemFault(Reason.CORRUPT, f"none of the frames around {time or 0:.1f} s can be decoded")
            while time is not None:
                yield shown
                time = next(waiting, None)

    def _keyframe(self, time: float) -> int:
        """When the last keyframe up to a time is shown, in the stream's units; the first one where there is none."""
        at = bisect_right(self._keyframes, self._first + time / self._unit_s)
        return self._keyframes[max(0, at - 1)]

    def _time(self, frame: VideoFrame) -> float | None:
        return None if frame.pts is None else (frame.pts - self._first) * self._unit_s

    @contextmanager
    def _opened(self) -> Iterator[tuple[InputContainer, VideoStream]]:
        """The container and its moving pictures, to be decoded on the caller's thread."""
        name = demuxer(self._data)
        if name is None:
            raise ItemFault(Reason.UNSUPPORTED_FORMAT, "not a container of video that we open")
        with refusals_as_faults("PyAV"), open_container(self._data, name) as container:
            stream = moving_pictures(container)
            if stream is None:
                raise ItemFault(Reason.UNSUPPORTED_FORMAT, f"{name} file without a video stream")
            if stream.codec_context is None:
                raise ItemFault(Reason.UNSUPPORTED_FORMAT, f"{name} file with an unknown video codec")
            check_pixels((stream.width, stream.height), self._limits.video_pixels, "video frame")
            # a stream may grow on the way; and many videos are decoded at once, one thread each
            stream.codec_context.options = {"max_pixels": str(self._limits.video_pixels)}
            stream.codec_context.thread_count = 1
            yield container, stream


def rgb(frame: VideoFrame, **scaling: Any) -> npt.NDArray[np.uint8]:
    """A frame's colours (H, W, 3); `scaling` are options of PyAV's `reformat`. Raises CORRUPT."""
    with refusals_as_faults("PyAV"):  # some damaged headers name formats that cannot be converted
        return np.asarray(frame.to_ndarray(format="rgb24", threads=1, **scaling), np.uint8)


def _when(packet: Packet[VideoStream]) -> int | None:
    return packet.dts if packet.pts is None else packet.pts


def _is_last(packet: Packet[VideoStream]) -> bool:
    """The empty packet that makes the decoder give what it holds back."""
    return packet.size == 0 and packet.dts is None
