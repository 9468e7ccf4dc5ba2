"""The encoder half of T5's family: parity with the whole model, exact rows, nothing of the decoder, dense layers."""

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
from tiny_text import SAVED, build, described, save_t5, segments, with_sentence_files
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from batchproj.encode import parse_config
from batchproj.errors import SpaceError
from batchproj.media import TextSpec
from batchproj.schema import Modality
from batchproj.weights import LocalModel, resolve

TEXTS = ["w1", "w1 w2 w3", " ".join(WORDS), "w4 w5 " * 20, "w7 " * 39, "w3 w9 " * 400]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("t5")
    return {name: SAVED[name](home / name) for name in ("t5", "gated_t5", "mt5", "umt5")}


def states(folder: Path, text: str, max_tokens: int = 512) -> npt.NDArray[np.float32]:
    """By transformers' own loop: the encoder of the whole model on one text alone."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, local_files_only=True).eval()
    with torch.inference_mode():
        inputs = tokenizer(text, truncation=True, max_length=max_tokens, return_tensors="pt")
        found: npt.NDArray[np.float32] = model.get_encoder()(input_ids=inputs["input_ids"]).last_hidden_state[0].numpy()
    return found


def cosines(left: npt.NDArray[np.float32], right: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    found: npt.NDArray[np.float32] = (
        (left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)
    )
    return found


@pytest.mark.parametrize("name", ["t5", "gated_t5", "mt5", "umt5"])
def test_vectors_are_the_mean_of_the_whole_models_encoder(folders: dict[str, Path], name: str) -> None:
    found = described(folders[name])
    assert (found.dim, found.decides["pooling"], found.decides["normalize"]) == (32, "mean", False)
    encoder = build(folders[name], dtype="fp32")
    expected = [states(folders[name], text) for text in TEXTS]
    features = encoder.encode(segments(TEXTS))
    assert (features.shape, features.dtype) == ((len(TEXTS), 32), np.float32)
    assert cosines(features, np.stack([each.mean(0) for each in expected])).min() >= 0.99999
    for tokens, own in zip(encoder.encode_tokens(segments(TEXTS)), expected, strict=True):
        np.testing.assert_allclose(tokens, own, atol=2e-5)
    half = build(folders[name]).encode(segments(TEXTS))
    assert cosines(half, features).min() >= 0.999


def test_the_end_mark_is_among_the_tokens(folders: dict[str, Path]) -> None:
    encoder = build(folders["t5"], dtype="fp32")
    assert [len(each) for each in encoder.encode_tokens(segments(["w1", "w1 w2 w3", TEXTS[-1]]))] == [2, 4, 512]


@pytest.mark.parametrize("name", ["t5", "umt5"])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_a_row_never_shows_its_neighbours(folders: dict[str, Path], name: str, dtype: str) -> None:
    texts = [*TEXTS, *(f"w{number % 14} w2 " * (number % 23 + 1) for number in range(26))]
    assert_rows_are_their_own(build(folders[name], dtype=dtype), segments(texts))


def test_no_weight_of_the_decoder_is_read(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import modeling_utils

    opened, read = modeling_utils.safe_open, []

    class Slice:
        def __init__(self, name: str, inner: Any) -> None:
            self._name, self._inner = name, inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

        def __getitem__(self, index: Any) -> Any:
            read.append(self._name)
            return self._inner[index]

    class File:
        def __init__(self, *args: Any, **options: Any) -> None:
            self._inner = opened(*args, **options)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

        def __enter__(self) -> File:
            self._inner.__enter__()
            return self

        def __exit__(self, *error: Any) -> None:
            self._inner.__exit__(*error)

        def get_slice(self, name: str) -> Slice:
            return Slice(name, self._inner.get_slice(name))

    monkeypatch.setattr(modeling_utils, "safe_open", File)
    build(folders["t5"])
    stored = load_file(folders["t5"] / "model.safetensors")
    assert any(name.startswith("decoder.") for name in stored)
    assert {name.split(".")[0] for name in read} == {"shared", "encoder"}


@pytest.mark.parametrize("kept", ["shared.weight", "encoder.embed_tokens.weight"])
def test_the_embeddings_may_have_either_name(folders: dict[str, Path], tmp_path: Path, kept: str) -> None:
    """Files of the whole model call them shared, files of encoders made of it often do not."""
    folder = tmp_path / "model"
    shutil.copytree(folders["t5"], folder)
    stored = load_file(folder / "model.safetensors")
    encoder = {name: value for name, value in stored.items() if name.startswith("encoder.")}
    save_file({**encoder, kept: stored["shared.weight"]}, folder / "model.safetensors", metadata={"format": "pt"})
    features = [build(each, dtype="fp32").encode(segments(TEXTS[:3])) for each in (folder, folders["t5"])]
    np.testing.assert_array_equal(*features)


def test_token_limits(folders: dict[str, Path], tmp_path: Path) -> None:
    """Relative positions have no limit: the tokenizer's, the trained length, or 512."""
    folder = tmp_path / "model"
    shutil.copytree(folders["t5"], folder)

    def limit(**fields: Any) -> int:
        found: int = described(folder, **fields).decides["max_tokens"]
        return found

    assert limit() == 512
    assert limit(max_tokens=1024) == 1024
    with pytest.raises(SpaceError, match="max_tokens is 4, this model takes 8 or more"):
        limit(max_tokens=4)
    (folder / "config.json").write_text(json.dumps({**_json(folder / "config.json"), "n_positions": 384}))
    assert limit() == 384
    settings = {**_json(folder / "tokenizer_config.json"), "model_max_length": 128}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert limit() == 128
    with pytest.raises(SpaceError, match="max_tokens is 300, this model takes 8 to 128"):
        limit(max_tokens=300)


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_spans_of_a_long_text_leave_room_for_the_end_mark(folders: dict[str, Path]) -> None:
    spec = build(folders["t5"], max_tokens=16).spec
    assert isinstance(spec, TextSpec)
    assert spec.spans("w1 " * 20) == [(0, 45), (45, 60)]  # 15 words and the end mark
    assert spec.spans("w1 w2") == [(0, 5)]


