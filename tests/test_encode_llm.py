"""Decoder-only language models: the last real token's state, as transformers' own loop gives it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from conftest import WORDS
from exact_rows import assert_rows_are_their_own
from safetensors.torch import load_file, save_file
from tiny_text import SAVED, build, described, segments, with_sentence_files
from transformers import AutoModelForCausalLM, AutoTokenizer

from batchproj.errors import SpaceError
from batchproj.media import TextSpec
from batchproj.tokens import load_tokenizer
from batchproj.weights import resolve

TEXTS = ["w1", "w1 w2 w3", " ".join(WORDS), "w4 w5 " * 20, "w7 " * 39, "w3 w9 " * 120]
NAMES = ["llama", "qwen3", "qwen3_moe", "glm", "glm4"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("llm")
    return {name: SAVED[name](home / name) for name in NAMES}


def last_states(folder: Path, texts: list[str]) -> npt.NDArray[np.float32]:
    """By the usual loop: one batch of the whole model, padded on the left, and the last position of each row."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert tokenizer.padding_side == "left"
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    assert inputs["attention_mask"][0, 0] == 0
    with torch.inference_mode():
        states = model.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
        found: npt.NDArray[np.float32] = states[:, -1].numpy()
    return found


def cosines(left: npt.NDArray[np.float32], right: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    found: npt.NDArray[np.float32] = (
        (left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)
    )
    return found


@pytest.mark.parametrize("name", NAMES)
def test_vectors_are_the_last_tokens_state(folders: dict[str, Path], name: str) -> None:
    found = described(folders[name])
    assert (found.dim, found.decides["pooling"], found.decides["normalize"]) == (32, "last", False)
    features = build(folders[name], dtype="fp32").encode(segments(TEXTS))
    assert (features.shape, features.dtype) == ((len(TEXTS), 32), np.float32)
    assert cosines(features, last_states(folders[name], TEXTS)).min() >= 0.99999
    assert cosines(build(folders[name]).encode(segments(TEXTS)), features).min() >= 0.99


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_what_the_tokenizer_puts_at_the_end_is_the_last_token(folders: dict[str, Path], name: str) -> None:
    encoder = build(folders[name], dtype="fp32")
    tokens = encoder.encode_tokens(segments(TEXTS))
    ends = {"llama": 0, "qwen3": 1}[name]
    assert [len(each) for each in tokens] == [len(text.split()) + ends for text in TEXTS]
    np.testing.assert_array_equal(encoder.encode(segments(TEXTS)), [each[-1] for each in tokens])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_a_row_never_shows_its_neighbours(folders: dict[str, Path], name: str, dtype: str) -> None:
    texts = [*TEXTS, *(f"w{number % 14} w2 " * (number % 23 + 1) for number in range(26))]
    assert_rows_are_their_own(build(folders[name], dtype=dtype), segments(texts))


def test_experts_do_not_show_a_row_s_neighbours(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """An expert multiplies what the whole batch sends it, and one to three tokens get other bits than more."""
    monkeypatch.setattr("batchproj.text_encoder.forward_tokens", lambda _: 24)  # as a wide model's, on CPU
    texts = [" ".join(WORDS[(7 * row + 3 * place) % 14] for place in range(4)) for row in range(26)]
    assert_rows_are_their_own(build(folders["qwen3_moe"], dtype="fp32"), segments(texts))


def test_pooling_can_be_chosen(folders: dict[str, Path]) -> None:
    encoder = build(folders["llama"], dtype="fp32", pooling="mean")
    (tokens,) = encoder.encode_tokens(segments(TEXTS[1:2]))
    np.testing.assert_allclose(encoder.encode(segments(TEXTS[1:2]))[0], tokens.mean(0), atol=1e-6)


@pytest.mark.parametrize(
    ("changed", "pooling"),
    [
        ({"architectures": ["LlamaModel"]}, "last"),  # saved without its head
        ({"model_type": "xglm"}, "last"),  # LlamaForCausalLM
        ({"model_type": "xglm", "architectures": ["XGLMModel"]}, "mean"),
        ({"is_causal": False}, "mean"),
        ({"use_bidirectional_attention": True}, "last"),  # Llama takes no notice of it, as the next test shows
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "mean"),
        ({"model_type": "gemma4_text", "use_bidirectional_attention": "vision"}, "last"),
        ({"model_type": "bert", "architectures": ["BertForCausalLM"]}, "mean"),
        ({"model_type": "bert", "architectures": ["BertForCausalLM"], "is_decoder": True}, "last"),
    ],
)
def test_what_counts_as_decoder_only(
    folders: dict[str, Path], tmp_path: Path, changed: dict[str, Any], pooling: str
) -> None:
    config = json.loads((folders["llama"] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changed}))
    shutil.copy(folders["llama"] / "tokenizer.json", tmp_path)
    assert described(tmp_path).decides["pooling"] == pooling


