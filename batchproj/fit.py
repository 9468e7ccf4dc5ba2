"""Train one projector on arrays: features of items in, vectors of their captions as targets.

N samples, D encoder dim, K dim of the space, C different targets, B samples of a batch. One sample
is one item with one of its captions; an item with two captions is two samples. Seeded: the same
arrays, config and number of threads give the same bits on CPU.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, field_validator
from torch import Tensor

from batchproj import losses
from batchproj.errors import TooFewPairs, UsageError
from batchproj.linking import linked
from batchproj.objective import adamw, dropped_vectors, no_denormals, schedule
from batchproj.project import parse_config
from batchproj.project.linear import LinearProjector
from batchproj.projector import Projector, ProjectorConfig
from batchproj.recall import retrieval
from batchproj.ridge import PENALTIES, Moments, Ridge
from batchproj.token_features import TokenFeatures
from batchproj.token_projector import TokenProjectorConfig

Array = npt.NDArray[np.float32]
Features = npt.NDArray[Any] | TokenFeatures
"""(N, D) of any float type, or tokens of N segments."""
Mask = npt.NDArray[np.bool_]
Share = Annotated[float, Field(ge=0, lt=1)]

_FEWEST_GROUPS = 4  # two to train on and two to validate with: each has something to be told from
_AS_GOOD = 0.01  # of recall: less is noise on any validation slice
_SPREAD = 0.25  # of one group's recall between two checks, by and large a standard deviation


class Config(BaseModel):
    """How to train. `options` go to the projector's own config, beside `kind` and the dims, which are none of them.

    feature_dropout: share of a sample's features hidden at each step; on a small set it gains more
    than any other setting. ridge_shares: how much of the direction ridge regression may give in the
    end, for kinds with a linear path; the validation slice chooses, the first one if it cannot tell: small
    sets gain, and many pairs may want none of it. candidates: captions that each sample is told from.
    checks: how often recall on the validation slice is looked at; patience: checks below the best
    before stopping.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str = "mlp"
    loss: losses.Name = "info_nce"
    options: dict[str, Any] = Field(default_factory=dict)
    epochs: PositiveInt = 40
    max_steps: PositiveInt = 400
    batch_rows: PositiveInt = 256
    candidates: PositiveInt = 2048
    learning_rate: PositiveFloat = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    warm_up: Share = 0.1
    temperature: PositiveFloat = 0.05
    feature_dropout: Share = 0.5
    ridge_shares: tuple[Share, ...] = (0.5, 0.75, 0.25, 0.0)
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.15
    checks: PositiveInt = 20
    patience: PositiveInt = 10
    seed: int = 0

    @field_validator("options")
    @classmethod
    def _are_of_the_kind(cls, options: dict[str, Any]) -> dict[str, Any]:
        if given := sorted({"kind", "in_dim", "out_dim"} & options.keys()):
            raise ValueError(f"'{given[0]}' is no option: the kind is chosen beside, and the dims are the encoder's")
        return options


@dataclass(frozen=True)
class Check:
    """`loss` since the check before; `recall`: mean Recall@1, 5 and 10, both ways, on the validation
    slice, in percent of 1; Recall@10 alone is flat on small slices."""

    step: int
    loss: float
    recall: float


Progress = Callable[[int, int, Check | None], None]
"""Steps done, steps at most, and the last look at the validation slice."""


@dataclass(frozen=True)
class Fit:
    """`steps` is how long the returned projector was trained; `history` is of the run that chose it."""

    projector: Projector
    history: list[Check]
    steps: int
    temperature: float