def sentence_t5(
    folder: Path, copy: Path, bias: bool = False, activation: str = "torch.nn.modules.linear.Identity"
) -> Path:
    """The layout of sentence-t5 and gtr-t5: a dense layer between mean and unit length."""
    with_sentence_files(folder, copy, "mean_tokens", "Dense", "Normalize", sentence_bert_config={"max_seq_length": 256})
    (copy / "2_Dense").mkdir()
    fields = {"in_features": 32, "out_features": 24, "bias": bias, "activation_function": activation}
    (copy / "2_Dense" / "config.json").write_text(json.dumps(fields))
    torch.manual_seed(1)
    layer = {"linear.weight": torch.randn(24, 32) / 6, **({"linear.bias": torch.randn(24)} if bias else {})}
    save_file(layer, copy / "2_Dense" / "model.safetensors")
    return copy


@pytest.mark.parametrize(("bias", "activation"), [(False, "linear.Identity"), (True, "activation.Tanh")])
def test_a_dense_layer_between_pooling_and_unit_length(
    folders: dict[str, Path], tmp_path: Path, bias: bool, activation: str
) -> None:
    folder = sentence_t5(folders["t5"], tmp_path / "model", bias, f"torch.nn.modules.{activation}")
    found = described(folder)
    assert (found.dim, found.decides["normalize"], found.decides["max_tokens"]) == (24, True, 256)
    layer = load_file(folder / "2_Dense" / "model.safetensors")
    features = build(folder, dtype="fp32").encode(segments(TEXTS))
    for text, feature in zip(TEXTS, features, strict=True):
        expected = layer["linear.weight"].numpy() @ states(folder, text, 256).mean(0)
        expected = np.tanh(expected + layer["linear.bias"].numpy()) if bias else expected
        np.testing.assert_allclose(feature, expected / np.linalg.norm(expected), atol=2e-6)
    texts = [f"w{number % 14} w2 " * (number % 23 + 1) for number in range(26)]
    assert_rows_are_their_own(build(folder), segments(texts))


def test_tokens_under_a_dense_layer_are_not_its_vector_s(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = sentence_t5(folders["t5"], tmp_path / "model")
    config = parse_config({"kind": "text", "model": "m"}, "test")
    tokens = config.describe_tokens(LocalModel(folder, ""), Modality.TEXT)
    assert (tokens.dim, tokens.mean_pooled) == (32, False)
    assert config.describe_tokens(LocalModel(folders["t5"], ""), Modality.TEXT).mean_pooled


def test_weights_decide_the_fingerprint_those_of_a_dense_layer_too(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = sentence_t5(folders["t5"], tmp_path / "model")
    digests = {resolve(str(each), None, None).digest for each in (folders["t5"], folders["gated_t5"], folder)}
    layer = load_file(folder / "2_Dense" / "model.safetensors")
    layer["linear.weight"][0, 0] += 1
    save_file(layer, folder / "2_Dense" / "model.safetensors")
    changed = resolve(str(folder), None, None)
    assert len(digests | {changed.digest}) == 4
    config = parse_config({"kind": "text", "model": "m"}, "test")
    assert config.describe(changed, Modality.TEXT).decides["weights"] == changed.digest


def test_a_dense_layer_that_does_not_fit_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = sentence_t5(folders["t5"], tmp_path / "model")
    path = folder / "2_Dense" / "config.json"
    usual = _json(path)

    def refused(**fields: Any) -> None:
        path.write_text(json.dumps({**usual, **fields}))
        described(folder)

    with pytest.raises(SpaceError, match="takes 16 dims, it is given 32"):
        refused(in_features=16)
    with pytest.raises(SpaceError, match=r"'somewhere\.Swish' .* is not supported: GELU, Identity"):
        refused(activation_function="somewhere.Swish")
    with pytest.raises(SpaceError, match="a plain one over it was expected"):
        refused(use_residual=True)
    path.write_text(json.dumps({"in_features": 32, "activation_function": usual["activation_function"]}))
    with pytest.raises(SpaceError, match="no usable 'out_features'"):
        described(folder)
    path.write_text(json.dumps({**usual, "out_features": 8}))
    with pytest.raises(SpaceError, match=r"is not the layer that its config\.json tells of: size mismatch"):
        build(folder)
    (folder / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(SpaceError, match=r"no model\.safetensors in .*2_Dense"):
        build(folder)


def test_a_checkpoint_without_its_encoder_is_refused(tmp_path: Path) -> None:
    folder = save_t5(tmp_path / "model")
    stored = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in stored.items() if not name.startswith("encoder.block.1")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SpaceError, match=r"lack 8 parameters of T5EncoderModel, 'encoder\.block\.1"):
        build(folder)


def test_other_encoder_decoders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "pegasus", "is_encoder_decoder": true}')
    with pytest.raises(SpaceError, match=r"'pegasus' .* the encoder half of mt5, t5, umt5"):
        described(tmp_path)