@pytest.mark.parametrize(
    ("changed", "sees"), [({"use_bidirectional_attention": True}, False), ({"is_causal": False}, True)]
)
def test_what_the_first_token_of_a_llama_sees(
    folders: dict[str, Path], tmp_path: Path, changed: dict[str, Any], sees: bool
) -> None:
    model = tmp_path / "model"
    shutil.copytree(folders["llama"], model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, **changed}))
    one, other = build(model, dtype="fp32", pooling="mean").encode_tokens(segments(["w1 w2 w3", "w1 w2 w4"]))
    assert (one[0].tobytes() != other[0].tobytes()) is sees


def test_token_limits(folders: dict[str, Path], tmp_path: Path) -> None:
    """512 unless the sentence-transformers files or the space say otherwise; never beyond the model's positions."""
    assert described(folders["qwen3"]).decides["max_tokens"] == 512
    assert described(folders["qwen3"], max_tokens=2048).decides["max_tokens"] == 2048
    with pytest.raises(SpaceError, match="max_tokens is 4096, this model takes 8 to 2048"):
        described(folders["qwen3"], max_tokens=4096)
    files = {"sentence_bert_config": {"max_seq_length": 1024}}
    stated = with_sentence_files(folders["qwen3"], tmp_path / "stated", "lasttoken", **files)
    assert described(stated).decides["max_tokens"] == 1024
    short = tmp_path / "short"
    shutil.copytree(folders["llama"], short)
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 256}))
    assert described(short).decides["max_tokens"] == 256


def test_the_layout_of_qwen3_embedding(folders: dict[str, Path], tmp_path: Path) -> None:
    prompts = {"prompts": {"query": "Instruct: find\nQuery:", "document": ""}, "default_prompt_name": None}
    folder = with_sentence_files(
        folders["qwen3"], tmp_path / "model", "lasttoken", "Normalize", config_sentence_transformers=prompts
    )
    found = described(folder)
    assert (found.decides["pooling"], found.decides["normalize"], found.decides["max_tokens"]) == ("last", True, 512)
    features = build(folder, dtype="fp32").encode(segments(TEXTS))
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-6)
    assert cosines(features, last_states(folders["qwen3"], TEXTS)).min() >= 0.99999
    assert found.decides["prompts"] == {"query": "Instruct: find\nQuery:", "document": ""}


def test_no_keys_and_values_are_kept(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama import modeling_llama

    def never(**_: object) -> None:
        raise AssertionError("a cache was made")

    monkeypatch.setattr(modeling_llama, "DynamicCache", never)
    assert build(folders["llama"]).encode(segments(TEXTS[:2])).shape == (2, 32)


def test_spans_of_a_long_text(folders: dict[str, Path]) -> None:
    for name, room in (("llama", 16), ("qwen3", 15)):  # the latter's end mark needs a place
        spec = build(folders[name], max_tokens=16).spec
        assert isinstance(spec, TextSpec)
        assert spec.spans("w1 " * 20) == [(0, 3 * room), (3 * room, 60)]


def test_a_text_that_leaves_no_token_has_a_vector(folders: dict[str, Path]) -> None:
    features = build(folders["llama"], dtype="fp32").encode(segments(["", "w1", ""]))
    assert np.isfinite(features).all()
    np.testing.assert_array_equal(features[0], features[2])


def test_weights_decide_the_fingerprint(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folders["llama"], folder)
    before = resolve(str(folder), None, None).digest
    assert before == resolve(str(folders["llama"]), None, None).digest
    stored = load_file(folder / "model.safetensors")
    stored["model.norm.weight"][0] += 1
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    assert resolve(str(folder), None, None).digest != before


def test_a_tokenizer_that_would_know_no_word_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    """Of a Qwen2 transformers builds a BPE, which takes nothing from a vocabulary of words."""
    folder = tmp_path / "model"
    shutil.copytree(folders["qwen3"], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "qwen2"}))
    with pytest.raises(SpaceError, match=r"as Qwen2Tokenizer, .* it keeps nothing of plain words"):
        load_tokenizer(folder, 64)


def test_what_it_cannot_serve_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    config = {"model_type": "gemma3", "text_config": {}, "vision_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SpaceError, match=r"'gemma3' .* take its text model alone"):
        described(tmp_path)
    bare = tmp_path / "bare"
    shutil.copytree(folders["llama"], bare, ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(SpaceError, match=r"no tokenizer in .*bare: tokenizer\.json"):
        described(bare)
    fewer = tmp_path / "fewer"
    shutil.copytree(folders["llama"], fewer)
    settings = json.loads((fewer / "config.json").read_text())
    (fewer / "config.json").write_text(json.dumps({**settings, "num_hidden_layers": 3}))
    with pytest.raises(SpaceError, match=r"lack 9 parameters of LlamaModel, 'layers\.2"):
        build(fewer)
