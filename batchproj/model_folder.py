"""What a model folder says of itself: its JSON files, and the pixels an image model expects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from batchproj.errors import SpaceError
from batchproj.media import Fit, ImageSpec, Segment

Triple = tuple[float, float, float]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]

PIL_RESAMPLE: dict[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers, as image processors store them."""

_SQUASHING = ("Beit", "DeiT")
"""Image processors to which a size of one number means both edges, not the shorter one, by their class's name."""

_KIND_OF = {
    **dict.fromkeys(("clip", "siglip"), "clip"),
    **dict.fromkeys(
        ("vit", "deit", "beit", "dinov2", "dinov2_with_registers", "dinov3_vit", "dinov3_convnext"), "vision"
    ),
    **dict.fromkeys(("audio-spectrogram-transformer", "wav2vec2", "hubert", "wavlm"), "audio"),
    **dict.fromkeys(("videomae", "xclip"), "video"),
    "clap": "clap",
    "whisper": "whisper",
}
"""Kind of encoder that takes a model type; of the rest kind text may take what transformers knows."""

_TAKES = {
    "clip": "image, video and text",
    "vision": "image and video",
    "audio": "audio",
    "video": "video and text",
    "clap": "audio and text",
    "whisper": "audio",
}


def other_kind(model_type: object, otherwise: str) -> str:
    """The way out where a kind does not take a model type: the kind that does, or `otherwise`."""
    kind = _KIND_OF.get(str(model_type))
    return f"use kind: {kind}, which takes {_TAKES[kind]}" if kind else otherwise


_ATTENTION = (None, "eager", "sdpa", "flex_attention")
"""What transformers has itself; for other names it may fetch compiled code from the hub."""


def refuse_foreign_code(folder: Path) -> None:
    """Raise SpaceError for a model that is nothing without the Python code beside it, or asks for some of the hub's."""
    config = read_json(folder / "config.json")
    if "auto_map" in config:
        require_known(folder)
    for asked in _attention_asked_for(config):
        if asked not in _ATTENTION:
            raise SpaceError(
                f"{folder}/config.json asks for the attention code {asked!r}, which may be fetched from the hub and "
                "run: take the field out, transformers' own is used then"
            )
    if "quantization_config" in config:
        raise SpaceError(
            f"the weights in {folder} are quantised, which takes code of other packages or of the hub: take the model "
            "in full precision"
        )


def _attention_asked_for(config: dict[str, Any]) -> Iterator[Any]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _attention_asked_for(value)
        if key.removesuffix("_internal").endswith(("attn_implementation", "experts_implementation")):
            yield from value.values() if isinstance(value, dict) else (value,)


def require_known(folder: Path) -> None:
    """Raise SpaceError if transformers has no code for the model's type, which it takes 2 s to ask; weights stay."""
    from transformers import __version__
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    config = read_config(folder)
    if (name := config.get("model_type")) in CONFIG_MAPPING_NAMES:
        return
    if "auto_map" in config:
        raise SpaceError(
            f"'{name}' in {folder} needs the Python code that comes with the model, and such code is not run: take a "
            "model of a type that transformers has itself"
        )
    raise SpaceError(f"transformers {__version__} knows no model type '{name}' ({folder}): take another model")


def read_json(path: Path) -> dict[str, Any]:
    """The object in `path`, {} if there is no such file; SpaceError if it is something else."""
    content = _parsed(path, {})
    if not isinstance(content, dict):
        raise SpaceError(f"{path} holds a {type(content).__name__}, an object was expected")
    return content


def read_json_list(path: Path) -> list[dict[str, Any]]:
    """The list of objects in `path`, [] if there is no such file; SpaceError if it is something else."""
    content = _parsed(path, [])
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise SpaceError(f"{path} is not a list of objects, which was expected")
    return content


def _parsed(path: Path, missing: Any) -> Any:
    if not path.is_file():
        return missing
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise SpaceError(f"{path} is not JSON: {error}") from error


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json; SpaceError if there is none."""
    if not (config := read_json(folder / "config.json")):
        raise SpaceError(f"no config.json in {folder}: a model folder as transformers or timm save it was expected")
    return config


def complete_config(folder: Path) -> Any:
    """The config with the defaults that its file leaves out; imports transformers (1 to 3 s)."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise SpaceError(f"transformers does not know the model in {folder}: {reason}") from error


