"""Pictures that are resized for real: pixels against those of the models' own processors.

Equal to what is equal: transformers has each processor on Pillow and on torchvision. Ours are the former's to the grey
level; the latter, its default, rounds in other places: a grey level here and there, and up to seven, a third of one in
the mean, where an upright picture is squashed. DINOv3's processor, of torchvision alone, resizes numbers that were not
rounded: less than a grey level.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import timm
import transformers
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from waves import picture

from batchproj.decode.image import fitted
from batchproj.encode import parse_config
from batchproj.media import ImageSpec
from batchproj.model_folder import ImageInput, image_input
from batchproj.schema import Modality
from batchproj.weights import LocalModel

MOMENTS = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25]}
SHORTEST = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}
SQUARE = {"size": {"height": 36, "width": 36}, "crop_size": {"height": 31, "width": 31}, "do_center_crop": True}
BOTH = {"size": {"height": 32, "width": 32}}
SIZES = [(70, 50), (45, 64), (96, 33), (71, 50), (20, 40), (32, 32), (64, 51), (33, 57)]
"""Width and height; odd numbers of rows or columns are left over, of each remainder by four."""
PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "clip": ("CLIPImageProcessor", SHORTEST),
    "clip, squashed": ("CLIPImageProcessor", SQUARE),
    "siglip": ("SiglipImageProcessor", BOTH),
    "vit": ("ViTImageProcessor", BOTH),
    "deit": ("DeiTImageProcessor", SQUARE),
    "beit": ("BeitImageProcessor", SQUARE),
    "dinov2": ("BitImageProcessor", SHORTEST),
}
Array = npt.NDArray[np.float32]


def levels_apart(ours: ImageInput, theirs_CHW: Array, shown: Image.Image) -> Array:
    """Differences in grey levels of the picture as the model gets it."""
    pixels = fitted(shown, shown.size, ours.spec).astype(np.float32)
    normalised = (pixels * ours.scale - np.array(ours.mean)) / np.array(ours.std)
    apart: Array = np.abs(normalised - theirs_CHW.transpose(1, 2, 0)) * np.array(ours.std) / ours.scale
    return apart


def by(processor: Any, shown: Image.Image) -> Array:
    pixels: Array = np.asarray(processor(shown, return_tensors="np")["pixel_values"][0], np.float32)
    return pixels


@pytest.mark.parametrize("name", list(PROCESSORS))
def test_pixels_are_those_of_the_processor(tmp_path: Path, name: str) -> None:
    kind, geometry = PROCESSORS[name]
    getattr(transformers, kind)(**geometry, **MOMENTS).save_pretrained(tmp_path)
    ours = image_input(tmp_path)
    pillow, default = (
        transformers.AutoImageProcessor.from_pretrained(tmp_path, backend=backend) for backend in ("pil", None)
    )
    assert (type(pillow).__name__, type(default).__name__) == (f"{kind}Pil", kind)
    for number, (width, height) in enumerate(SIZES):
        shown = picture(width, height, number)
        np.testing.assert_allclose(levels_apart(ours, by(pillow, shown), shown), 0, atol=1e-3)
        apart = levels_apart(ours, by(default, shown), shown)
        assert (apart.max() < 8, apart.mean() < 0.5) == (True, True)


@pytest.mark.parametrize("kind", ["CLIPImageProcessor", "BitImageProcessor", "DeiTImageProcessor"])
def test_a_size_of_one_number_is_what_it_is_to_its_class(tmp_path: Path, kind: str) -> None:
    """As the older of the published files have it: the shorter edge to CLIP's class, both edges to DeiT's."""
    file = tmp_path / "preprocessor_config.json"
    settings = {"size": 36, "crop_size": 32, "do_center_crop": True, "do_resize": True, "resample": 3, **MOMENTS}
    file.write_text(json.dumps({**settings, "image_processor_type": kind}))
    pillow = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    for width, height in SIZES:
        shown = picture(width, height)
        np.testing.assert_allclose(levels_apart(image_input(tmp_path), by(pillow, shown), shown), 0, atol=1e-3)


def test_dinov3_is_resized_before_it_is_rounded(tmp_path: Path) -> None:
    transformers.DINOv3ViTImageProcessor(**BOTH, **MOMENTS).save_pretrained(tmp_path)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    for number, (width, height) in enumerate(SIZES):
        shown = picture(width, height, number)
        apart = levels_apart(image_input(tmp_path), by(processor, shown), shown)
        assert (apart.max() < 1.01, apart.mean() < 0.5) == (True, True)


@pytest.mark.parametrize(
    ("crop_pct", "crop_mode"), [(0.9, "center"), (0.875, "center"), (1.0, "squash"), (0.9, "squash"), (0.84, "squash")]
)
def test_pixels_are_those_of_timms_transform(tmp_path: Path, crop_pct: float, crop_mode: str) -> None:
    """DeepMind's NFNets squash a picture to more than the model takes, and cut the centre out of that."""
    cut = {"input_size": [3, 32, 32], "crop_pct": crop_pct, "crop_mode": crop_mode, "interpolation": "bicubic"}
    settings = {"architecture": "resnet10t", "pretrained_cfg": {**cut, "mean": [0.5] * 3, "std": [0.25] * 3}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    network = timm.create_model("resnet10t", pretrained_cfg=settings["pretrained_cfg"])
    transform = create_transform(**resolve_model_data_config(network))
    config = parse_config({"kind": "vision", "model": "m"}, "test")
    found = config.describe(LocalModel(tmp_path, ""), Modality.IMAGE).decides["preprocess"]
    ours = ImageInput(**{**found, "spec": ImageSpec(**found["spec"])})
    for width, height in SIZES:
        shown = picture(width, height)
        np.testing.assert_allclose(levels_apart(ours, transform(shown).numpy(), shown), 0, atol=1e-3)
