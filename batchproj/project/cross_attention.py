"""Queries attend to the encoder's tokens: learned ones, or the features of another modality."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor

from batchproj.attention import Block
from batchproj.errors import SpaceError
from batchproj.projector import Array
from batchproj.token_features import TokenFeatures
from batchproj.token_projector import TokenProjector, TokenProjectorConfig


class Config(TokenProjectorConfig):
    """queries: how many are learned. query_dim: dims of another modality's tokens that are queries instead."""

    kind: Literal["cross_attention"] = "cross_attention"
    queries: PositiveInt = 8
    query_dim: PositiveInt | None = None

    def build(self) -> CrossAttentionProjector:
        return CrossAttentionProjector(self)


class CrossAttentionProjector(TokenProjector):
    """Tokens (B, T, D) and which are real (B, T) -> Q query tokens (B, Q, K), whose mean is the vector (B, K).

    In each layer the queries attend to the tokens and to one another, as in the Perceiver resampler
    of Alayrac et al. 2022 (Flamingo), arXiv:2204.14198; learned queries as in the Q-Former of Li et
    al. 2023 (BLIP-2), arXiv:2301.12597. With `query_dim` the queries are features of another
    modality, as text in Flamingo's own layers, and `cross` takes the place of `project`.
    """

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.blocks = torch.nn.ModuleList(
            Block(config.width, config.heads, config.dropout) for _ in range(config.layers)
        )
        if config.query_dim is None:
            self.learned = torch.nn.Parameter(0.02 * torch.randn(config.queries, config.width))
        else:
            self.enter_queries = torch.nn.Linear(config.query_dim, config.width)

    def attend(self, states_BTW: Tensor, real_BT: Tensor) -> Tensor:
        if self.config.query_dim is not None:
            raise SpaceError("this projector's queries are features of another modality: call 'cross' with both")
        queries_BQW = self.learned.expand(len(states_BTW), -1, -1)
        return self._resample(queries_BQW, torch.ones_like(queries_BQW[..., 0], dtype=torch.bool), states_BTW, real_BT)

    def cross(self, queries: TokenFeatures, features: TokenFeatures) -> Array:
        """Vectors (N, K) of features of one modality, asked by those of another; a row depends on its pair alone."""
        asked = self.checked(queries, self.config.query_dim)
        with torch.inference_mode():
            return self.run(self.cross_forward, asked, self.checked(features))

    def cross_forward(
        self,
        queries_BQE: Tensor,
        asked_BQ: Tensor,
        _asked_summary: Tensor,
        tokens_BTD: Tensor,
        real_BT: Tensor,
        summary_BE: Tensor,
    ) -> Tensor:
        """`padded_batch` of the queries, then that of the tokens -> (B, K) of unit L2 norm."""
        states_BTW = self.states(self.standardise(tokens_BTD), real_BT)
        attended_BQW = self._resample(self.enter_queries(queries_BQE), asked_BQ, states_BTW, real_BT)
        answers_BQK = self.answer(attended_BQW, self.standardise_summary(summary_BE)) * asked_BQ[:, :, None]
        return torch.nn.functional.normalize(answers_BQK.sum(dim=1), dim=-1)

    def _resample(self, queries_BQW: Tensor, asked_BQ: Tensor, states_BTW: Tensor, real_BT: Tensor) -> Tensor:
        seen = torch.cat([real_BT, asked_BQ], dim=1)
        for block in self.blocks:
            queries_BQW = block(queries_BQW, torch.cat([states_BTW, queries_BQW], dim=1), seen)
        return queries_BQW
