"""Tokens of many segments in one array."""

from __future__ import annotations

import numpy as np
import pytest

from batchproj.token_features import TokenFeatures, bucket


@pytest.fixture
def tokens() -> TokenFeatures:
    """Segments of 2, 1 and 3 tokens in 2 dims, counting up."""
    values = np.arange(12, dtype=np.float16).reshape(6, 2)
    return TokenFeatures.of([values[:2], values[2:3], values[3:]])


def test_segments_come_back_one_by_one_and_in_any_order(tokens: TokenFeatures) -> None:
    assert (len(tokens), tokens.dim, tokens.lengths.tolist()) == (3, 2, [2, 1, 3])
    first, second, third = (each.tolist() for each in tokens)
    assert second == [[4, 5]]
    chosen = tokens[[2, 0, 2]]
    assert [each.tolist() for each in chosen] == [third, first, third]
    assert [each.tolist() for each in tokens[np.array([True, False, True])]] == [first, third]
    assert [each.tolist() for each in tokens[1:]] == [second, third]
    assert chosen.values is tokens.values  # nothing is copied
    assert len(tokens[[]]) == 0


def test_padding_is_zero_and_not_real(tokens: TokenFeatures) -> None:
    padded, real = tokens[[1, 0]].padded(3)
    assert padded.dtype == np.float32
    assert padded.tolist() == [[[4, 5], [0, 0], [0, 0]], [[0, 1], [2, 3], [0, 0]]]
    assert real.tolist() == [[True, False, False], [True, True, False]]


def test_pooling_is_over_a_segments_own_tokens(tokens: TokenFeatures) -> None:
    assert tokens.mean().tolist() == [[1, 2], [4, 5], [8, 9]]
    spread = np.std([6, 8, 10])
    np.testing.assert_allclose(tokens.mean_std()[2], [8, 9, spread, spread], rtol=1e-6)


def test_the_mean_of_many_float16_is_added_in_float32() -> None:
    assert TokenFeatures.of([np.full((5000, 1), 100, np.float16)]).mean().tolist() == [[100]]


def test_padded_lengths_are_few_and_near() -> None:
    lengths = [bucket(length) for length in range(1, 1501)]
    assert lengths == sorted(lengths)
    assert all(length <= padded < 1.25 * length + 8 for length, padded in enumerate(lengths, start=1))
    assert len(set(lengths)) <= 28
