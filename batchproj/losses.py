"""Contrastive losses between projected items and the targets of their captions, with what they learn of themselves.

B items of a batch, C candidate targets, K dim of the space; all vectors have unit length. What is
right may be several for one item and several for one target: none of them counts as a negative.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Name = Literal["info_nce", "sigmoid"]

_LARGEST_SCALE = 100.0  # 1 / temperature, as CLIP clips it
_FIRST_THRESHOLD = 1.0  # as SigLIP starts, with scale 10 and bias -10: whatever is wrong counts for nothing yet


class ContrastiveLoss(torch.nn.Module):
    """`forward` gives the loss of a batch; the temperature is learned along."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.log_scale = torch.nn.Parameter(torch.tensor(-math.log(temperature)))

    @property
    def temperature(self) -> float:
        return 1 / self.scale().item()

    def scale(self) -> Tensor:
        return self.log_scale.exp().clamp(max=_LARGEST_SCALE)

    def forward(self, items_BK: Tensor, candidates_CK: Tensor, own_B: Tensor, right_BC: Tensor) -> Tensor:
        """`own_B` is the place among the candidates of each item's caption, `right_BC` all that is right for it."""
        raise NotImplementedError


class InfoNce(ContrastiveLoss):
    """Each item among all candidates, and each item's own caption among the items of the batch.

    Source: Oord et al. 2018, arXiv:1807.03748; several positives: Miech et al. 2020 (MIL-NCE),
    arXiv:1912.06430; learned temperature, both directions: Radford et al. 2021 (CLIP), arXiv:2103.00020.
    """

    def forward(self, items_BK: Tensor, candidates_CK: Tensor, own_B: Tensor, right_BC: Tensor) -> Tensor:
        to_target_BC = items_BK @ candidates_CK.T * self.scale()
        to_item_BB = candidates_CK[own_B] @ items_BK.T * self.scale()
        return (_unlikeliness(to_target_BC, right_BC) + _unlikeliness(to_item_BB, right_BC[:, own_B].T)) / 2


class Sigmoid(ContrastiveLoss):
    """Each item with each candidate by itself, right or wrong by a cosine above or below a learned threshold.

    SigLIP's bias is -scale * threshold: learned as a cosine it keeps up with the temperature, and
    moves far enough in a few hundred steps.
    Source: Zhai et al. 2023 (SigLIP), arXiv:2303.15343.
    """

    def __init__(self, temperature: float) -> None:
        super().__init__(temperature)
        self.threshold = torch.nn.Parameter(torch.tensor(_FIRST_THRESHOLD))

    def forward(self, items_BK: Tensor, candidates_CK: Tensor, own_B: Tensor, right_BC: Tensor) -> Tensor:  # noqa: ARG002
        logits_BC = (items_BK @ candidates_CK.T - self.threshold) * self.scale()
        signed_BC = torch.where(right_BC, logits_BC, -logits_BC)
        return -functional.logsigmoid(signed_BC).sum(dim=1).mean()


def build(name: Name, temperature: float) -> ContrastiveLoss:
    return {"info_nce": InfoNce, "sigmoid": Sigmoid}[name](temperature)


def _unlikeliness(logits_BC: Tensor, right_BC: Tensor) -> Tensor:
    """How unlikely it is that a draw from the softmax over candidates is a right one; mean over B."""
    right_B = logits_BC.masked_fill(~right_BC, -torch.inf).logsumexp(dim=1)
    return (logits_BC.logsumexp(dim=1) - right_B).mean()
