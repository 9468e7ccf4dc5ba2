"""Small pictures of items: of an image itself, of a video a frame, of a sound its waveform.

What a stranger's file is decoded with is a decoder process, as in a run; here are only its pixels and samples.
"""

from __future__ import annotations

import io
import math

import numpy as np
import numpy.typing as npt
from PIL import Image

from batchproj.decode.item import PIECE, PieceSize
from batchproj.decode.limits import Limits
from batchproj.decoding import Fetched, Lending
from batchproj.errors import ItemFault
from batchproj.media import AudioSpec, ImageSpec, Segment, Spec, VideoSpec
from batchproj.schema import Modality, Reason
from batchproj.segments import LEAST_STEP_S, VideoSegments

EDGE_PX = 256
WAVE_PX = 96
MOST_BYTES = 64 * 2**20
"""Of a larger file there is no small picture: all of it is read and decoded for one."""

_SAMPLE_RATE = 8_000
_LATER_S = 0.5
"""After its start a segment is shown: the very first frame is often black."""
_JPEG_QUALITY = 82
_GREY = (110, 110, 110)
_LIMITS = Limits(item_bytes=MOST_BYTES, decode_s=5.0)
_PICTURE = ImageSpec(EDGE_PX, EDGE_PX, EDGE_PX)


class Thumbnails:
    """Draws them; `at_once` is how many of a kind. Threads may share it."""

    def __init__(self, at_once: int = 1) -> None:
        self._lent = {modality: Lending(at_once) for modality in (Modality.IMAGE, Modality.AUDIO)}
        self._at_once = at_once

    def draw(
        self, data: bytes, modality: Modality, start: float | None, end: float | None, is_sound_track: bool = False
    ) -> tuple[bytes, str]:
        """The picture of a file, of its segment from `start` to `end` seconds, and its media type.

        Of a sound track the file is its film.

        Raises ItemFault: UNSUPPORTED_FORMAT for texts, and what decoding finds.
        """
        begun, ended = start or 0.0, max(end or 0.0, (start or 0.0) + LEAST_STEP_S)
        match modality:
            case Modality.IMAGE:
                return _jpeg(self._segments(self._lent[modality], data, modality, _PICTURE, 1)[0]), "image/jpeg"
            case Modality.VIDEO:
                return _jpeg(self._frame(data, begun, ended)), "image/jpeg"
            case Modality.AUDIO:
                return _wave(self._samples(data, begun, ended, is_sound_track)), "image/png"
            case _:
                raise ItemFault(Reason.UNSUPPORTED_FORMAT, "a text has no picture")

    def _frame(self, data: bytes, start: float, end: float) -> Segment:
        """The frame a little after `start`: the middle of one of the equal pieces that the film is cut into."""
        wanted = start + min(_LATER_S, (end - start) / 4)
        pieces = math.ceil(wanted / (end - start))
        seconds = min(3600.0, max(LEAST_STEP_S, 2 * wanted / (2 * pieces + 1)))
        spec = VideoSpec(_PICTURE, VideoSegments(seconds=seconds, frames=1, min_seconds=0))
        # such a decoder is for this film alone
        found = self._segments(Lending(1), data, Modality.VIDEO, spec, int(wanted / seconds) + 1, PieceSize(segments=1))
        return Segment(found[-1].data[0])

    def _samples(self, data: bytes, start: float, end: float, of_film: bool) -> npt.NDArray[np.float32]:
        spec, lending = AudioSpec(_SAMPLE_RATE, window_s=1.0), self._lent[Modality.AUDIO]
        found = self._segments(lending, data, Modality.AUDIO, spec, math.ceil(end), is_sound_track=of_film)
        heard = np.concatenate([np.asarray(segment.data, np.float32) for segment in found])
        return heard[int(start * _SAMPLE_RATE) : math.ceil(end * _SAMPLE_RATE)]

    @staticmethod
    def _segments(
        lending: Lending,
        data: bytes,
        modality: Modality,
        spec: Spec,
        most: int,
        piece: PieceSize = PIECE,
        is_sound_track: bool = False,
    ) -> list[Segment]:
        """The first segments of a file, `most` of them if it has so many."""
        found: list[Segment] = []
        source = Fetched("thumbnail", "", None, "", data, "", "", is_sound_track=is_sound_track)
        with lending.one(modality, spec, _LIMITS, piece) as decoding:
            for decoded in decoding.ahead([source], None):
                if decoded.fault is not None:
                    raise decoded.fault
                found += decoded.segments
                if len(found) >= most:
                    break
        if not found:
            raise ItemFault(Reason.WRONG_TYPE, f"it is not {modality}")
        return found[:most]


def _jpeg(segment: Segment) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.asarray(segment.data, np.uint8)).save(out, "JPEG", quality=_JPEG_QUALITY)
    return out.getvalue()


def _wave(samples: npt.NDArray[np.float32]) -> bytes:
    """The loudest sample of each column, up and down from the middle, on nothing."""
    columns = (
        np.array_split(samples, EDGE_PX) if len(samples) >= EDGE_PX else [samples[i : i + 1] for i in range(EDGE_PX)]
    )
    peaks = np.array([np.abs(each).max(initial=0.0) for each in columns])
    half = np.maximum(1, peaks / max(float(peaks.max()), 1e-3) * WAVE_PX / 2)
    rows = np.abs(np.arange(WAVE_PX) - (WAVE_PX - 1) / 2)
    alpha = np.where(rows[:, None] <= half[None, :], 255, 0).astype(np.uint8)
    pixels = np.dstack([np.full_like(alpha, grey) for grey in _GREY] + [alpha])
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()
