"""Image models of random weights, and the text towers beside them, in transformers' and timm's own folder layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    Dinov2Config,
    Dinov2Model,
    DINOv3ConvNextConfig,
    DINOv3ConvNextModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
    ViTConfig,
    ViTModel,
)

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
TEXT = {"vocab_size": 16, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
WORDS = [f"w{index}" for index in range(14)]  # then the end mark, 14, and the padding, 15


def save_tokenizer(folder: Path) -> None:
    words = Tokenizer(models.WordLevel({**{w: i for i, w in enumerate(WORDS)}, "<end>": 14, "<pad>": 15}, "w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 14)])
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<pad>").save_pretrained(folder)


def save_processor(folder: Path, **geometry: Any) -> None:
    values = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25], "resample": 3, **geometry}
    (folder / "preprocessor_config.json").write_text(json.dumps(values))


def save_clip(folder: Path) -> Path:
    torch.manual_seed(0)
    text = CLIPTextConfig(**TEXT, max_position_embeddings=20, eos_token_id=14, bos_token_id=0, pad_token_id=15)
    config = CLIPConfig(
        text_config=text.to_dict(), vision_config={**VISION, "image_size": 32, "patch_size": 8}, projection_dim=24
    )
    CLIPModel(config).save_pretrained(folder)
    save_tokenizer(folder)
    save_processor(folder, size={"shortest_edge": 36}, crop_size=32, do_center_crop=True)
    return folder


def save_siglip(folder: Path) -> Path:
    torch.manual_seed(0)
    config = SiglipConfig(
        text_config=SiglipTextConfig(**TEXT, max_position_embeddings=20, pad_token_id=15).to_dict(),
        vision_config=SiglipVisionConfig(**VISION, image_size=32, patch_size=8).to_dict(),
    )
    SiglipModel(config).save_pretrained(folder)
    save_tokenizer(folder)
    save_processor(folder, size={"height": 32, "width": 32})
    return folder


def save_transformer(folder: Path, name: str) -> Any:
    """A vision model of transformers, which is given back."""
    torch.manual_seed(0)
    if name == "vit":
        network: Any = ViTModel(ViTConfig(**SMALL, intermediate_size=64), add_pooling_layer=False)
    elif name == "dinov3_vit":
        network = DINOv3ViTModel(DINOv3ViTConfig(**SMALL, intermediate_size=64, num_register_tokens=4))
    elif name == "dinov3_convnext":
        network = DINOv3ConvNextModel(DINOv3ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1]))
    else:
        network = Dinov2Model(Dinov2Config(**SMALL, mlp_ratio=2))
    network.save_pretrained(folder)
    values = {"size": {"height": 32, "width": 32}, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(values))
    return network


NETWORKS: dict[str, dict[str, Any]] = {
    "dm_nfnet_f6": {"channels": [32, 64, 96, 96], "stem_chs": 16, "group_size": 16, "num_features": 128},
    "nfnet_l0": {"depths": [1, 2, 2, 1], "channels": [64, 128, 192, 192], "stem_chs": 32, "group_size": 16},
    "convnext_atto": {"depths": [1, 1, 2, 1], "dims": [16, 32, 48, 64]},
    "efficientnet_b0": {},
    "tf_efficientnetv2_b0": {},
    "vit_tiny_patch16_224": {"img_size": 64, "depth": 2},
    "swin_tiny_patch4_window7_224": {"img_size": 64, "depths": [1, 1, 1, 1], "embed_dim": 24, "window_size": 2},
}
"""timm's names, made narrow; F6 in all its depth."""


def save_timm(folder: Path, name: str, **changed: Any) -> Any:
    """With every gain away from its first value, so that no branch is multiplied by zero.

    `changed` are settings of its pixels.
    """
    torch.manual_seed(0)
    network = timm.create_model(name, pretrained=False, num_classes=7, **NETWORKS[name]).eval()
    with torch.no_grad():
        for key, weight in network.named_parameters():
            if key.endswith(("skipinit_gain", "gamma")):
                weight.fill_(0.3)
            elif key.endswith("gain"):
                weight.add_(torch.randn_like(weight) / 5)
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, folder / "model.safetensors")
    cut = {"input_size": [3, 64, 64], "crop_pct": 1.0, "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3}
    settings = {"architecture": name, "num_classes": 7, "model_args": NETWORKS[name], "pretrained_cfg": cut | changed}
    (folder / "config.json").write_text(json.dumps(settings))
    network.reset_classifier(0)
    return network
