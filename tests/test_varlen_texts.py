"""Rows of texts for an accelerator: how they are laid, and what is pooled. The model itself: test_gpu_encoders."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from batchproj.varlen_texts import lay, pool, positions

BOUNDS = torch.tensor([0, 4, 5, 9, 9, 9], dtype=torch.int32)
"""Of three texts, with room for five, in a row of 12 tokens."""


def test_every_text_is_laid_once_within_its_row() -> None:
    lengths = np.random.default_rng(0).integers(1, 257, 3_000).tolist()
    rows = list(lay(lengths, 4_096))
    assert Counter(index for row in rows for index in row.indices) == Counter(range(3_000))
    for row in rows:
        own = [lengths[index] for index in row.indices]
        assert sum(own) <= row.tokens
        assert max(own) <= row.longest
        assert len(own) <= row.texts
    assert sum(row.tokens for row in rows) < 1.05 * sum(lengths)
    assert len({(row.tokens, row.texts, row.longest) for row in rows}) < 12  # each is recorded


def test_a_text_alone_gets_a_short_row() -> None:
    (row,) = lay([7], 4_096)
    assert (row.indices, row.tokens, row.longest) == ((0,), 256, 16)
    (row,) = lay([4_096], 4_096)
    assert (row.tokens, row.longest) == (4_096, 4_096)
    assert list(lay([], 4_096)) == []


def test_positions_begin_anew_with_each_text() -> None:
    assert positions(BOUNDS, 12).tolist() == [0, 1, 2, 3, 0, 0, 1, 2, 3, 0, 0, 0]


@pytest.mark.parametrize(
    ("pooling", "skipped", "wanted"),
    [
        ("mean", 0, [1.5, 4.0, 6.5]),
        ("mean", 2, [2.5, 4.0, 7.5]),  # a text as long as what is skipped is its last token
        ("cls", 0, [0.0, 4.0, 5.0]),
        ("cls", 1, [1.0, 4.0, 6.0]),
        ("last", 1, [3.0, 4.0, 8.0]),
    ],
)
def test_pooling_is_of_each_text_alone(pooling: str, skipped: int, wanted: list[float]) -> None:
    states_MD = torch.arange(12, dtype=torch.bfloat16)[:, None].repeat(1, 2)
    states_MD[9:] = torch.nan  # what is in no text
    found_ND = pool(states_MD, BOUNDS, skipped, pooling)  # type: ignore[arg-type]
    assert found_ND.dtype == torch.float32
    assert found_ND[:3].tolist() == [[value] * 2 for value in wanted]
