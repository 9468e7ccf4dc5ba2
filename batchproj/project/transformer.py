"""A tiny transformer over the encoder's tokens, then one vector of them all."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from batchproj.attention import Attention, Block
from batchproj.token_projector import TokenProjector, TokenProjectorConfig


class Config(TokenProjectorConfig):
    """pooling: a learned query attends to the tokens, or their mean."""

    kind: Literal["transformer"] = "transformer"
    pooling: Literal["attention", "mean"] = "attention"

    def build(self) -> TransformerProjector:
        return TransformerProjector(self)


class TransformerProjector(TokenProjector):
    """Tokens (B, T, D) and which are real (B, T) -> (B, K): self-attention, then pooling over the real ones.

    Sources: Vaswani et al. 2017, arXiv:1706.03762; attention pooling: Lee et al. 2019 (Set
    Transformer), arXiv:1810.00825, as in Zhai et al. 2022, arXiv:2106.04560.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.blocks = torch.nn.ModuleList(
            Block(config.width, config.heads, config.dropout) for _ in range(config.layers)
        )
        self.pool = None
        if config.pooling == "attention":
            self.pool = Attention(config.width, config.heads)
            self.query = torch.nn.Parameter(0.02 * torch.randn(1, config.width))

    def attend(self, states_BTW: Tensor, real_BT: Tensor, *asked: Tensor) -> Tensor:  # noqa: ARG002
        for block in self.blocks:
            states_BTW = block(states_BTW, states_BTW, real_BT)
        if self.pool is not None:
            pooled_BQW: Tensor = self.pool(self.query.expand(len(states_BTW), -1, -1), states_BTW, real_BT)
            return pooled_BQW
        real_BTW = states_BTW * real_BT[:, :, None]
        return real_BTW.sum(dim=1, keepdim=True) / real_BT.sum(dim=1)[:, None, None]
