"""Prompts and shortened vectors, as sentence-transformers itself gives them; each role where it belongs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import yaml
from conftest import WORDS
from exact_rows import assert_rows_are_their_own
from in_process import OPTIONS, command
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from tiny_text import build, described, save_qwen3, save_t5, segments, with_sentence_files

from batchproj.decode.limits import Limits
from batchproj.decode.text import decode_text
from batchproj.embed import Watch, embed
from batchproj.encode import Encoder, parse_config
from batchproj.errors import SpaceError
from batchproj.media import TextSpec
from batchproj.schema import Modality
from batchproj.search import Collection
from batchproj.space import open_space, resolve
from batchproj.weights import LocalModel
from batchproj.weights import resolve as resolve_weights

Array = npt.NDArray[np.float32]
TEXTS = ["w1", "w1 w2 w3", " ".join(WORDS), "w4 w5 " * 20]
PROMPTS = {"query": "w7 w8 ", "document": "w9 "}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("prompts")
    return {"t5": save_t5(home / "t5"), "qwen3": save_qwen3(home / "qwen3")}


def with_prompts(folder: Path, copy: Path, prompts: Any, pooling: str = "mean_tokens", **settings: Any) -> Path:
    files = {"prompts": prompts, "default_prompt_name": None, **settings}
    return with_sentence_files(folder, copy, pooling, "Normalize", config_sentence_transformers=files)


def for_queries(folder: Path, **fields: Any) -> Encoder:
    config = parse_config({"kind": "text", "model": str(folder), **fields}, "test")
    return config.build_for_queries(resolve_weights(str(folder), None, None), Modality.TEXT, 1)


def reference(folder: Path, **options: Any) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu", local_files_only=True, **options)


def cosines(left: Array, right: Array) -> Array:
    found: Array = (left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)
    return found


@pytest.mark.parametrize(("name", "pooling"), [("t5", "mean_tokens"), ("t5", "cls_token"), ("qwen3", "lasttoken")])
@pytest.mark.parametrize("include_prompt", [True, False])
def test_each_role_s_prompt_as_sentence_transformers(
    folders: dict[str, Path], tmp_path: Path, name: str, pooling: str, include_prompt: bool
) -> None:
    folder = with_prompts(folders[name], tmp_path / "model", PROMPTS, pooling)
    path = folder / "1_Pooling" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "include_prompt": include_prompt}))
    wanted = reference(folder)
    roles = [(build, wanted.encode_document(TEXTS)), (for_queries, wanted.encode_query(TEXTS))]
    assert cosines(roles[0][1], roles[1][1]).min() < 0.999
    for role, expected in roles:
        features = role(folder, dtype="fp32").encode(segments(TEXTS))
        assert cosines(features, expected).min() >= 0.9999
        np.testing.assert_allclose(features, expected, atol=2e-6)
        assert cosines(role(folder).encode(segments(TEXTS)), expected).min() >= 0.999


@pytest.mark.parametrize(
    ("settings", "query", "document"),
    [
        ({"prompts": {"query": "w7 "}}, "w7 ", ""),
        ({"prompts": {"query": "w7 ", "passage": "w9 "}}, "w7 ", "w9 "),  # as E5, saved before sentence-transformers 5
        ({"prompts": {"query": "w7 ", "document": "w9 ", "corpus": "w1 "}}, "w7 ", "w9 "),
        ({"prompts": {"query": None, "document": None}}, "", ""),
        ({"prompts": {"any": "w5 "}, "default_prompt_name": "any"}, "w5 ", "w5 "),
        ({"prompts": {"any": "w5 ", "query": "w7 "}, "default_prompt_name": "any"}, "w7 ", "w5 "),
        ({"prompts": {"any": "w5 "}}, "", ""),
        ({}, "", ""),
    ],
)
def test_what_the_files_call_the_prompts(
    folders: dict[str, Path], tmp_path: Path, settings: dict[str, Any], query: str, document: str
) -> None:
    files = {"config_sentence_transformers": settings}
    folder = with_sentence_files(folders["t5"], tmp_path / "model", "mean_tokens", **files)
    found = described(folder).decides
    assert found.get("prompts") == ({"query": query, "document": document} if query or document else None)


def test_a_space_s_prompts_stand_for_the_folder_s(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = with_prompts(folders["t5"], tmp_path / "model", PROMPTS)
    own = {"query": "w2 "}
    assert described(folder, prompts=own).decides["prompts"] == {"query": "w2 ", "document": "w9 "}
    assert "prompts" not in described(folder, prompts={"query": "", "document": ""}).decides
    expected = reference(folder).encode(TEXTS, prompt="w2 ")
    np.testing.assert_allclose(
        for_queries(folder, dtype="fp32", prompts=own).encode(segments(TEXTS)), expected, atol=2e-6
    )
    plain = build(folders["t5"], dtype="fp32", prompts={"document": "w9 "})
    np.testing.assert_array_equal(
        plain.encode(segments(["w1 w2"])), build(folders["t5"], dtype="fp32").encode(segments(["w9 w1 w2"]))
    )


def test_without_prompts_and_dims_the_description_is_what_it_was(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = with_prompts(folders["t5"], tmp_path / "model", {"query": "", "document": ""})
    usual = {"kind", "weights", "max_tokens", "dtype", "pooling", "normalize"}
    assert set(described(folder).decides) == set(described(folders["t5"]).decides) == usual
    prompted = described(folder, prompts=PROMPTS, dims=8).decides
    assert set(prompted) == {*usual, "prompts", "include_prompt", "dims"}
    config = parse_config({"kind": "text", "model": "m", "prompts": PROMPTS}, "test")
    assert config.describe_tokens(LocalModel(folder, ""), Modality.TEXT).decides["prompts"] == PROMPTS


def test_a_long_text_is_cut_so_that_the_prompt_has_room(folders: dict[str, Path]) -> None:
    encoder = build(folders["t5"], max_tokens=16, dtype="fp32", prompts={"document": "w9 w9 w9 "})
    assert isinstance(encoder.spec, TextSpec)
    text = "w1 w2 " * 12
    pieces = decode_text(text.encode(), encoder.spec, Limits())
    assert [(piece.start, piece.end, piece.text) for piece in pieces] == [(0, 35, text[:35]), (36, 71, text[36:71])]
    assert [len(tokens) for tokens in encoder.encode_tokens(pieces)] == [16, 16]  # prompt, 12 words, end mark
    plain = build(folders["t5"], dtype="fp32").encode(segments(["w9 w9 w9 " + text[:35]]))
    np.testing.assert_array_equal(encoder.encode(pieces[:1]), plain)


@pytest.mark.parametrize("name", ["t5", "qwen3"])
@pytest.mark.parametrize("include_prompt", [True, False])
def test_a_row_never_shows_its_neighbours(
    folders: dict[str, Path], tmp_path: Path, name: str, include_prompt: bool
) -> None:
    folder = with_prompts(folders[name], tmp_path / "model", PROMPTS)
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"pooling_mode": "mean", "include_prompt": include_prompt})
    )
    texts = [*TEXTS, *(f"w{number % 14} w2 " * (number % 23 + 1) for number in range(26))]
    assert_rows_are_their_own(for_queries(folder), segments(texts))


def test_the_mean_of_the_tokens_is_still_the_vector(folders: dict[str, Path], tmp_path: Path) -> None:
    """`cache: tokens` relies on it; a prompt that is not pooled is not among the tokens."""
    folder = with_sentence_files(folders["t5"], tmp_path / "model", "mean_tokens")
    for include_prompt in (True, False):
        pooling = {"pooling_mode": "mean", "include_prompt": include_prompt}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
        encoder = build(folder, dtype="fp32", prompts=PROMPTS)
        tokens = encoder.encode_tokens(segments(["w1 w2"]))[0]
        assert len(tokens) == (4 if include_prompt else 3)
        np.testing.assert_allclose(encoder.encode(segments(["w1 w2"]))[0], tokens.mean(0), atol=1e-6)


def test_an_empty_text_under_a_prompt_has_a_vector(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = with_prompts(folders["t5"], tmp_path / "model", PROMPTS)
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode": "mean", "include_prompt": false}')
    assert np.isfinite(build(folder).encode(segments([""]))).all()


@pytest.mark.parametrize("is_unit", [True, False])
def test_dims_are_the_first_of_them_at_unit_length(folders: dict[str, Path], tmp_path: Path, is_unit: bool) -> None:
    """As `truncate_dim`; where the model normalises, the shortened vector is normalised again."""
    kinds = ["Dense", *(["Normalize"] if is_unit else [])]
    folder = with_sentence_files(folders["t5"], tmp_path / "model", "mean_tokens", *kinds)
    (folder / "2_Dense").mkdir()
    layer = {"in_features": 32, "out_features": 24, "bias": False, "activation_function": "torch.nn.Identity"}
    (folder / "2_Dense" / "config.json").write_text(json.dumps(layer))
    torch.manual_seed(1)
    save_file({"linear.weight": torch.randn(24, 32) / 6}, folder / "2_Dense" / "model.safetensors")
    found = described(folder, dims=8)
    assert (found.dim, found.decides["dims"]) == (8, 8)
    expected = reference(folder, truncate_dim=8).encode(TEXTS, normalize_embeddings=is_unit)
    features = build(folder, dims=8, dtype="fp32").encode(segments(TEXTS))
    np.testing.assert_allclose(features, expected, atol=2e-6, rtol=1e-5)
    assert cosines(build(folder, dims=8).encode(segments(TEXTS)), expected).min() >= 0.999
    assert build(folder, dims=8).encode([]).shape == (0, 8)
    config = parse_config({"kind": "text", "model": "m", "dims": 8}, "test")
    assert not config.describe_tokens(LocalModel(folder, ""), Modality.TEXT).mean_pooled
    with pytest.raises(SpaceError, match="dims is 25, this model's vectors have 24"):
        described(folder, dims=25)


def test_texts_in_lower_case_where_the_files_say_so(folders: dict[str, Path], tmp_path: Path) -> None:
    files = {"sentence_bert_config": {"max_seq_length": 64, "do_lower_case": True}}
    folder = with_sentence_files(folders["t5"], tmp_path / "model", "mean_tokens", **files)
    assert described(folder).decides["lowercase"] is True
    rows = build(folder, dtype="fp32").encode(segments(["W1 w2", "w1 w2"]))
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_allclose(rows, reference(folder).encode(["W1 w2", "w1 w2"]), atol=2e-6)


def test_what_cannot_be_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    for fields in ({"query": "w1 " * 9}, {"document": "w1 " * 9}):
        with pytest.raises(SpaceError, match=r"the prompt 'w1 .*' takes 9 tokens of the 16 that the model does"):
            build(folders["t5"], max_tokens=16, prompts=fields)
    folder = with_prompts(folders["t5"], tmp_path / "model", {"query": "w1 "}, default_prompt_name="other")
    with pytest.raises(SpaceError, match=r"default_prompt_name in .* is 'other', which is none of its prompts"):
        described(folder)
    with pytest.raises(SpaceError, match=r"unknown key 'queries' in 'prompts'; did you mean 'query'\?"):
        described(folder, prompts={"queries": ""})


@pytest.fixture(scope="module")
def space(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts alone, with prompts of their own."""
    file = tmp_path_factory.mktemp("space") / "space.yaml"
    encoder = {"kind": "text", "model": str(folders["t5"]), "dtype": "fp32", "max_tokens": 16, "prompts": PROMPTS}
    file.write_text(yaml.safe_dump({"name": "prompted", "dim": 32, "text": {"encoder": encoder}}))
    return file


