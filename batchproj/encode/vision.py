"""Images, or the frames of videos, -> one vector: ViT, DINOv2 and DINOv3 of transformers, and any timm model.

Sources: Dosovitskiy et al. 2021 (ViT), arXiv:2010.11929; Oquab et al. 2023 (DINOv2), arXiv:2304.07193;
Siméoni et al. 2025 (DINOv3), arXiv:2508.10104; Tan and Le 2019 (EfficientNet), arXiv:1905.11946;
Brock et al. 2021 (NFNet), arXiv:2102.06171.
B rows, T tokens, D encoder dim.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from batchproj.encode import Description, Encoder, EncoderConfig
from batchproj.errors import SpaceError
from batchproj.frame_encoder import FrameEncoder
from batchproj.media import Fit, ImageSpec
from batchproj.model_folder import ImageInput, complete_config, image_input, other_kind, read_config, read_json
from batchproj.schema import Modality
from batchproj.weights import LocalModel

if TYPE_CHECKING:
    import torch

    from batchproj.image_encoder import ImageEncoder

Pooling = Literal["cls", "mean", "pooler"]


class _Family(NamedTuple):
    """Best pooling by the model's card, and how many tokens come before the patches."""

    pooling: Pooling
    prefix: int


_FAMILIES = {
    "vit": _Family("cls", 1),
    "deit": _Family("cls", 2),  # class and distillation
    "beit": _Family("mean", 1),
    "dinov2": _Family("cls", 1),
    "dinov2_with_registers": _Family("cls", 1),
    "dinov3_vit": _Family("cls", 1),
    "dinov3_convnext": _Family("cls", 1),  # the mean of the last map, normalised
}


class Config(EncoderConfig):
    """An image encoder. `architecture` names a timm model for weights without a timm config.json.

    Convolution networks of timm give their pooled features; `pooling` is for transformers models,
    None means: the family's own. `mean` is over the patches alone, registers left out.

    A video's feature is the mean of its frames' features as they are, so that it lies where those of images do and
    an image projector can serve it; its tokens are the frames' features.
    """

    modalities: ClassVar[frozenset[Modality]] = frozenset({Modality.IMAGE, Modality.VIDEO})

    architecture: str | None = None
    pooling: Pooling | None = None

    def describe(self, model: LocalModel, modality: Modality) -> Description:
        """D and all that decides a feature; for timm models it imports timm (seconds, once)."""
        self.require(modality)
        decides: dict[str, Any] = {"kind": self.kind, "weights": model.digest, "dtype": self.dtype}
        if modality is Modality.VIDEO:
            decides["frames"] = "mean"
        if name := self._timm_name(model.path):
            skeleton = _timm_network(name, model.path, device="meta")
            decides |= {"architecture": name, "pooling": "global", "preprocess": _timm_input(skeleton).decides()}
            return Description(_timm_dim(skeleton), decides | self._standardisation(skeleton))
        decides |= {"pooling": self._pooling(model.path), "preprocess": image_input(model.path).decides()}
        return Description(_hidden_size(model.path), decides)

    def describe_tokens(self, model: LocalModel, modality: Modality) -> Description:
        """Of the patches, or of the places of a convolution network's last map; registers are left out.

        Of a video: of its frames' features.
        """
        self.require(modality)
        if modality is Modality.VIDEO:
            return replace(self.describe(model, modality), mean_pooled=True)
        decides: dict[str, Any] = {"kind": self.kind, "weights": model.digest, "dtype": self.dtype}
        if name := self._timm_name(model.path):
            skeleton = _timm_network(name, model.path, device="meta")
            decides |= {"architecture": name, "preprocess": _timm_input(skeleton).decides()}
            return Description(_timm_token_dim(skeleton), decides | self._standardisation(skeleton))
        self._pooling(model.path)
        return Description(_hidden_size(model.path), {**decides, "preprocess": image_input(model.path).decides()})

    def build(self, model: LocalModel, modality: Modality, threads: int) -> Encoder:
        """Load the weights, convolutions in the memory order they are fastest in (channels last)."""
        from batchproj.torch_runtime import use_threads

        self.require(modality)
        use_threads(threads)
        name = self._timm_name(model.path)
        images = self._build_timm(name, model.path) if name else self._build_transformers(model.path)
        return FrameEncoder(images, unit=False) if modality is Modality.VIDEO else images

    def _build_transformers(self, folder: Path) -> ImageEncoder:
        from transformers import AutoModel

        from batchproj.image_encoder import ImageEncoder
        from batchproj.torch_runtime import load_pretrained

        pooling = self._pooling(folder)
        network = load_pretrained(AutoModel, folder, self.dtype, () if pooling == "pooler" else ("pooler.",))
        return ImageEncoder(_pooled(network, pooling), _patches(network), network, image_input(folder), network.dtype)

    def _build_timm(self, name: str, folder: Path) -> ImageEncoder:
        import torch

        from batchproj.accelerator import device
        from batchproj.image_encoder import ImageEncoder
        from batchproj.torch_runtime import torch_dtype

        network = _timm_loaded(name, folder)
        wanted = _timm_input(network)
        network.to(device(), memory_format=torch.channels_last)
        dtype = _prepare(network, torch_dtype(self.dtype))
        return ImageEncoder(lambda pixels: network(pixels).float(), _timm_tokens(network), network, wanted, dtype)

    def _standardisation(self, skeleton: Any) -> dict[str, str]:
        """When weights are standardised, of networks that do so and have a choice."""
        from batchproj.standardised_weights import standardises

        return {"standardised": "before bf16"} if self.dtype == "bf16" and standardises(skeleton) else {}

    def _timm_name(self, folder: Path) -> str | None:
        return self.architecture or read_json(folder / "config.json").get("architecture")

    def _pooling(self, folder: Path) -> Pooling:
        name = read_config(folder).get("model_type")
        family = _FAMILIES.get(str(name))
        if family is None:
            known = ", ".join(_FAMILIES)
            way = other_kind(name, f"{known} or a timm model expected")
            raise SpaceError(f"'{name}' in {folder} is no image model of kind vision: {way}")
        return self.pooling or family.pooling


