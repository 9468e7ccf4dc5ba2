"""A few layers with GELU between them, beside a linear path."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from batchproj.projector import Projector, ProjectorConfig


class Config(ProjectorConfig):
    """hidden: widths between input and output; none is one matrix. skip: add a linear map of the input to the output.

    dropout: share of hidden units left out in training.
    """

    kind: Literal["mlp"] = "mlp"
    hidden: tuple[PositiveInt, ...] = (1024,)
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    skip: bool = True

    def build(self) -> MlpProjector:
        return MlpProjector(self)


class MlpProjector(Projector):
    """As `mlpNx_gelu`, Liu et al. 2023 (LLaVA-1.5), arXiv:2310.03744, with an optional linear path.

    The linear path is what a small set can fit; the layers beside it start at zero and add to it.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        widths = (config.in_dim, *config.hidden)
        self.layers = torch.nn.Sequential()
        for before, after in zip(widths, config.hidden, strict=False):
            self.layers.extend([torch.nn.Linear(before, after), torch.nn.GELU(), torch.nn.Dropout(config.dropout)])
        self.out = torch.nn.Linear(widths[-1], config.out_dim)
        if config.skip:
            torch.nn.init.zeros_(self.out.weight)
            torch.nn.init.zeros_(self.out.bias)
        self.skip = torch.nn.Linear(config.in_dim, config.out_dim, bias=False) if config.skip else None

    @property
    def has_linear_path(self) -> bool:
        return self.skip is not None

    @torch.no_grad()
    def blend(self, own: float, weight_KD: Tensor, bias_K: Tensor) -> None:
        assert self.skip is not None
        self.out.weight.mul_(own)
        self.out.bias.mul_(own).add_(bias_K)
        self.skip.weight.mul_(own).add_(weight_KD)

    def head(self, standard_BD: Tensor) -> Tensor:
        projected: Tensor = self.out(self.layers(standard_BD))
        return projected if self.skip is None else projected + self.skip(standard_BD)