def fit(
    features: Features,
    targets_NK: Array,
    groups: Sequence[str],
    config: Config = Config(),
    progress: Progress | None = None,
) -> Fit:
    """Fit a projector from features (N, D), or tokens of N segments, to unit target vectors (N, K) by a
    contrastive loss. Of `AskedFeatures` and kind `cross_attention` with the option `query_dim` both modalities
    decide the vector.

    What occurs together in one group is right for each other and never a negative, and so are
    samples of equal targets. A first run, on all but a validation slice cut by linked groups, tells
    for how many steps to train; a second run fits everything for that many. progress(done,
    total, check) counts steps and may jump to the end.

    Raises UsageError for arrays that do not match or fewer than four linked groups, SpaceError for
    wrong projector options. A kind that takes pooled features gets mean and standard deviation of
    tokens; tokens stay as they are kept until a batch of them is padded. The losses and where they
    come from are in `losses.py`.
    """
    report = progress or _no_progress
    samples = TrainingSamples.of(as_taken(features, config), targets_NK, groups)
    validation = _validation_slice(samples, config)
    trained, judged = samples.where(~validation), samples.where(validation)
    steps = min(config.max_steps, config.epochs * max(1, len(trained) // config.batch_rows))
    with torch.random.fork_rng(devices=[]), no_denormals():
        training = _Training(trained, config, steps)
        history = _choose_length(training, judged, config, steps, lambda done, check: report(done, 2 * steps, check))
        length = history[_last_good(history, _noise(judged))].step
        final = _Training(samples, config, length)
        for done in range(1, length + 1):
            final.step()
            report(steps + done, 2 * steps, history[-1])
    if config.ridge_shares and final.projector.has_linear_path:
        penalty = best_penalty(trained.regression, judged)
        share = best_share(training.projector, trained.regression.solve(penalty), trained.pooled, judged, config)
        final.projector = blended(final.projector, samples.regression.solve(penalty), share, samples.pooled)
    report(2 * steps, 2 * steps, history[-1])
    return Fit(final.projector.eval(), history, length, final.temperature)


def ridge(features: Features, targets_NK: Array, groups: Sequence[str], config: Config = Config()) -> LinearProjector:
    """Closed-form linear regression (N, D) -> (N, K): the baseline that training has to beat.

    Tokens are pooled to mean and standard deviation. Of `config` only the validation slice counts: it
    chooses the L2 penalty; then everything is fitted.
    """
    samples = TrainingSamples.of(features, targets_NK, groups)
    validation = _validation_slice(samples, config)
    penalty = best_penalty(samples.where(~validation).regression, samples.where(validation))
    return samples.regression.solve(penalty)


class TrainingSamples:
    """Samples as training looks at them.

    `targets_CK` are the different targets and `target_N` says which one each sample has.
    """

    def __init__(self, features: Features, targets_CK: Tensor, target_N: Tensor, group_N: Tensor) -> None:
        self.features = features
        self.targets_CK = targets_CK
        self.target_N = target_N
        self.group_N = group_N
        self.linked = linked(group_N.tolist(), target_N.tolist())
        targets_of: dict[int, set[int]] = {}
        for group, target in zip(group_N.tolist(), target_N.tolist(), strict=True):
            targets_of.setdefault(group, set()).add(target)
        self._targets_of = {group: sorted(targets) for group, targets in targets_of.items()}

    @staticmethod
    def of(features: Features, targets_NK: Array, groups: Sequence[str]) -> TrainingSamples:
        if not len(features) == len(targets_NK) == len(groups):
            raise UsageError(
                f"{len(features)} features, {len(targets_NK)} targets and {len(groups)} groups: "
                "expected one of each per sample"
            )
        targets_CK, target_N = np.unique(np.asarray(targets_NK, np.float32), axis=0, return_inverse=True)
        _, group_N = np.unique(np.asarray(groups), return_inverse=True)
        if not isinstance(features, TokenFeatures):
            features = np.asarray(features, np.float32)
        return TrainingSamples(
            features, torch.from_numpy(targets_CK), torch.from_numpy(target_N), torch.from_numpy(group_N)
        )

    def __len__(self) -> int:
        return len(self.features)

    def where(self, mask_N: Mask) -> TrainingSamples:
        mask = torch.from_numpy(mask_N)
        used, target_N = torch.unique(self.target_N[mask], return_inverse=True)
        return TrainingSamples(self.features[mask_N], self.targets_CK[used], target_N, self.group_N[mask])

    @property
    def in_dim(self) -> int:
        return self.features.dim if isinstance(self.features, TokenFeatures) else int(self.features.shape[1])

    @cached_property
    def pooled(self) -> Tensor:
        """Features as ridge regression takes them: tokens by mean and standard deviation."""
        features = self.features
        return torch.tensor(features.mean_std() if isinstance(features, TokenFeatures) else features)

    @cached_property
    def regression(self) -> Ridge:
        return Ridge(Moments.of(self.pooled, self.targets_CK[self.target_N]))

    def right_targets(self, rows_B: Tensor) -> Tensor:
        """(B, C) bool: which targets occur in the group of each of these samples."""
        right = torch.zeros(len(rows_B), len(self.targets_CK), dtype=torch.bool)
        for row, group in enumerate(self.group_N[rows_B].tolist()):
            right[row, self._targets_of[group]] = True
        return right


class _Training:
    """One run of `steps` steps from fresh weights; draws from torch's global generator, which it seeds."""

    def __init__(self, samples: TrainingSamples, config: Config, steps: int) -> None:
        torch.manual_seed(config.seed)
        self._samples, self._config = samples, config
        self._batches = _batches(len(samples), config.batch_rows)
        self.projector = projector_config(config, samples.in_dim, samples.targets_CK.shape[1]).build()
        self.projector.standardise_to(samples.features)
        self._contrast = losses.build(config.loss, config.temperature)
        self._optimizer = adamw(self.projector, self._contrast.parameters(), config.learning_rate, config.weight_decay)
        self._schedule = schedule(self._optimizer, config.warm_up, steps)

    @property
    def temperature(self) -> float:
        return self._contrast.temperature

    def step(self) -> float:
        """One batch; returns its loss."""
        self.projector.train()
        loss = self._loss(next(self._batches))
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._schedule.step()
        return loss.item()

    def _loss(self, rows_B: Tensor) -> Tensor:
        samples = self._samples
        vectors_BK = dropped_vectors(self.projector, samples.features[rows_B.numpy()], self._config.feature_dropout)
        own_B = samples.target_N[rows_B]
        candidates_C = self._candidates(own_B)
        right_BC = samples.right_targets(rows_B)[:, candidates_C]
        place_B = torch.searchsorted(candidates_C, own_B)
        loss: Tensor = self._contrast(vectors_BK, samples.targets_CK[candidates_C], place_B, right_BC)
        return loss

    def _candidates(self, own_B: Tensor) -> Tensor:
        """All targets, or the batch's own and as many others as the config allows, drawn anew; in order."""
        count = len(self._samples.targets_CK)
        if count <= self._config.candidates:
            return torch.arange(count)
        drawn: Tensor = torch.unique(torch.cat([own_B, torch.randperm(count)[: self._config.candidates]]))
        return drawn


@torch.no_grad()
def blended(projector: Projector, ridge: LinearProjector, share: float, pooled_ND: Tensor) -> Projector:
    """A projector of which ridge regression gives `share` of the direction, both brought to one length on
    these features before.

    A mean of two that err differently errs less than either, on small sets above all, and where the
    head has a linear path the mean is again a projector of its kind.
    """
    standard_ND = ridge.standardise(pooled_ND)
    own, other = (each.eval().head(standard_ND).norm(dim=1).mean().clamp(min=1e-6) for each in (projector, ridge))
    blended = copy.deepcopy(projector)
    blended.blend(float((1 - share) / own), ridge.map.weight * (share / other), ridge.map.bias * (share / other))
    return blended


def best_share(
    projector: Projector, ridge: LinearProjector, pooled_ND: Tensor, judged: TrainingSamples, config: Config
) -> float:
    """How much of the direction ridge regression should give.

    The first share that is as good as the best, as far as so few groups tell.
    """
    recall = {share: mean_recall(blended(projector, ridge, share, pooled_ND), judged) for share in config.ridge_shares}
    return next(share for share in config.ridge_shares if recall[share] >= max(recall.values()) - _noise(judged))


def best_penalty(regression: Ridge, judged: TrainingSamples) -> float:
    """The L2 penalty with which regression finds most."""
    recall = {penalty: mean_recall(regression.solve(penalty), judged) for penalty in PENALTIES}
    return max(PENALTIES, key=recall.__getitem__)


def projector_config(config: Config, in_dim: int, out_dim: int) -> ProjectorConfig:
    return parse_config({**config.options, "kind": config.kind, "in_dim": in_dim, "out_dim": out_dim})


def as_taken(features: Features, config: Config) -> Features:
    """Features as the kind takes them: tokens as they are, or their mean and standard deviation."""
    width = features.dim if isinstance(features, TokenFeatures) else features.shape[1]
    takes_tokens = isinstance(projector_config(config, width, 1), TokenProjectorConfig)
    if isinstance(features, TokenFeatures):
        return features if takes_tokens else features.mean_std()
    if takes_tokens:
        raise UsageError(
            f"projector kind '{config.kind}' takes tokens and these features are pooled: embed with "
            "'cache: tokens' beside 'encoder' in the space file (--space builtin-tokens has it), then train again"
        )
    return features


def _no_progress(_done: int, _total: int, _check: Check | None) -> None:
    pass


def _choose_length(
    training: _Training,
    judged: TrainingSamples,
    config: Config,
    steps: int,
    progress: Callable[[int, Check | None], None],
) -> list[Check]:
    """Train, looking at recall on `judged` now and then, until it has fallen for long."""
    every = math.ceil(steps / config.checks)
    history: list[Check] = []
    since_check: list[float] = []
    for step in range(1, steps + 1):
        since_check.append(training.step())
        progress(step, history[-1] if history else None)
        if step % every and step != steps:
            continue
        history.append(Check(step, float(np.mean(since_check)), mean_recall(training.projector, judged)))
        since_check.clear()
        if len(history) - 1 - _last_good(history, _AS_GOOD) >= config.patience:
            break
    return history


def _last_good(history: list[Check], within: float) -> int:
    """The last check that is as good as the best: the top is flat, and there a longer run, with its
    learning rate lowered more slowly, gains most."""
    best = max(check.recall for check in history)
    return max(number for number, check in enumerate(history) if check.recall >= best - within)


def _noise(judged: TrainingSamples) -> float:
    """How much less recall on so few groups may be bad luck; the peak of a small slice is good luck."""
    return max(_AS_GOOD, _SPREAD / math.sqrt(len(set(judged.linked))))


def _batches(count: int, rows: int) -> Iterator[Tensor]:
    """Endless batches of sample numbers, shuffled each time round; a short rest is left out."""
    rows = min(rows, count)
    while True:
        shuffled = torch.randperm(count)
        for start in range(0, count - rows + 1, rows):
            yield shuffled[start : start + rows]


def mean_recall(projector: Projector, judged: TrainingSamples) -> float:
    """Mean Recall@1, 5 and 10 over both directions; right is whatever is linked."""
    vectors = projector.project(judged.features)
    targets = judged.targets_CK.numpy()
    linked_C = dict(zip(judged.target_N.tolist(), judged.linked, strict=True))
    target_pairs = [str(linked_C[target]) for target in range(len(targets))]
    vector_pairs = [str(component) for component in judged.linked]
    to_target = retrieval(vectors, vector_pairs, targets, target_pairs)
    to_item = retrieval(targets, target_pairs, vectors, vector_pairs)
    return float(np.mean([way[f"r@{k}"] for way in (to_target, to_item) for k in (1, 5, 10)]))


def _validation_slice(samples: TrainingSamples, config: Config) -> Mask:
    """Samples (N,) to validate with: whole linked groups, drawn with the config's seed."""
    components = np.array(samples.linked)
    different = np.unique(components)
    if len(different) < _FEWEST_GROUPS:
        raise TooFewPairs(
            f"{len(different)} pairs to train on, beside those held out, that share no text or content: expected at "
            f"least {_FEWEST_GROUPS}; add pairs with texts of their own"
        )
    count = min(max(2, round(config.validation_fraction * len(different))), len(different) - 2)
    chosen = np.random.default_rng(config.seed).permutation(different)[:count]
    return np.isin(components, chosen)
