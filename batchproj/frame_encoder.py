"""Videos by an image model, frame by frame.

B segments, T frames of one, D encoder dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from batchproj.media import ImageSpec, Segment, Spec, VideoSpec
from batchproj.segments import VideoSegments

if TYPE_CHECKING:
    from batchproj.image_encoder import ImageEncoder

Array = npt.NDArray[np.float32]


class FrameEncoder:
    """A loaded image model that takes videos: frames are pictures to it, and a video's feature is their mean.

    With `unit` each frame's feature is first brought to length 1, so that none counts for more: mean pooling as
    CLIP4Clip has it, Luo et al. 2021, arXiv:2104.08860 ("meanP").
    """

    def __init__(self, images: ImageEncoder, *, unit: bool) -> None:
        assert isinstance(images.spec, ImageSpec)
        self._images, self._unit = images, unit
        self.spec: Spec = VideoSpec(images.spec, VideoSegments())

    def encode(self, segments: Sequence[Segment]) -> Array:
        """Videos (T, H, W, 3) uint8 -> (B, D) float32: means of what `encode_tokens` gives."""
        if not segments:
            return self._images.encode([])
        return np.stack([frames_TD.mean(axis=0) for frames_TD in self.encode_tokens(segments)])

    def encode_tokens(self, segments: Sequence[Segment]) -> list[Array]:
        """Videos -> the features of their frames, (T, D) float32 each."""
        frames = [list(np.asarray(segment.data)) for segment in segments]
        features_ND = self._images.encode([Segment(frame) for each in frames for frame in each])
        if self._unit:
            lengths_N1 = np.linalg.norm(features_ND, axis=1, keepdims=True)
            features_ND = np.divide(features_ND, lengths_N1, out=np.zeros_like(features_ND), where=lengths_N1 > 0)
        return np.split(features_ND, np.cumsum([len(each) for each in frames])[:-1]) if frames else []
