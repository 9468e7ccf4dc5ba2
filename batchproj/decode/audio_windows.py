"""A stream of samples cut into windows, none of them later than it must be; which of them are silent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from batchproj.errors import ItemFault
from batchproj.media import AudioSpec, Segment
from batchproj.schema import Reason
from batchproj.segments import LEAST_STEP_S

Samples = npt.NDArray[np.float32]

SILENCE_DBFS = -50.0
"""Root mean square of a frame of silence, at most; 0 dBFS is that of samples of 1."""
SILENCE_FRAME_S = 0.05


def windows(pieces: Iterable[Samples], spec: AudioSpec) -> Iterator[Segment]:
    """Mono samples (N,) at the spec's rate, in pieces of any length -> its windows, as `stream_audio` tells.

    Holds a piece and a window. Raises ItemFault: SILENT if there is sound and every window was left out.
    """
    rate, end, is_heard = spec.sample_rate, 0, False
    window, overlap = max(1, int(spec.window_s * rate)), round(spec.overlap_s * rate)
    for begin, samples in _cut(pieces, window, overlap, -int(-LEAST_STEP_S * rate // 1)):
        end = begin + len(samples)
        if spec.skip_silence and is_silent(samples, rate):
            continue
        is_heard = True
        yield Segment(samples, begin / rate, end / rate)
    if end and not is_heard:
        raise ItemFault(Reason.SILENT, f"{end / rate:.1f} s of sound, all of it below {SILENCE_DBFS:.0f} dBFS")


def is_silent(samples: Samples, rate: int) -> bool:
    """Whether no frame of 50 ms, the last one shorter, is as loud as `SILENCE_DBFS`."""
    starts = np.arange(0, len(samples), max(1, int(SILENCE_FRAME_S * rate)))
    power = np.add.reduceat(samples * samples, starts) / np.diff(starts, append=len(samples))
    return bool(power.max() < 10 ** (SILENCE_DBFS / 10))


def _cut(pieces: Iterable[Samples], window: int, overlap: int, tail: int) -> Iterator[tuple[int, Samples]]:
    """The place of each window and its samples, copied: views would keep whole pieces in memory.

    What is left after a window is `tail` samples at least, for else the two share them in equal parts.
    """
    waiting: list[Samples] = []
    begin = count = 0
    for piece in pieces:
        waiting.append(piece)
        count += len(piece)
        if count < window + tail:
            continue
        held, at = np.concatenate(waiting), 0
        while count - at >= window + tail:
            yield begin + at, held[at : at + window].copy()
            at += window - overlap
        waiting, begin, count = [held[at:]], begin + at, count - at
    if not count:
        return
    rest = np.concatenate(waiting)
    if count <= window:
        yield begin, rest
        return
    half = (count + overlap) // 2
    yield begin, rest[:half]
    yield begin + half - overlap, rest[half - overlap :]
