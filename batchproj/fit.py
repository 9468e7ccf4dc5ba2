"""Train one projector on arrays: features of items in, vectors of their captions as targets.

N samples, D encoder dim, K dim of the space, C different targets, B samples of a batch. One sample
is one item with one of its captions; an item with two captions is two samples. Seeded: the same
arrays, config and number of threads give the same bits on CPU.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional

from batchproj.errors import UsageError
from batchproj.project import parse_config
from batchproj.project.linear import Config as LinearConfig
from batchproj.project.linear import LinearProjector
from batchproj.projector import Projector, ProjectorConfig
from batchproj.recall import retrieval
from batchproj.token_features import TokenFeatures
from batchproj.token_projector import TokenProjector, TokenProjectorConfig, padded_batch

Array = npt.NDArray[np.float32]
Features = npt.NDArray[Any] | TokenFeatures
"""(N, D) of any float type, or tokens of N segments."""
Mask = npt.NDArray[np.bool_]
Progress = Callable[[int, int], None]
Share = Annotated[float, Field(ge=0, lt=1)]

_FEWEST_GROUPS = 4  # two to train on and two to validate with: each has something to be told from
_LARGEST_SCALE = 100.0  # 1 / temperature, as CLIP clips it
_AS_GOOD = 0.01  # of recall: less is noise on a validation slice of a few hundred
_RIDGE_PENALTIES = np.geomspace(10, 1e5, 9)  # of standardised features


class Config(BaseModel):
    """How to train. `options` go to the projector's own config, beside `kind` and the dims.

    feature_dropout: share of a sample's features hidden at each step; on a small set it gains more
    than any other setting. candidates: captions that each sample is told from. checks: how often
    recall on the validation slice is looked at; patience: checks below the best before stopping.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str = "mlp"
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
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.15
    checks: PositiveInt = 20
    patience: PositiveInt = 6
    seed: int = 0


@dataclass(frozen=True)
class Check:
    """`loss` since the check before; `recall`: mean Recall@1, 5 and 10, both ways, on the validation
    slice, in percent of 1; Recall@10 alone is flat on small slices."""

    step: int
    loss: float
    recall: float


@dataclass(frozen=True)
class Fit:
    """`steps` is how long the returned projector was trained; `history` is of the run that chose it."""

    projector: Projector
    history: list[Check]
    steps: int
    temperature: float


def split(pair_keys: Sequence[str], content_ids: Sequence[str], test_fraction: float = 0.2, seed: int = 0) -> Mask:
    """Which items (N,) are for testing.

    Items of one pair or of one content stay on one side, and so do all that are linked through
    them. The side is decided by a hash of the smallest pair key among the linked, so that a pair
    falls on the same side in every corpus where it is linked to the same others.
    """
    linked = _linked(pair_keys, content_ids)
    key_of: dict[int, str] = {}
    for number, key in zip(linked, pair_keys, strict=True):
        key_of[number] = min(key, key_of.get(number, key))
    tested = {number: _hash_share(key, seed) < test_fraction for number, key in key_of.items()}
    return np.array([tested[number] for number in linked], dtype=np.bool_)