def _pooled(network: Any, pooling: Pooling) -> Callable[[torch.Tensor], torch.Tensor]:
    patches = _patches(network)

    def forward(pixels: torch.Tensor) -> torch.Tensor:
        if pooling == "mean":
            return patches(pixels).mean(1)
        output = network(pixel_values=pixels)
        pooled: torch.Tensor = output.pooler_output if pooling == "pooler" else output.last_hidden_state[:, 0].float()
        return pooled

    return forward


def _patches(network: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """Pixels -> states of the patches (B, T, D), in fp32."""
    prefix = _FAMILIES[network.config.model_type].prefix + getattr(network.config, "num_register_tokens", 0)

    def forward(pixels: torch.Tensor) -> torch.Tensor:
        states_BTD: torch.Tensor = network(pixel_values=pixels).last_hidden_state.float()
        return states_BTD[:, prefix:]

    return forward


def _timm_tokens(network: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """Pixels -> what is pooled in the end (B, T, D), in fp32: places of a map row by row, or patches."""

    def forward(pixels: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = network.forward_features(pixels).float()
        if features.ndim == 4:
            is_channels_last = str(getattr(network, "output_fmt", "NCHW")).endswith("NHWC")
            return features.flatten(1, 2) if is_channels_last else features.flatten(2).transpose(1, 2)
        return features[:, getattr(network, "num_prefix_tokens", 0) :]

    return forward


def _prepare(network: Any, dtype: torch.dtype) -> torch.dtype:
    """Let the network compute in `dtype`, norms folded; the dtype its pixels must have from now on.

    EfficientNets lose too much by bf16: 0.992 cosine to fp32 at worst (lite0; waves, emoji and
    photographs). With batch norms folded into the convolutions while still in fp32, and the stem
    and the first stage left in fp32, it is 0.9993 at the same speed. Folded ones are faster in fp32 too.

    NFNets standardise their weights at each call, of bf16 weights: down to 0.9992 over the depth of F6
    (random weights). Done once, while still in fp32, it is 0.9998, in 0.7 of the time.
    """
    import torch
    from timm.models.efficientnet import EfficientNet

    from batchproj.bf16_convolutions import keep_right
    from batchproj.fused_convolutions import fuse
    from batchproj.standardised_weights import standardise

    standardise(network)
    if not isinstance(network, EfficientNet):
        network.to(dtype)
        keep_right(network)
        return dtype
    _fold_batch_norms(network)
    for part in (*network.blocks[1:], network.conv_head, network.bn2):
        part.to(dtype)
    keep_right(network)
    fuse(network)
    network.blocks[0].register_forward_hook(lambda _part, _inputs, output: output.to(dtype))
    network.bn2.register_forward_hook(lambda _part, _inputs, output: output.float())  # pooled in fp32
    return torch.float32


def _fold_batch_norms(module: Any) -> None:
    """Replace each convolution and the norm right after it by one convolution and the activation.

    In timm's EfficientNets a norm's predecessor among its siblings is the layer it normalises.
    """
    from timm.layers import BatchNormAct2d
    from torch.nn import Conv2d
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    children = list(module.named_children())
    for (name, convolution), (norm_name, norm) in pairwise(children):
        if isinstance(convolution, Conv2d) and isinstance(norm, BatchNormAct2d):
            setattr(module, name, fuse_conv_bn_eval(convolution, norm))
            setattr(module, norm_name, norm.act)
    for _, child in children:
        _fold_batch_norms(child)


def _hidden_size(folder: Path) -> int:
    config = read_config(folder)
    if "hidden_size" in config:
        return int(config["hidden_size"])
    whole = complete_config(folder)
    return int(whole.hidden_sizes[-1] if hasattr(whole, "hidden_sizes") else whole.hidden_size)


def _timm_network(name: str, folder: Path, device: str) -> Any:
    """The network with random weights, on "meta" with none; SpaceError if timm has no `name`."""
    import timm
    import torch

    settings = read_json(folder / "config.json")
    arguments = settings.get("model_args", {})
    _check_arguments(name, arguments, folder)
    try:
        with torch.device(device):
            return timm.create_model(
                name,
                pretrained=False,
                num_classes=settings.get("num_classes"),
                pretrained_cfg=settings.get("pretrained_cfg"),
                **arguments,
            ).eval()
    except (RuntimeError, TypeError) as error:
        raise SpaceError(f"timm cannot make architecture '{name}': {str(error).partition(chr(10))[0]}") from error


def _check_arguments(name: str, arguments: dict[str, Any], folder: Path) -> None:
    """Raise SpaceError where timm would be led to another model, or to weights beside those that are pinned."""
    import timm

    own = set(inspect.signature(timm.create_model).parameters) - {"kwargs"}
    if led := sorted(key for key in arguments if key in own or key.startswith("pretrained")):
        raise SpaceError(
            f"{folder}/config.json sets model_args.{led[0]}, which is no argument of a network: take it out"
        )
    if ":" in name:
        raise SpaceError(f"architecture '{name}' of {folder} leads to another model: the name of a timm model expected")


def _timm_dim(skeleton: Any) -> int:
    """Width of the pooled features: sent through without data, as timm's attributes differ by model."""
    import torch

    skeleton.reset_classifier(0)
    shape = skeleton(torch.empty(1, *skeleton.pretrained_cfg["input_size"], device="meta")).shape
    if len(shape) != 2:
        raise SpaceError(f"{type(skeleton).__name__} gives features {tuple(shape)}: one vector an image was expected")
    return int(shape[1])


def _timm_token_dim(skeleton: Any) -> int:
    """Width of the tokens, found as in `_timm_dim`; SpaceError if there are none."""
    import torch

    pixels = torch.empty(1, *skeleton.pretrained_cfg["input_size"], device="meta")
    shape = skeleton.forward_features(pixels).shape
    if len(shape) not in (3, 4):
        raise SpaceError(
            f"{type(skeleton).__name__} gives features {tuple(shape)} before pooling, a map or a row of tokens "
            "was expected: leave out 'cache: tokens'"
        )
    return int(_timm_tokens(skeleton)(pixels).shape[2])


def _timm_input(network: Any) -> ImageInput:
    from timm.data import resolve_model_data_config

    found = resolve_model_data_config(network)
    if found["crop_mode"] not in ("center", "squash"):
        raise SpaceError(f"crop mode '{found['crop_mode']}' is not supported: center or squash was expected")
    _, height, width = found["input_size"]
    edge = math.floor(min(height, width) / found["crop_pct"])
    fit: Fit = "crop" if found["crop_mode"] == "center" else "squash" if found["crop_pct"] == 1 else "squash_crop"
    if height != width and fit != "squash":
        raise SpaceError(f"an input of {height} x {width} with crop_pct {found['crop_pct']}: a square one was expected")
    return ImageInput(
        ImageSpec(height, width, edge, fit, found["interpolation"]),
        tuple(found["mean"]),
        tuple(found["std"]),
    )


def _timm_loaded(name: str, folder: Path) -> Any:
    """The network with the folder's weights, in fp32, its classifier removed."""
    network = _timm_network(name, folder, device="cpu")
    path, weights = _state(folder)
    expected = network.state_dict()
    if weights.keys() != expected.keys():
        weights = _renamed(weights, expected, path)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise SpaceError(f"{path} does not fit timm's '{name}': {' '.join(str(error).split())[:200]}") from error
    network.reset_classifier(0)
    return network.requires_grad_(requires_grad=False)


def _state(folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    import torch
    from safetensors.torch import load_file

    if found := sorted(folder.glob("*.safetensors")):
        path, load = found[0], load_file
    elif found := sorted(folder.glob("*.pth")):
        path, load = found[0], lambda file: torch.load(file, map_location="cpu", weights_only=True)
    if len(found) != 1:
        raise SpaceError(f"{len(found)} weight files in {folder}: one .safetensors (or pinned .pth) was expected")
    return path, dict(load(path))


def _renamed(
    weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], path: Path
) -> dict[str, torch.Tensor]:
    """Weights of another implementation under timm's names, by position.

    Safe because every pair must agree in shape and in the last part of its name.
    """
    pairs = list(zip(weights.items(), expected.items(), strict=False))
    for (old, tensor), (new, wanted) in pairs:
        if tensor.shape != wanted.shape or old.rpartition(".")[2] != new.rpartition(".")[2]:
            raise SpaceError(
                f"{path}: '{old}' {tuple(tensor.shape)} stands where '{new}' {tuple(wanted.shape)} "
                "was expected: weights of another architecture"
            )
    if len(weights) != len(expected):
        raise SpaceError(f"{path} has {len(weights)} tensors, the architecture {len(expected)}")
    return {new: tensor for (_, tensor), (new, _) in pairs}
