"""The encoder that all kinds of image models share: they differ in how pixels become a pooled vector."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from batchproj.fixed_shapes import FixedShapes
from batchproj.media import Segment, Spec
from batchproj.model_folder import ImageInput, blank_image
from batchproj.torch_runtime import forward_images, pixel_batch, small_batches, to_numpy


class ImageEncoder:
    """A loaded image model; `pooled` maps normalised pixels (B, 3, H, W) of `dtype` to features (B, D)."""

    def __init__(self, pooled: Callable[[torch.Tensor], torch.Tensor], wanted: ImageInput, dtype: torch.dtype) -> None:
        self._pooled, self._input, self._dtype = pooled, wanted, dtype
        self._batches: FixedShapes[Segment] = FixedShapes(self._forward, small_batches(dtype))
        self.spec: Spec = wanted.spec

    def encode(self, segments: Sequence[Segment]) -> npt.NDArray[np.float32]:
        """Images of the spec's size -> (B, D) float32."""
        if not segments:
            return self.encode([blank_image(self._input)])[:0]
        return self._batches.run(segments, key=lambda _: "image", full=lambda _: forward_images())

    def _forward(self, segments: Sequence[Segment]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            return to_numpy(self._pooled(pixel_batch(segments, self._input, self._dtype)))
