"""What projectors are worth on pairs that training has not seen, and which of two finds better.

I items, C captions, K dim of the space, Q questions, G groups of linked pairs. Captions ask for
items and items for captions; whatever is linked is right. A projector's one figure is its *mean
recall*: the mean of Recall@1, 5 and 10 both ways, for Recall@10 alone is flat on small sets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from batchproj.recall import best_ranks, modality_gap

Array = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]

CUTOFFS = (1, 5, 10)
FEWEST_GROUPS = 10
"""Held-out groups below which nothing is concluded: all of them are among the first ten."""

_RESAMPLES = 1_000
_INTERVAL = (2.5, 97.5)  # percentiles
_SEED = 0


@dataclass(frozen=True)
class Answers:
    """How the questions of a held-out set were answered.

    hits (Q, 3): whether, or how likely, a right one was among the first 1, 5 and 10.
    """

    to_item: Floats
    to_text: Floats
    median_ranks: tuple[float, float]
    modality_gap: float | None = None


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} (95 % interval {self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class HeldOut:
    """Items, and captions (C, K), of pairs that training has not seen, each with the group it belongs to.

    Each group has an item and a caption.
    """

    item_groups: Sequence[str]
    captions: Array
    caption_groups: Sequence[str]

    @cached_property
    def groups(self) -> int:
        return len(set(self.caption_groups))

    @property
    def tells(self) -> bool:
        """Whether there is enough to conclude anything from."""
        return self.groups >= FEWEST_GROUPS

    def answers(self, items_IK: Array) -> Answers:
        """How items projected to unit vectors (I, K), in the order of `item_groups`, are found and find."""
        to_item = best_ranks(self.captions, self.caption_groups, items_IK, self.item_groups)
        to_text = best_ranks(items_IK, self.item_groups, self.captions, self.caption_groups)
        medians = float(np.median(to_item)), float(np.median(to_text))
        return Answers(_hits(to_item), _hits(to_text), medians, modality_gap(items_IK, self.captions))

    def chance(self) -> Answers:
        """What ranking at random gives on average."""
        to_item, item_median = _by_chance(self.caption_groups, self.item_groups)
        to_text, text_median = _by_chance(self.item_groups, self.caption_groups)
        return Answers(to_item, to_text, (item_median, text_median))

    def recalls(self, answers: Answers) -> list[Interval]:
        """Recall@1, 5 and 10 of captions to items, the same of items to captions, and the mean of the six."""
        low, high = np.percentile(self._resampled(answers), _INTERVAL, axis=0)
        values = self._recalls(answers, np.ones(self.groups))
        return [Interval(*map(float, each)) for each in zip(values, low, high, strict=True)]

    def gain(self, new: Answers, old: Answers) -> Interval:
        """Mean recall of the new minus that of the old, on the same draws of the same groups."""
        drawn = self._resampled(new)[:, -1] - self._resampled(old)[:, -1]
        ones = np.ones(self.groups)
        value = self._recalls(new, ones)[-1] - self._recalls(old, ones)[-1]
        low, high = np.percentile(drawn, _INTERVAL)
        return Interval(float(value), float(low), float(high))

    def _resampled(self, answers: Answers) -> Floats:
        """(draws, 7): the recalls when as many groups are drawn with replacement, a thousand times."""
        return np.stack([self._recalls(answers, weights_G) for weights_G in _draws(self.groups)])

    def _recalls(self, answers: Answers, weights_G: npt.NDArray[np.floating]) -> Floats:
        captions_C, items_I = self._numbers
        ways = [(answers.to_item, weights_G[captions_C]), (answers.to_text, weights_G[items_I])]
        six = np.concatenate([weights_Q @ hits / weights_Q.sum() for hits, weights_Q in ways])
        return np.append(six, six.mean())

    @cached_property
    def _numbers(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Number of the group of each caption and of each item."""
        return _numbered(self.caption_groups, self.caption_groups), _numbered(self.item_groups, self.caption_groups)


def means(values_QV: Floats, groups: Sequence[str]) -> list[Interval]:
    """The mean over all questions of each column; for its interval the groups of questions are drawn whole."""
    group_Q = _numbered(groups, groups)
    weights = (weights_G[group_Q] for weights_G in _draws(int(group_Q.max()) + 1))
    drawn = np.stack([weights_Q @ values_QV / weights_Q.sum() for weights_Q in weights])
    low, high = np.percentile(drawn, _INTERVAL, axis=0)
    return [Interval(*map(float, each)) for each in zip(values_QV.mean(axis=0), low, high, strict=True)]


def _numbered(groups: Sequence[str], first: Sequence[str]) -> npt.NDArray[np.int64]:
    """Numbers of groups, in the order in which they come up in `first`."""
    number = {group: number for number, group in enumerate(dict.fromkeys(first))}
    return np.array([number[group] for group in groups])


def _draws(count: int) -> Iterator[Floats]:
    """How often each of so many groups (G,) is drawn when as many are drawn with replacement; a thousand times."""
    random = np.random.default_rng(_SEED)
    for _ in range(_RESAMPLES):
        yield np.bincount(random.integers(count, size=count), minlength=count).astype(np.float64)


def _hits(ranks_Q: npt.NDArray[np.int64]) -> Floats:
    return (ranks_Q[:, None] <= np.array(CUTOFFS)).astype(np.float64)


def _by_chance(asking: Sequence[str], asked: Sequence[str]) -> tuple[Floats, float]:
    """Chances (Q, 3) that one of the right is among the first k drawn, and the median rank (all but exact)."""
    right: dict[str, int] = {}
    for group in asked:
        right[group] = right.get(group, 0) + 1
    right_Q, total = np.array([right[group] for group in asking]), len(asked)
    missed = {k: np.ones(len(right_Q)) for k in CUTOFFS}
    for k in CUTOFFS:
        for drawn in range(min(k, total)):
            missed[k] *= np.clip(total - right_Q - drawn, 0, None) / (total - drawn)
    median = float(np.median((total + 1) * (1 - 0.5 ** (1 / right_Q))))
    return np.stack([1 - missed[k] for k in CUTOFFS], axis=1), median
