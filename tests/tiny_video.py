"""Video models of random weights, each in transformers' own folder layout and made in a fraction of a second."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    PreTrainedTokenizerFast,
    VideoMAEConfig,
    VideoMAEImageProcessor,
    VideoMAEModel,
    VideoMAEVideoProcessor,
    XCLIPConfig,
    XCLIPModel,
)

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
PIXELS = {"image_size": 32, "patch_size": 8}
MOMENTS = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25]}
GEOMETRY = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
WORDS = [f"w{index}" for index in range(14)]


def save_videomae(folder: Path) -> Path:
    torch.manual_seed(0)
    VideoMAEModel(VideoMAEConfig(**SMALL, **PIXELS, num_frames=4, tubelet_size=2)).save_pretrained(folder)
    VideoMAEVideoProcessor(**GEOMETRY, **MOMENTS).save_pretrained(folder)
    return folder


def save_xclip(folder: Path) -> Path:
    """Both towers, with an image processor as published ones were saved."""
    torch.manual_seed(0)
    text = {**SMALL, "vocab_size": 16, "max_position_embeddings": 20, "eos_token_id": 15, "pad_token_id": 14}
    mit = {f"mit_{name}": value for name, value in SMALL.items()}
    vision = {**SMALL, **PIXELS, **mit, "num_frames": 4}
    config = XCLIPConfig(text_config=text, vision_config=vision, projection_dim=32, prompt_num_attention_heads=2)
    XCLIPModel(config).save_pretrained(folder)
    vocabulary = {**{word: number for number, word in enumerate(WORDS)}, "<pad>": 14, "<end>": 15}
    words = Tokenizer(models.WordLevel(vocabulary, WORDS[0]))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 15)])
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<pad>").save_pretrained(folder)
    VideoMAEImageProcessor(**GEOMETRY, **MOMENTS).save_pretrained(folder)
    return folder
