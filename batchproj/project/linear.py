"""One matrix: the least that can align two spaces."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from batchproj.projector import Projector, ProjectorConfig


class Config(ProjectorConfig):
    kind: Literal["linear"] = "linear"
    bias: bool = True

    def build(self) -> LinearProjector:
        return LinearProjector(self)


class LinearProjector(Projector):
    """Linear projection head, Radford et al. 2021 (CLIP), arXiv:2103.00020."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.map = torch.nn.Linear(config.in_dim, config.out_dim, bias=config.bias)

    @property
    def has_linear_path(self) -> bool:
        return self.map.bias is not None

    @torch.no_grad()
    def blend(self, own: float, weight_KD: Tensor, bias_K: Tensor) -> None:
        self.map.weight.mul_(own).add_(weight_KD)
        self.map.bias.mul_(own).add_(bias_K)

    def head(self, standard_BD: Tensor) -> Tensor:
        projected: Tensor = self.map(standard_BD)
        return projected
