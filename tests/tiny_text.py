"""Text models of random weights, each in transformers' own folder layout and made in a fraction of a second."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from conftest import WORDS
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    Glm4Config,
    Glm4ForCausalLM,
    GlmConfig,
    GlmForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MT5Config,
    MT5ForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

from batchproj.encode import Description, Encoder, parse_config
from batchproj.media import Segment
from batchproj.schema import Modality
from batchproj.weights import LocalModel, resolve

VOCABULARY = 20
"""Four marks and the fourteen words, and two that no text has."""
_T5_SIZES = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4}
_LLM_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}


def build(folder: Path, **fields: Any) -> Encoder:
    config = parse_config({"kind": "text", "model": str(folder), **fields}, "test")
    return config.build(resolve(str(folder), None, None), Modality.TEXT, 1)


def described(folder: Path, **fields: Any) -> Description:
    config = parse_config({"kind": "text", "model": "m", **fields}, "test")
    return config.describe(LocalModel(folder, "sha256:x"), Modality.TEXT)


def segments(texts: list[str]) -> list[Segment]:
    return [Segment(text) for text in texts]


def save_tokenizer(folder: Path, marks: list[str], template: str | None, **options: Any) -> None:
    """Words by white space, after `marks`, which `template` puts around a text."""
    known = [*marks, *WORDS]
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(known)}, unk_token=marks[-1]))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if template:
        used = [(mark, known.index(mark)) for mark in marks if mark in template.split()]
        words.post_processor = processors.TemplateProcessing(single=template, special_tokens=used)
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token=marks[-1], **options).save_pretrained(folder)


def save_bert(folder: Path) -> Path:
    """Without sentence-transformers files."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=VOCABULARY, **sizes, max_position_embeddings=64, pad_token_id=2)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    marks = ["[CLS]", "[SEP]", "[PAD]", "[UNK]"]
    save_tokenizer(folder, marks, "[CLS] $A [SEP]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")
    return folder


def save_t5(folder: Path, **fields: Any) -> Path:
    """Encoder and decoder, the latter a layer deeper; `</s>` at the end of a text."""
    return _save_t5(folder, T5ForConditionalGeneration, T5Config, **fields)


def save_gated_t5(folder: Path) -> Path:
    """As Flan-T5 and UL2."""
    return _save_t5(folder, T5ForConditionalGeneration, T5Config, feed_forward_proj="gated-gelu")


def save_mt5(folder: Path) -> Path:
    return _save_t5(folder, MT5ForConditionalGeneration, MT5Config)


def save_umt5(folder: Path) -> Path:
    return _save_t5(folder, UMT5ForConditionalGeneration, UMT5Config)


def _save_t5(folder: Path, network: Any, config: Any, **fields: Any) -> Path:
    torch.manual_seed(0)
    network(config(vocab_size=VOCABULARY, **{**_T5_SIZES, **fields})).save_pretrained(folder)
    save_tokenizer(folder, ["<pad>", "</s>", "<unk>"], "$A </s>", pad_token="<pad>", eos_token="</s>")
    return folder


def save_llama(folder: Path) -> Path:
    """With its head; the tokenizer adds no mark and pads on the left."""
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **_LLM_SIZES)).save_pretrained(folder)
    marks = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    save_tokenizer(folder, ["<s>", "</s>", "<unk>"], None, padding_side="left", **marks)
    return folder


def save_glm(folder: Path) -> Path:
    """As in transformers itself; the older ChatGLM brings Python code of its own, and is refused."""
    return _save_glm(folder, GlmForCausalLM, GlmConfig)


def save_glm4(folder: Path) -> Path:
    return _save_glm(folder, Glm4ForCausalLM, Glm4Config)


def _save_glm(folder: Path, network: Any, config: Any) -> Path:
    torch.manual_seed(0)
    network(config(vocab_size=VOCABULARY, head_dim=8, pad_token_id=0, eos_token_id=0, **_LLM_SIZES)).save_pretrained(
        folder
    )
    save_tokenizer(folder, ["<end>", "<unk>"], None, padding_side="left", pad_token="<end>", eos_token="<end>")
    return folder


def save_qwen3(folder: Path) -> Path:
    """With its head; the tokenizer adds an end mark and pads on the left, as Qwen3-Embedding's."""
    return _save_qwen3(folder, Qwen3ForCausalLM, Qwen3Config(vocab_size=VOCABULARY, head_dim=8, **_LLM_SIZES))


def save_qwen3_moe(folder: Path) -> Path:
    """A layer of it is sixteen experts, of which each token asks two."""
    experts = {"num_experts": 16, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8}
    return _save_qwen3(folder, Qwen3MoeForCausalLM, Qwen3MoeConfig(vocab_size=VOCABULARY, **experts, **_LLM_SIZES))


def _save_qwen3(folder: Path, network: Any, config: Any) -> Path:
    torch.manual_seed(0)
    network(config).save_pretrained(folder)
    marks = {"eos_token": "<end>", "pad_token": "<end>"}
    save_tokenizer(folder, ["<end>", "<unk>"], "$A <end>", padding_side="left", **marks)
    return folder


def save_clap(folder: Path, **audio: Any) -> Path:
    """Both towers, into 24 dims; windows of 2 s at 16 kHz, 16 mels."""
    torch.manual_seed(0)
    small = {"hidden_size": 32, "patch_embeds_hidden_size": 16, "depths": [1, 1], "num_attention_heads": [2, 2]}
    sound = {**small, "num_hidden_layers": 2, "spec_size": 64, "num_mel_bins": 16, "window_size": 4, **audio}
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = ClapConfig(
        text_config={**text, "vocab_size": VOCABULARY, "max_position_embeddings": 66, "pad_token_id": 1},
        audio_config=sound,
        projection_dim=24,
    )
    ClapModel(config).save_pretrained(folder)
    marks = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>"}
    save_tokenizer(folder, ["<s>", "<pad>", "</s>", "<unk>"], "<s> $A </s>", **marks)
    save_sound_settings(folder)
    return folder


def save_sound_settings(folder: Path, **fields: Any) -> None:
    usual: dict[str, Any] = {"feature_size": 16, "sampling_rate": 16_000, "hop_length": 160, "max_length_s": 2}
    usual |= {"fft_window_size": 512, "frequency_min": 50, "frequency_max": 7_000, "truncation": "rand_trunc"}
    ClapFeatureExtractor(**{**usual, **fields}).save_pretrained(folder)


def with_sentence_files(folder: Path, copy: Path, pooling: str, *types: str, **files: dict[str, Any]) -> Path:
    """The model in a sentence-transformers layout: Transformer, Pooling, then `types`; JSON `files` by their stem."""
    shutil.copytree(folder, copy)
    kinds = ["Transformer", "Pooling", *types]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (copy / "modules.json").write_text(json.dumps(modules))
    (copy / "1_Pooling").mkdir()
    (copy / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 32, f"pooling_mode_{pooling}": True})
    )
    for stem, content in files.items():
        (copy / f"{stem}.json").write_text(json.dumps(content))
    return copy


SAVED: dict[str, Callable[[Path], Path]] = {
    "bert": save_bert,
    "t5": save_t5,
    "gated_t5": save_gated_t5,
    "mt5": save_mt5,
    "umt5": save_umt5,
    "llama": save_llama,
    "qwen3": save_qwen3,
    "glm": save_glm,
    "glm4": save_glm4,
    "qwen3_moe": save_qwen3_moe,
    "clap": save_clap,
}
