"""Pictures, sounds and films that are nearer to what people have than noise is, made in no time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image

Samples = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Coloured waves with some noise over them."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    waves = [np.sin(rng.uniform(2, 25) * x + rng.uniform(2, 25) * y + rng.uniform(0, 6)) for _ in "rgb"]
    values = np.stack(waves, -1) * 120 + 128 + rng.normal(0, 20, (height, width, 3))
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def sound(seconds: float, seed: int = 0, rate: int = 16_000) -> Samples:
    """Gliding tones with pauses and a little noise, of different loudness."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    tone = np.sin(2 * np.pi * (rng.uniform(150, 900) * t + 200 * np.sin(t * rng.uniform(1, 4))))
    samples: Samples = 0.4 / (seed % 5 + 1) * tone * (np.sin(t * 19 + seed) > -0.3) + rng.normal(0, 0.01, len(t))
    return samples.astype(np.float32)


def moving(frames: int, width: int, height: int, seed: int = 0) -> Iterator[Pixels]:
    """Frames of a picture that drifts."""
    drawn = np.asarray(picture(width, height, seed))
    return (np.roll(drawn, 3 * number, axis=1) for number in range(frames))