def sound_settings(folder: Path) -> dict[str, Any]:
    """The feature extractor's settings saved with the model; SpaceError if there are none.

    Formats: `preprocessor_config.json`, and since transformers 5 `processor_config.json`.
    """
    found = read_json(folder / "preprocessor_config.json")
    found = found or read_json(folder / "processor_config.json").get("feature_extractor", {})
    if not found:
        raise SpaceError(f"no preprocessor_config.json in {folder}: it says how sound is prepared for the model")
    return found


@dataclass(frozen=True)
class ImageInput:
    """Geometry, then `(pixel * scale - mean) / std` per channel."""

    spec: ImageSpec
    mean: Triple
    std: Triple
    scale: float = 1 / 255

    def decides(self) -> dict[str, Any]:
        """The part of a fingerprint that is about pixels, in JSON's own types."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}


def blank_image(wanted: ImageInput) -> Segment:
    """A black image of the wanted size."""
    return Segment(np.zeros((wanted.spec.height, wanted.spec.width, 3), np.uint8))


def image_input(folder: Path) -> ImageInput:
    """Read the image processor's settings saved with the model; SpaceError if they are missing.

    Formats: `preprocessor_config.json`, and since transformers 5 `processor_config.json`.
    """
    found = read_json(folder / "preprocessor_config.json")
    found = found or read_json(folder / "processor_config.json").get("image_processor", {})
    if not found:
        raise SpaceError(f"no preprocessor_config.json in {folder}: it says how to resize and normalise images")
    return _parsed_input(found, folder)


def video_input(folder: Path) -> ImageInput:
    """The same of a video model's frames.

    Formats: `processor_config.json` and `video_preprocessor_config.json` of transformers' video processors, which go
    before the image processors that older models were saved with.
    """
    found = read_json(folder / "processor_config.json").get("video_processor")
    found = found or read_json(folder / "video_preprocessor_config.json")
    return _parsed_input(found, folder) if found else image_input(folder)


def _parsed_input(found: dict[str, Any], folder: Path) -> ImageInput:
    try:
        return ImageInput(
            _geometry(found),
            _triple(found["image_mean"]) if found.get("do_normalize", True) else (0.0, 0.0, 0.0),
            _triple(found["image_std"]) if found.get("do_normalize", True) else (1.0, 1.0, 1.0),
            float(found.get("rescale_factor", 1 / 255)) if found.get("do_rescale", True) else 1.0,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise SpaceError(f"{folder}: image settings without a usable {error}: resize, mean and std expected") from error


def _geometry(found: dict[str, Any]) -> ImageSpec:
    how = PIL_RESAMPLE[int(found["resample"])]
    if "crop_pct" in found or not found.get("do_resize", True):
        raise ValueError("resize to one size (crop_pct and do_resize: false are not supported)")
    size = _size(found["size"])
    if not found.get("do_center_crop"):
        height, width = size["height"], size["width"]
        return ImageSpec(height, width, max(height, width), "squash", how)
    crop = _size(found["crop_size"])
    if "shortest_edge" in size:
        return ImageSpec(crop["height"], crop["width"], size["shortest_edge"], "crop_down", how)
    if size["height"] != size["width"]:
        raise ValueError("resize before the crop (a square was expected)")
    fit: Fit = "squash_crop_down" if _squashes(found) else "crop_down"
    return ImageSpec(crop["height"], crop["width"], size["height"], fit, how)


def _squashes(found: dict[str, Any]) -> bool:
    """Whether transformers resizes both edges before it crops; a size that is one number tells by the class alone."""
    name = str(found.get("image_processor_type", found.get("feature_extractor_type")))
    return not isinstance(found["size"], int) or name.startswith(_SQUASHING)


def _size(value: Any) -> dict[str, int]:
    """One number, as old files have it, means a square."""
    return {"height": value, "width": value} if isinstance(value, int) else dict(value)


def _triple(values: Any) -> Triple:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
