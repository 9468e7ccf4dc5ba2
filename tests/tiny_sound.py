"""Sound models of random weights, each in transformers' own folder layout and made in a fraction of a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    HubertConfig,
    HubertForCTC,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

RATE = 16_000
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
STEM = {"conv_dim": (16, 16, 16), "conv_kernel": (10, 8, 4), "conv_stride": (8, 8, 5), "num_feat_extract_layers": 3}
"""A frame every 20 ms, as in the real ones, with fewer layers."""
WAVE = {**SMALL, **STEM, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "vocab_size": 8}
NORMS = {"group": {}, "layer": {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}}
WAVES = ["wav2vec2-group", "wav2vec2-layer", "hubert-group", "hubert-layer", "wavlm-group", "wavlm-layer"]
NETWORKS: dict[str, Any] = {
    "wav2vec2": (Wav2Vec2ForCTC, Wav2Vec2Config),
    "hubert": (HubertForCTC, HubertConfig),
    "wavlm": (WavLMModel, WavLMConfig),
}


def save_wave(folder: Path, name: str, **fields: Any) -> Path:
    """With the head for speech recognition, where there is one; models of group norm take samples as they are."""
    family, norm = name.split("-")
    torch.manual_seed(0)
    network, config = NETWORKS[family]
    network(config(**{**WAVE, **NORMS[norm], **fields})).save_pretrained(folder)
    is_layer = norm == "layer"
    Wav2Vec2FeatureExtractor(do_normalize=is_layer, return_attention_mask=is_layer).save_pretrained(folder)
    return folder


def save_ast(folder: Path) -> Path:
    """With its classifier; windows of 1.28 s, 32 mels, and patches that overlap in time alone."""
    torch.manual_seed(0)
    window = {"max_length": 128, "num_mel_bins": 32}
    config = ASTConfig(**SMALL, **window, patch_size=16, frequency_stride=16, time_stride=10)
    ASTForAudioClassification(config).save_pretrained(folder)
    ASTFeatureExtractor(**window).save_pretrained(folder)
    return folder


def save_whisper(folder: Path) -> Path:
    """Encoder and decoder."""
    torch.manual_seed(0)
    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    marks = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    WhisperModel(WhisperConfig(**sizes, **heads, **marks, vocab_size=20)).save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)
    return folder
