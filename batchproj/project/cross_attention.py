"""Queries attend to the encoder's tokens: learned ones, or the features of another modality."""

from __future__ import annotations

from typing import Literal

import numpy.typing as npt
import torch
from pydantic import PositiveInt
from torch import Tensor

from batchproj.attention import Block
from batchproj.errors import SpaceError
from batchproj.projector import Array, divisor
from batchproj.token_features import AskedFeatures, TokenFeatures
from batchproj.token_projector import TokenProjector, TokenProjectorConfig, check_dim, moments


class Config(TokenProjectorConfig):
    """queries: how many are learned. query_dim: dims of another modality's tokens that are queries instead."""

    kind: Literal["cross_attention"] = "cross_attention"
    queries: PositiveInt = 8
    query_dim: PositiveInt | None = None

    @property
    def is_asked(self) -> bool:
        return self.query_dim is not None

    def build(self) -> CrossAttentionProjector:
        return CrossAttentionProjector(self)


class CrossAttentionProjector(TokenProjector):
    """Tokens (B, T, D) and which are real (B, T) -> Q query tokens (B, Q, K), whose mean is the vector (B, K).

    In each layer the queries attend to the tokens and to one another, as in the Perceiver resampler
    of Alayrac et al. 2022 (Flamingo), arXiv:2204.14198; learned queries as in the Q-Former of Li et
    al. 2023 (BLIP-2), arXiv:2301.12597. With `query_dim` the queries are features of another
    modality, as text in Flamingo's own layers: every input is `AskedFeatures` then. `fit.fit` trains either form;
    `batchproj train` the first one alone, as the vector of an item of a collection follows from that item alone.
    """

    config: Config
    asked_mean: Tensor
    asked_scale: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.blocks = torch.nn.ModuleList(
            Block(config.width, config.heads, config.dropout) for _ in range(config.layers)
        )
        if config.query_dim is None:
            self.learned = torch.nn.Parameter(0.02 * torch.randn(config.queries, config.width))
        else:
            self.enter_queries = torch.nn.Linear(config.query_dim, config.width)
            self.register_buffer("asked_mean", torch.zeros(config.query_dim))
            self.register_buffer("asked_scale", torch.ones(config.query_dim))

    def attend(self, states_BTW: Tensor, real_BT: Tensor, *asked: Tensor) -> Tensor:
        if asked:
            queries_BQW: Tensor = self.enter_queries(asked[0])
            asked_BQ = asked[1]
        else:
            queries_BQW = self.learned.expand(len(states_BTW), -1, -1)
            asked_BQ = torch.ones_like(queries_BQW[..., 0], dtype=torch.bool)
        seen = torch.cat([real_BT, asked_BQ], dim=1)
        for block in self.blocks:
            queries_BQW = block(queries_BQW, torch.cat([states_BTW, queries_BQW], dim=1), seen)
        return queries_BQW

    def queries(self, standard_BTD: Tensor, real_BT: Tensor, summary_BE: Tensor, *asked: Tensor) -> Tensor:
        """What is no query but padding has the answer 0."""
        answers_BQK = super().queries(standard_BTD, real_BT, summary_BE, *asked)
        return answers_BQK * asked[1][:, :, None] if asked else answers_BQK

    def standardised(self, *batch: Tensor) -> tuple[Tensor, ...]:
        if not self.config.is_asked:
            return super().standardised(*batch)
        queries_BQE, asked_BQ, _ = batch[3:]
        return *super().standardised(*batch[:3]), (queries_BQE - self.asked_mean) / self.asked_scale, asked_BQ

    def standardise_to(self, features: npt.ArrayLike | TokenFeatures) -> None:
        super().standardise_to(features)
        if isinstance(asked := self.checked(features), AskedFeatures):
            mean_E, spread_E = moments(asked.queries)
            self.asked_mean.copy_(mean_E)
            self.asked_scale.copy_(divisor(spread_E))

    def query_tokens(self, features: TokenFeatures) -> Array:
        """Raises SpaceError where another modality asks: then each segment has as many answers as it has askers."""
        if self.config.is_asked:
            raise SpaceError("this projector has no query tokens of its own, another modality asks: call 'cross'")
        return super().query_tokens(features)

    def cross(self, queries: TokenFeatures, features: TokenFeatures) -> Array:
        """Vectors (N, K) of features of one modality, asked by those of another; a row depends on its pair alone."""
        return self.project(AskedFeatures.by(queries, features))

    def checked(self, features: npt.ArrayLike | TokenFeatures) -> TokenFeatures:
        tokens = super().checked(features)
        if isinstance(tokens, AskedFeatures):
            check_dim(tokens.queries, self.asked_mean.shape[0])
        return tokens
