"""Held-out recalls, their intervals and differences, against what can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from batchproj.comparison import Answers, HeldOut, means


def unit(rows: int, dims: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, dims)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def noisy(captions: np.ndarray, noise: float, seed: int) -> np.ndarray:
    moved = captions + noise * unit(*captions.shape, seed)
    return (moved / np.linalg.norm(moved, axis=1, keepdims=True)).astype(np.float32)


def one_to_one(count: int, dims: int = 32) -> HeldOut:
    names = [str(number) for number in range(count)]
    return HeldOut(names, unit(count, dims, seed=1), names)


def test_perfect_answers_have_no_spread() -> None:
    held_out = one_to_one(40)
    answers = held_out.answers(held_out.captions)
    assert [(each.value, each.low, each.high) for each in held_out.recalls(answers)] == [(1, 1, 1)] * 7
    assert answers.median_ranks == (1, 1)
    assert answers.modality_gap == 0


def test_the_interval_is_as_wide_as_a_binomial_one() -> None:
    """Recall@1 of independent questions is a share: its interval is 1.96 standard errors each way."""
    held_out = one_to_one(400)
    recall = held_out.recalls(held_out.answers(noisy(held_out.captions, 2.0, seed=5)))[0]
    assert 0.2 < recall.value < 0.9
    expected = 2 * 1.96 * np.sqrt(recall.value * (1 - recall.value) / 400)
    assert recall.high - recall.low == pytest.approx(expected, rel=0.15)


def test_groups_are_drawn_whole() -> None:
    """Twenty items that share one fate say no more than one: the interval is that of the groups."""
    few, copies = 30, 20
    captions = unit(few, 32, seed=1)
    groups = [str(number) for number in range(few)]
    items = np.repeat(noisy(captions, 2.5, seed=2), copies, axis=0)
    repeated = HeldOut([group for group in groups for _ in range(copies)], captions, groups)
    single = HeldOut(groups, captions, groups)
    wide = single.recalls(single.answers(items[::copies]))[3]
    assert 0 < wide.value < 1
    assert repeated.recalls(repeated.answers(items))[3] == wide


def test_a_small_gain_shows_only_because_it_is_paired() -> None:
    """The better one answers as the worse one does, but for a few questions more."""
    held_out = one_to_one(300)
    worse = noisy(held_out.captions, 2.0, seed=5)
    better = worse.copy()
    better[:15] = held_out.captions[:15]
    new, old = held_out.answers(better), held_out.answers(worse)
    assert held_out.gain(new, old).low > 0
    assert held_out.gain(old, new).high < 0
    assert held_out.recalls(new)[-1].low < held_out.recalls(old)[-1].high  # unpaired intervals overlap
    same = held_out.gain(new, new)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_luck_is_no_gain() -> None:
    """Two projectors of equal worth differ by luck: of forty such pairs nearly none is told apart."""
    held_out = one_to_one(80)
    told_apart = 0
    for seed in range(40):
        a, b = (held_out.answers(noisy(held_out.captions, 2.0, 100 + 2 * seed + side)) for side in (0, 1))
        gain = held_out.gain(a, b)
        told_apart += gain.low > 0 or gain.high < 0
    assert told_apart <= 6


def test_chance_is_what_ranking_at_random_gives() -> None:
    """Two clips of each of 40 pairs: the exact chances against many random vectors."""
    groups = [str(number) for number in range(40)]
    held_out = HeldOut([*groups, *groups], unit(40, 16, seed=1), groups)
    chance = [each.value for each in held_out.recalls(held_out.chance())]
    played = [[each.value for each in held_out.recalls(random_answers(held_out, seed))] for seed in range(30)]
    assert chance[0] == pytest.approx(2 / 80)
    assert chance[3:6] == pytest.approx([1 / 40, 5 / 40, 10 / 40])
    assert np.mean(played, axis=0) == pytest.approx(chance, abs=0.02)


def random_answers(held_out: HeldOut, seed: int) -> Answers:
    return held_out.answers(unit(len(held_out.item_groups), 16, 1000 + seed))


def test_too_few_groups_tell_nothing() -> None:
    assert not one_to_one(9).tells
    assert one_to_one(10).tells
    assert one_to_one(2).recalls(one_to_one(2).chance())[2].value == 1  # two candidates are within the first ten


def test_means_of_questions_have_the_intervals_that_recalls_have() -> None:
    """Twenty questions that share one fate say no more than one, and one question each no less."""
    held_out = one_to_one(60)
    answers = held_out.answers(noisy(held_out.captions, 2.0, seed=5))
    own = means(answers.to_item, held_out.caption_groups)
    for one, other in zip(own, held_out.recalls(answers)[:3], strict=True):
        assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high))
    repeated = means(np.repeat(answers.to_item, 20, axis=0), [g for g in held_out.caption_groups for _ in range(20)])
    for one, twenty in zip(own, repeated, strict=True):
        assert (one.low, one.high) == pytest.approx((twenty.low, twenty.high))
        assert one.low < one.value < one.high
