"""What every way of training a projector shares: a step's vectors, the optimiser, its schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from batchproj.projector import Projector
from batchproj.token_features import TokenFeatures
from batchproj.token_projector import TokenProjector, padded_batch, parts

Features = np.ndarray[tuple[int, ...], np.dtype[np.float32]] | TokenFeatures


def dropped_vectors(projector: Projector, features: Features, hidden: float) -> Tensor:
    """Vectors (B, K) of features (B, D) or tokens of B segments, a share `hidden` of each sample's features left out.

    Of tokens the same ones are left out in all of a sample's.
    """
    device = projector.device
    if not (isinstance(features, TokenFeatures) and isinstance(projector, TokenProjector)):
        standard_BD = projector.standardise(torch.from_numpy(np.asarray(features)).to(device))
        return functional.normalize(projector.head(functional.dropout(standard_BD, hidden)), dim=-1)
    batch = (each for part in parts(features) for each in padded_batch(part, int(part.lengths.max())))
    tokens_BTD, real_BT, summary_BE, *asked = projector.standardised(*(each.to(device) for each in batch))
    tokens_BTD = tokens_BTD * _seen(tokens_BTD, hidden)
    summary_BE = functional.dropout(summary_BE, hidden)
    if asked:
        asked[0] = asked[0] * _seen(asked[0], hidden)
    return functional.normalize(projector.head(tokens_BTD, real_BT, summary_BE, *asked), dim=-1)


def _seen(tokens_BTD: Tensor, hidden: float) -> Tensor:
    """What to multiply with (B, 1, D), so that of a segment's tokens the same features are left out."""
    return functional.dropout(torch.ones_like(tokens_BTD[:, :1]), hidden)


def adamw(
    projector: torch.nn.Module, others: Iterable[torch.nn.Parameter], learning_rate: float, weight_decay: float
) -> torch.optim.AdamW:
    """Only matrices decay: biases and what the loss learns have no reason to be small."""
    matrices = [parameter for parameter in projector.parameters() if parameter.ndim > 1]
    biases = [parameter for parameter in projector.parameters() if parameter.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": [*biases, *others], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate)


def schedule(optimizer: torch.optim.Optimizer, warm_up: float, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """The learning rate over so many steps: a linear warm-up for a share of them, then half a cosine down to 0."""
    warm_up_steps = max(1, round(warm_up * steps))
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warm_up_then_cosine(step, warm_up_steps, steps))


def _warm_up_then_cosine(step: int, warm_up: int, steps: int) -> float:
    return min(1.0, (step + 1) / warm_up) * (1 + math.cos(math.pi * min(1.0, step / steps))) / 2


@contextmanager
def no_denormals() -> Iterator[None]:
    """Late in training gradients and moments get so small that the CPU slows down to a twentieth."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
