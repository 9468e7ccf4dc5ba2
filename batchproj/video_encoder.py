"""The encoder that video models share: they differ in how the pixels of some frames become states over time.

B segments, T frames of each, S steps in time that come out, D encoder dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from batchproj.accelerator import Coming, Replayed
from batchproj.errors import SpaceError
from batchproj.media import Segment, Spec, VideoSpec
from batchproj.model_folder import ImageInput, blank_image
from batchproj.segments import VideoSegments
from batchproj.torch_runtime import Batches, Normalising, batches, forward_images, pixel_batch, to_host

States = Callable[[torch.Tensor], torch.Tensor]
"""Normalised pixels (B, T, 3, H, W) -> states over time (B, S, D), in fp32."""
Array = npt.NDArray[np.float32]


class VideoEncoder:
    """A loaded video model that takes `frames` frames of `dtype`; its feature is the mean of its states over time."""

    def __init__(self, states: States, wanted: ImageInput, frames: int, dtype: torch.dtype) -> None:
        self._input, self._frames, self._normalise = wanted, frames, Normalising(wanted, dtype)
        self._states = Replayed(lambda pixels_NHWC: states(self._clips(pixels_NHWC)))
        self._batches: Batches[Segment] = batches(self._forward, dtype)
        self.spec: Spec = VideoSpec(wanted.spec, VideoSegments(frames=frames))

    def encode(self, segments: Sequence[Segment]) -> Array:
        """Videos (T, H, W, 3) uint8 -> (B, D) float32."""
        if not segments:
            blank = np.asarray(blank_image(self._input).data)
            return self.encode([Segment(np.stack([blank] * self._frames))])[:0]
        return np.stack([states_SD.mean(axis=0) for states_SD in self.encode_tokens(segments)])

    def encode_tokens(self, segments: Sequence[Segment]) -> list[Array]:
        """Videos -> their states over time, (S, D) float32 each."""
        videos_a_batch = max(1, forward_images() // self._frames)
        return self._batches.run(segments, key=lambda _: "video", full=lambda _: videos_a_batch)

    def _forward(self, segments: Sequence[Segment]) -> Array | Coming:
        frames = [Segment(frame) for segment in segments for frame in self._frames_of(segment)]
        with torch.inference_mode():
            return to_host(self._states(pixel_batch(frames, self._input)))

    def _clips(self, pixels_NHWC: torch.Tensor) -> torch.Tensor:
        pixels_NCHW = self._normalise(pixels_NHWC)
        return pixels_NCHW.reshape(-1, self._frames, *pixels_NCHW.shape[1:])

    def _frames_of(self, segment: Segment) -> list[npt.NDArray[np.uint8]]:
        frames = list(np.asarray(segment.data))
        if len(frames) != self._frames:
            raise SpaceError(
                f"{len(frames)} frames, this encoder takes {self._frames} a video: decode with the encoder's own spec"
            )
        return frames