def fit(
    features: Features,
    targets_NK: Array,
    groups: Sequence[str],
    config: Config = Config(),
    progress: Progress | None = None,
) -> Fit:
    """Fit a projector from features (N, D), or tokens of N segments, to unit target vectors (N, K) by InfoNCE.

    What occurs together in one group is right for each other and never a negative, and so are
    samples of equal targets. A first run, on all but a validation slice cut by linked groups, tells
    for how many steps to train; a second run fits everything for that many. progress(done, total)
    counts steps and may jump to the end.

    Raises UsageError for arrays that do not match or fewer than four linked groups, SpaceError for
    wrong projector options. A kind that takes pooled features gets mean and standard deviation of
    tokens; tokens stay as they are kept until a batch of them is padded.
    Source: Oord et al. 2018, arXiv:1807.03748; several positives: Miech et al. 2020 (MIL-NCE),
    arXiv:1912.06430; learned temperature, both directions: Radford et al. 2021, arXiv:2103.00020.
    """
    report = progress or _no_progress
    samples = _Samples.of(_as_taken(features, config), targets_NK, groups)
    validation = _validation_slice(samples, config)
    trained, judged = samples.where(~validation), samples.where(validation)
    steps = min(config.max_steps, config.epochs * max(1, len(trained) // config.batch_rows))
    with torch.random.fork_rng(devices=[]), _no_denormals():
        history = _choose_length(trained, judged, config, steps, lambda done: report(done, 2 * steps))
        length = history[_last_good(history)].step
        final = _Training(samples, config, length)
        for done in range(1, length + 1):
            final.step()
            report(steps + done, 2 * steps)
    report(2 * steps, 2 * steps)
    return Fit(final.projector.eval(), history, length, final.temperature)


def ridge(features: Features, targets_NK: Array, groups: Sequence[str], config: Config = Config()) -> LinearProjector:
    """Closed-form linear regression (N, D) -> (N, K): the baseline that training has to beat.

    Tokens are pooled to mean and standard deviation. Of `config` only the validation slice counts: it chooses the L2
    penalty; then everything is fitted.
    """
    pooled = features.mean_std() if isinstance(features, TokenFeatures) else features
    samples = _Samples.of(pooled, targets_NK, groups)
    validation = _validation_slice(samples, config)
    trained, judged = samples.where(~validation), samples.where(validation)
    solve = _ridge_solver(trained)
    penalty = max(_RIDGE_PENALTIES, key=lambda penalty: _recall(solve(penalty), judged))
    return _ridge_solver(samples)(penalty)


class _Samples:
    """`targets_CK` are the different targets and `target_N` says which one each sample has."""

    def __init__(self, features: Features, targets_CK: Tensor, target_N: Tensor, group_N: Tensor) -> None:
        self.features = features
        self.targets_CK = targets_CK
        self.target_N = target_N
        self.group_N = group_N
        self.linked = _linked(group_N.tolist(), target_N.tolist())
        targets_of: dict[int, set[int]] = {}
        for group, target in zip(group_N.tolist(), target_N.tolist(), strict=True):
            targets_of.setdefault(group, set()).add(target)
        self._targets_of = {group: sorted(targets) for group, targets in targets_of.items()}

    @staticmethod
    def of(features: Features, targets_NK: Array, groups: Sequence[str]) -> _Samples:
        if not len(features) == len(targets_NK) == len(groups):
            raise UsageError(
                f"{len(features)} features, {len(targets_NK)} targets and {len(groups)} groups: "
                "expected one of each per sample"
            )
        targets_CK, target_N = np.unique(np.asarray(targets_NK, np.float32), axis=0, return_inverse=True)
        _, group_N = np.unique(np.asarray(groups), return_inverse=True)
        if not isinstance(features, TokenFeatures):
            features = np.asarray(features, np.float32)
        return _Samples(features, torch.from_numpy(targets_CK), torch.from_numpy(target_N), torch.from_numpy(group_N))

    def __len__(self) -> int:
        return len(self.features)

    def where(self, mask_N: Mask) -> _Samples:
        mask = torch.from_numpy(mask_N)
        used, target_N = torch.unique(self.target_N[mask], return_inverse=True)
        return _Samples(self.features[mask_N], self.targets_CK[used], target_N, self.group_N[mask])

    @property
    def in_dim(self) -> int:
        return self.features.dim if isinstance(self.features, TokenFeatures) else int(self.features.shape[1])

    def right_targets(self, rows_B: Tensor) -> Tensor:
        """(B, C) bool: which targets occur in the group of each of these samples."""
        right = torch.zeros(len(rows_B), len(self.targets_CK), dtype=torch.bool)
        for row, group in enumerate(self.group_N[rows_B].tolist()):
            right[row, self._targets_of[group]] = True
        return right


class _Training:
    """One run of `steps` steps from fresh weights; draws from torch's global generator, which it seeds."""

    def __init__(self, samples: _Samples, config: Config, steps: int) -> None:
        torch.manual_seed(config.seed)
        self._samples, self._config = samples, config
        self._batches = _batches(len(samples), config.batch_rows)
        self.projector = _projector_config(config, samples.in_dim, samples.targets_CK.shape[1]).build()
        self.projector.standardise_to(samples.features)
        self._log_scale = torch.nn.Parameter(torch.tensor(-math.log(config.temperature)))
        self._optimizer = _adamw(self.projector, self._log_scale, config)
        warm_up = max(1, round(config.warm_up * steps))
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda step: _warm_up_then_cosine(step, warm_up, steps)
        )

    @property
    def temperature(self) -> float:
        return 1 / self._scale().item()

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
        vectors_BK = self._vectors(rows_B)
        own_B = samples.target_N[rows_B]
        right_BC = samples.right_targets(rows_B)
        candidates = self._candidates(own_B)
        to_target = _info_nce(vectors_BK @ samples.targets_CK[candidates].T * self._scale(), right_BC[:, candidates])
        to_item = _info_nce(samples.targets_CK[own_B] @ vectors_BK.T * self._scale(), right_BC[:, own_B].T)
        return (to_target + to_item) / 2

    def _vectors(self, rows_B: Tensor) -> Tensor:
        """Vectors (B, K) with some features of each sample hidden; of tokens the same ones in all of a sample's."""
        features, hidden = self._samples.features, self._config.feature_dropout
        if not (isinstance(features, TokenFeatures) and isinstance(self.projector, TokenProjector)):
            standard_BD = self.projector.standardise(torch.from_numpy(features[rows_B.numpy()]))
            return functional.normalize(self.projector.head(functional.dropout(standard_BD, hidden)), dim=-1)
        chosen = features[rows_B.numpy()]
        tokens_BTD, real_BT, summary_BE = padded_batch(chosen, int(chosen.lengths.max()))
        seen_BD = functional.dropout(torch.ones(len(rows_B), features.dim), hidden)
        tokens_BTD = self.projector.standardise(tokens_BTD) * seen_BD[:, None]
        summary_BE = functional.dropout(self.projector.standardise_summary(summary_BE), hidden)
        return functional.normalize(self.projector.head(tokens_BTD, real_BT, summary_BE), dim=-1)

    def _candidates(self, own_B: Tensor) -> Tensor:
        """All targets, or the batch's own and as many others as the config allows, drawn anew."""
        count = len(self._samples.targets_CK)
        if count <= self._config.candidates:
            return torch.arange(count)
        drawn: Tensor = torch.unique(torch.cat([own_B, torch.randperm(count)[: self._config.candidates]]))
        return drawn

    def _scale(self) -> Tensor:
        return self._log_scale.exp().clamp(max=_LARGEST_SCALE)


def _projector_config(config: Config, in_dim: int, out_dim: int) -> ProjectorConfig:
    return parse_config({**config.options, "kind": config.kind, "in_dim": in_dim, "out_dim": out_dim})


def _as_taken(features: Features, config: Config) -> Features:
    """Features as the kind takes them: tokens as they are, or their mean and standard deviation."""
    width = features.dim if isinstance(features, TokenFeatures) else features.shape[1]
    takes_tokens = isinstance(_projector_config(config, width, 1), TokenProjectorConfig)
    if isinstance(features, TokenFeatures):
        return features if takes_tokens else features.mean_std()
    if takes_tokens:
        raise UsageError(
            f"projector kind '{config.kind}' takes tokens and these features are pooled: embed with "
            "'cache: tokens' beside 'encoder' in the space file (--space builtin-tokens has it), then train again"
        )
    return features


def _no_progress(_done: int, _total: int) -> None:
    pass


@contextmanager
def _no_denormals() -> Iterator[None]:
    """Late in training gradients and moments get so small that the CPU slows down to a twentieth."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def _choose_length(
    trained: _Samples, judged: _Samples, config: Config, steps: int, progress: Callable[[int], None]
) -> list[Check]:
    """Train, looking at recall on `judged` now and then, until it has fallen for long."""
    training = _Training(trained, config, steps)
    every = math.ceil(steps / config.checks)
    history: list[Check] = []
    losses: list[float] = []
    for step in range(1, steps + 1):
        losses.append(training.step())
        progress(step)
        if step % every and step != steps:
            continue
        history.append(Check(step, float(np.mean(losses)), _recall(training.projector, judged)))
        losses.clear()
        if len(history) - 1 - _last_good(history) >= config.patience:
            break
    return history


def _last_good(history: list[Check]) -> int:
    """The last check that is as good as the best: the top is flat, and there a longer run, with its
    learning rate lowered more slowly, gains most."""
    best = max(check.recall for check in history)
    return max(number for number, check in enumerate(history) if check.recall >= best - _AS_GOOD)


def _info_nce(logits_BC: Tensor, right_BC: Tensor) -> Tensor:
    """How unlikely it is that a draw from the softmax over candidates is a right one; mean over B."""
    right_B = logits_BC.masked_fill(~right_BC, -torch.inf).logsumexp(dim=1)
    loss: Tensor = (logits_BC.logsumexp(dim=1) - right_B).mean()
    return loss


def _batches(count: int, rows: int) -> Iterator[Tensor]:
    """Endless batches of sample numbers, shuffled each time round; a short rest is left out."""
    rows = min(rows, count)
    while True:
        shuffled = torch.randperm(count)
        for start in range(0, count - rows + 1, rows):
            yield shuffled[start : start + rows]


def _adamw(projector: Projector, log_scale: Tensor, config: Config) -> torch.optim.AdamW:
    """Only matrices decay: biases and the temperature have no reason to be small."""
    matrices = [parameter for parameter in projector.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in projector.parameters() if parameter.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": [*others, log_scale], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate)


def _warm_up_then_cosine(step: int, warm_up: int, steps: int) -> float:
    return min(1.0, (step + 1) / warm_up) * (1 + math.cos(math.pi * min(1.0, step / steps))) / 2


def _recall(projector: Projector, judged: _Samples) -> float:
    """Mean Recall@1, 5 and 10 over both directions; right is whatever is linked."""
    vectors = projector.project(judged.features)
    targets = judged.targets_CK.numpy()
    linked_C = dict(zip(judged.target_N.tolist(), judged.linked, strict=True))
    target_pairs = [str(linked_C[target]) for target in range(len(targets))]
    vector_pairs = [str(linked) for linked in judged.linked]
    to_target = retrieval(vectors, vector_pairs, targets, target_pairs)
    to_item = retrieval(targets, target_pairs, vectors, vector_pairs)
    return float(np.mean([way[f"r@{k}"] for way in (to_target, to_item) for k in (1, 5, 10)]))


def _validation_slice(samples: _Samples, config: Config) -> Mask:
    """Samples (N,) to validate with: whole linked groups, drawn with the config's seed."""
    linked = np.array(samples.linked)
    different = np.unique(linked)
    if len(different) < _FEWEST_GROUPS:
        raise UsageError(
            f"{len(different)} unlinked pairs to train on: expected at least {_FEWEST_GROUPS}; "
            "add pairs with texts of their own"
        )
    count = min(max(2, round(config.validation_fraction * len(different))), len(different) - 2)
    chosen = np.random.default_rng(config.seed).permutation(different)[:count]
    return np.isin(linked, chosen)


def _ridge_solver(samples: _Samples) -> Callable[[float], LinearProjector]:
    """Everything but the penalty, once."""
    targets_NK = samples.targets_CK[samples.target_N]
    in_dim = samples.in_dim
    projector = LinearConfig(in_dim=in_dim, out_dim=targets_NK.shape[1]).build()
    projector.standardise_to(samples.features)
    # of mean 0, so the bias is the mean target
    standard_ND = projector.standardise(torch.tensor(samples.features)).double()
    mean_K = targets_NK.mean(dim=0)
    gram_DD = standard_ND.T @ standard_ND
    moment_DK = standard_ND.T @ (targets_NK - mean_K).double()

    def solve(penalty: float) -> LinearProjector:
        weights_DK = torch.linalg.solve(gram_DD + penalty * torch.eye(in_dim), moment_DK)
        projector.load_state_dict({**projector.state_dict(), "map.weight": weights_DK.T, "map.bias": mean_K})
        return projector.eval()

    return solve


def _linked(*labelings: Sequence[Hashable]) -> list[int]:
    """Number of the component of each item, where items that share any label are linked."""
    parent = list(range(len(labelings[0])))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    for labels in labelings:
        first: dict[Hashable, int] = {}
        for item, label in enumerate(labels):
            parent[root(item)] = root(first.setdefault(label, item))
    return [root(item) for item in range(len(parent))]


def _hash_share(key: str, seed: int) -> float:
    """A number in [0, 1) that looks random, and is the same everywhere."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8]) / 2**64