def unit(rows: Array) -> Array:
    found: Array = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return found


def test_items_are_embedded_as_documents_and_searched_by_queries(
    space: Path, folders: dict[str, Path], tmp_path: Path, no_ray: None
) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    long = "w3 w4 " * 10
    for name, text in (("a", "w1 w2"), ("b", "w5"), ("long", long)):
        (corpus / f"{name}.txt").write_text(text)
    embed(str(corpus), str(tmp_path / "c"), resolve(open_space(str(space))), OPTIONS, Watch())
    collection = Collection(str(tmp_path / "c"))
    rows = collection.table().sort_by([("uri", "ascending"), ("segment", "ascending")])
    pieces = rows["text"].to_pylist()
    assert pieces[:2] == ["w1 w2", "w5"]
    assert " ".join(pieces[2:]) == long.strip()
    plain = build(folders["t5"], dtype="fp32")
    stored = np.stack(rows["vector"].to_numpy())
    np.testing.assert_allclose(stored, unit(plain.encode(segments([f"w9 {piece}" for piece in pieces]))), atol=1e-3)
    asked = collection.embed_query("w1 w2")
    np.testing.assert_allclose(asked, unit(plain.encode(segments(["w7 w8 w1 w2"])))[0], atol=1e-3)
    assert np.abs(asked - stored[0]).max() > 1e-2
    member = resolve(open_space(str(space))).members[Modality.TEXT]
    assert member.feature_doc["prompts"] == PROMPTS
    assert Collection(str(tmp_path / "c")).space.fingerprint == resolve(open_space(str(space))).fingerprint


