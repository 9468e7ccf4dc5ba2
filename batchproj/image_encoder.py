"""The encoder that all kinds of image models share: they differ in how pixels become features."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from batchproj.accelerator import Coming, replayed
from batchproj.media import Segment, Spec
from batchproj.model_folder import ImageInput, blank_image
from batchproj.torch_runtime import Batches, Normalising, batches, forward_images, pixel_batch, to_host

Forward = Callable[[torch.Tensor], torch.Tensor]
"""Normalised pixels (B, 3, H, W) -> features of each image."""


class ImageEncoder:
    """A loaded image model: `pooled` gives features (B, D) by `network`, `tokens` (B, T, D), of pixels of `dtype`."""

    def __init__(
        self, pooled: Forward, tokens: Forward, network: torch.nn.Module, wanted: ImageInput, dtype: torch.dtype
    ) -> None:
        self._network, self._input, self._normalise = network, wanted, Normalising(wanted, dtype)
        self._pooled, self._tokens = self._batches(pooled, dtype), self._batches(tokens, dtype)
        self.spec: Spec = wanted.spec

    def encode(self, segments: Sequence[Segment]) -> npt.NDArray[np.float32]:
        """Images of the spec's size -> (B, D) float32."""
        if not segments:
            return self.encode([blank_image(self._input)])[:0]
        return np.stack(_run(self._pooled, segments))

    def encode_tokens(self, segments: Sequence[Segment]) -> list[npt.NDArray[np.float32]]:
        """Images of the spec's size -> their patches or places, row by row, (T, D) float32 each."""
        return _run(self._tokens, segments)

    def _batches(self, features: Forward, dtype: torch.dtype) -> Batches[Segment]:
        of_pixels = replayed(lambda pixels_BHWC: features(self._normalise(pixels_BHWC)), self._network)

        def forward(segments: Sequence[Segment]) -> npt.NDArray[np.float32] | Coming:
            with torch.inference_mode():
                return to_host(of_pixels(pixel_batch(segments, self._input)))

        return batches(forward, dtype)


def _run(images: Batches[Segment], segments: Sequence[Segment]) -> list[npt.NDArray[np.float32]]:
    return images.run(segments, key=lambda _: "image", full=lambda _: forward_images())