def test_a_query_is_not_cut_by_segments(folders: dict[str, Path], tmp_path: Path, no_ray: None) -> None:
    """Its prompt may take more of them than they leave; else that was found when everything had been embedded."""
    corpus, file = tmp_path / "corpus", tmp_path / "space.yaml"
    corpus.mkdir()
    (corpus / "a.txt").write_text("w1 w2 w3")
    prompts = {"query": "w7 w8 w7 w8 w7 w8 w7 ", "document": ""}
    encoder = {"kind": "text", "model": str(folders["t5"]), "dtype": "fp32", "max_tokens": 16, "prompts": prompts}
    text = {"encoder": encoder, "segments": {"tokens": 8, "overlap": 0}}
    file.write_text(yaml.safe_dump({"dim": 32, "text": text}))
    embed(str(corpus), str(tmp_path / "c"), resolve(open_space(str(file))), OPTIONS, Watch())
    words = "w1 w2 w3 w4 w5 w6 w7 w8"
    asked = Collection(str(tmp_path / "c")).embed_query(words)
    plain = build(folders["t5"], dtype="fp32").encode(segments([prompts["query"] + words]))
    np.testing.assert_allclose(asked, unit(plain)[0], atol=1e-3)


@pytest.mark.parametrize(
    ("prompts", "segments", "said"),
    [
        ({"query": "w1 " * 9}, None, ", text: the prompt 'w1 "),
        ({"document": "w1 " * 9}, None, ", text: the prompt 'w1 "),
        (
            {"document": "w9 " * 7},
            {"tokens": 8, "overlap": 0},
            "overlap is 0, and the prompt and special tokens take 8",
        ),
        ({}, {"tokens": 8, "overlap": 7}, "so nothing new is left; set more tokens or less overlap"),
    ],
)
def test_a_prompt_without_room_is_found_before_anything_is_written(
    prompts: dict[str, str], segments: dict[str, Any] | None, said: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    encoder = {"kind": "text", "model": str(folders["t5"]), "max_tokens": 16, "prompts": prompts}
    text = {"encoder": encoder} if segments is None else {"encoder": encoder, "segments": segments}
    (tmp_path / "space.yaml").write_text(yaml.safe_dump({"dim": 32, "text": text}))
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/a.txt").write_text("w1 w2 w3")
    done = command("embed", tmp_path / "corpus", tmp_path / "c", "--space", tmp_path / "space.yaml")
    assert (done.returncode, said in " ".join(done.stderr.split())) == (2, True), done.stderr
    assert not (tmp_path / "c").exists()
