"""What projectors over tokens share: padded batches that do not show, and a linear path beside the attention.

N segments, B segments of a batch, T tokens, D encoder dim, E = 2 D, W width inside, Q query tokens,
K dim of the space. A segment's summary (E,) is mean and standard deviation of its tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from batchproj.attention import sinusoids
from batchproj.errors import SpaceError
from batchproj.projector import Array, Projector, ProjectorConfig, divisor
from batchproj.token_features import AskedFeatures, TokenFeatures, bucket

_CHUNK_TOKENS = 1024
"""Padded tokens of a forward batch: every batch of one padded length has as many rows, so none shows."""


class TokenProjectorConfig(ProjectorConfig):
    """width: inside the attention, a multiple of 2 * heads. layers: of attention, one after another.

    dropout: share of units left out in training. skip: add a linear map of the summary to the output.
    """

    takes: Literal["tokens"] = "tokens"
    width: PositiveInt = 128
    heads: PositiveInt = 4
    layers: PositiveInt = 1
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3
    skip: bool = True

    @property
    def is_asked(self) -> bool:
        """Whether features of another modality are its queries: it takes `AskedFeatures` alone then."""
        return False

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> TokenProjectorConfig:
        if self.width % (2 * self.heads):
            raise ValueError(f"width is {self.width}, expected a multiple of 2 * heads = {2 * self.heads}")
        return self

    def build(self) -> TokenProjector:
        raise NotImplementedError(self.kind)


class TokenProjector(Projector):
    """Tokens (B, T, D) with a padding mask -> vectors (B, K) of unit L2 norm.

    A kind implements `attend`. As in kind `mlp`, the linear path is what a small set can fit; the
    attention beside it starts at zero and adds to it. Where another modality asks, `asked` are its
    tokens (B, Q, E) and which of them are real (B, Q).
    """

    config: TokenProjectorConfig
    summary_mean: Tensor
    summary_scale: Tensor

    def __init__(self, config: TokenProjectorConfig) -> None:
        super().__init__(config)
        self._place_shows: dict[tuple[object, ...], bool] = {}
        self.register_buffer("summary_mean", torch.zeros(2 * config.in_dim))
        self.register_buffer("summary_scale", torch.ones(2 * config.in_dim))
        self.enter = torch.nn.Linear(config.in_dim, config.width)
        self.norm = torch.nn.LayerNorm(config.width)
        self.out = torch.nn.Linear(config.width, config.out_dim)
        if config.skip:
            torch.nn.init.zeros_(self.out.weight)
            torch.nn.init.zeros_(self.out.bias)
        self.skip = torch.nn.Linear(2 * config.in_dim, config.out_dim, bias=False) if config.skip else None

    def attend(self, states_BTW: Tensor, real_BT: Tensor, *asked: Tensor) -> Tensor:
        """Token states with their positions (B, T, W), and which are real (B, T) -> query states (B, Q, W)."""
        raise NotImplementedError(self.config.kind)

    def head(self, standard_BTD: Tensor, real_BT: Tensor, summary_BE: Tensor, *asked: Tensor) -> Tensor:
        """Standardised tokens, which of them are real, and standardised summaries -> (B, K), of any length."""
        return self.queries(standard_BTD, real_BT, summary_BE, *asked).mean(dim=1)

    def queries(self, standard_BTD: Tensor, real_BT: Tensor, summary_BE: Tensor, *asked: Tensor) -> Tensor:
        """As `head`, before the mean over the query tokens: (B, Q, K)."""
        return self.answer(self.attend(self.states(standard_BTD, real_BT), real_BT, *asked), summary_BE)

    def states(self, standard_BTD: Tensor, real_BT: Tensor) -> Tensor:
        """What is attended to: the tokens with their positions (B, T, W)."""
        real_BTD = standard_BTD * real_BT[:, :, None]
        places_TW = sinusoids(real_BTD.shape[1], self.config.width).to(real_BTD.device)
        states_BTW: Tensor = self.enter(real_BTD) + places_TW
        return states_BTW

    def answer(self, attended_BQW: Tensor, summary_BE: Tensor) -> Tensor:
        """Query states in the space's dims (B, Q, K), the linear path added to each."""
        answer_BQK: Tensor = self.out(self.norm(attended_BQW))
        if self.skip is None:
            return answer_BQK
        linear_BK: Tensor = self.skip(summary_BE)
        return answer_BQK + linear_BK[:, None]

    def forward(self, *batch: Tensor) -> Tensor:
        """A `padded_batch`, then that of what asks if anything does -> (B, K) of unit L2 norm."""
        return torch.nn.functional.normalize(self.head(*self.standardised(*batch)), dim=-1)

    def standardised(self, *batch: Tensor) -> tuple[Tensor, ...]:
        """What `forward` takes -> what `head` and `queries` take."""
        tokens_BTD, real_BT, summary_BE = batch
        return self.standardise(tokens_BTD), real_BT, self.standardise_summary(summary_BE)

    def standardise_summary(self, summary_BE: Tensor) -> Tensor:
        return (summary_BE - self.summary_mean) / self.summary_scale

    def standardise_to(self, features: npt.ArrayLike | TokenFeatures) -> None:
        """Take mean and spread of these tokens, and of their summaries, as those of all input from now on."""
        tokens = self.checked(features)
        self.take_moments(*moments(tokens))
        summaries_NE = torch.from_numpy(tokens.mean_std())
        self.summary_mean.copy_(summaries_NE.mean(dim=0))
        self.summary_scale.copy_(divisor(summaries_NE.std(dim=0, correction=0)))

    @torch.inference_mode()
    def project(self, features: npt.ArrayLike | TokenFeatures) -> Array:
        """Tokens of N segments -> vectors (N, K) float32 of unit L2 norm; a row's bits depend on that row alone.

        Raises SpaceError for pooled features, and if D is not what the projector was trained on.
        """
        return self.run(self, *parts(self.checked(features)))

    @torch.inference_mode()
    def query_tokens(self, features: TokenFeatures) -> Array:
        """Tokens of N segments -> (N, Q, K) float32, whose mean, normalised, is the vector; as input for an LLM."""
        return self.run(lambda *batch: self.queries(*self.standardised(*batch)), self.checked(features))

    def checked(self, features: npt.ArrayLike | TokenFeatures) -> TokenFeatures:
        """These features, if they are such as it was trained on; SpaceError if not."""
        if not isinstance(features, TokenFeatures):
            raise SpaceError(
                f"pooled features of shape {np.shape(features)} do not fit a {self.config.kind} projector, "
                "it takes tokens: embed with 'cache: tokens' in the space file"
            )
        if self.config.is_asked and not isinstance(features, AskedFeatures):
            raise SpaceError("this projector's queries are features of another modality: call 'cross' with both")
        if isinstance(features, AskedFeatures) and not self.config.is_asked:
            raise SpaceError(f"a {self.config.kind} projector without 'query_dim' is not asked: give the tokens alone")
        check_dim(features, self.config.in_dim)
        return features

    def run(self, forward: Callable[..., Tensor], *inputs: TokenFeatures) -> Array:
        """`forward` on padded batches of `inputs` (`padded_batch` of each), so that each row depends on itself alone.

        Rows are padded to a length that follows from their own, and batches of equal lengths have
        equally many rows, the last one filled up: see `fixed_shapes`. Outputs (N, ...) in order.
        """
        self.eval()
        groups: dict[tuple[int, ...], list[int]] = {}
        for row, lengths in enumerate(zip(*(each.lengths.tolist() for each in inputs), strict=True)):
            groups.setdefault(tuple(map(bucket, lengths)), []).append(row)
        outputs: dict[int, Array] = {}
        for padded, rows in groups.items():
            size = self._batch_rows(forward, inputs, padded)
            for start in range(0, len(rows), size):
                chosen = rows[start : start + size]
                filled = [chosen[place % len(chosen)] for place in range(size)]
                batch = [each[filled] for each in inputs]
                outputs |= dict(zip(chosen, self._forward(forward, batch, padded), strict=False))
        if not outputs:
            return self.run(forward, *(_probe(each.dim, (1,)) for each in inputs))[:0]
        return np.stack([outputs[row] for row in range(len(outputs))])

    def _batch_rows(
        self, forward: Callable[..., Tensor], inputs: Sequence[TokenFeatures], padded: tuple[int, ...]
    ) -> int:
        """As many rows as fit into _CHUNK_TOKENS, or 1 where a row's place in the batch shows in its bits.

        It does where BLAS treats edge rows differently, found with few outputs.
        """
        rows = max(1, _CHUNK_TOKENS // max(padded))
        key = (self.device, torch.get_num_threads(), padded, tuple(each.dim for each in inputs))
        if key not in self._place_shows:
            probes = [_probe(each.dim, (length,) * rows) for each, length in zip(inputs, padded, strict=True)]
            outputs = self._forward(forward, probes, padded)
            self._place_shows[key] = any(output.tobytes() != outputs[0].tobytes() for output in outputs)
        return 1 if self._place_shows[key] else rows

    def _forward(
        self, forward: Callable[..., Tensor], batch: Sequence[TokenFeatures], padded: tuple[int, ...]
    ) -> Array:
        tensors = [tensor for each, length in zip(batch, padded, strict=True) for tensor in padded_batch(each, length)]
        output: Array = forward(*(tensor.to(self.device) for tensor in tensors)).cpu().numpy()
        return output


def parts(features: TokenFeatures) -> tuple[TokenFeatures, ...]:
    """What is padded each by itself: the tokens, and what asks them if anything does."""
    return (features, features.queries) if isinstance(features, AskedFeatures) else (features,)


def check_dim(tokens: TokenFeatures, dim: int) -> None:
    """Raises SpaceError for tokens of other dims than those trained on."""
    if tokens.dim != dim:
        raise SpaceError(
            f"tokens of {tokens.dim} dims do not fit a projector trained on {dim}: train a projector for this encoder"
        )


def padded_batch(tokens: TokenFeatures, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (B, length, D), which of them are real (B, length), and summaries (B, E)."""
    tokens_BTD, real_BT = tokens.padded(length)
    return torch.from_numpy(tokens_BTD), torch.from_numpy(real_BT), torch.from_numpy(tokens.mean_std())


def _probe(dim: int, lengths: tuple[int, ...]) -> TokenFeatures:
    """Segments of so many tokens, all alike."""
    tokens_TD = np.random.default_rng(0).standard_normal((lengths[0], dim), dtype=np.float32)
    return TokenFeatures.of([tokens_TD] * len(lengths))


def moments(tokens: TokenFeatures) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of all tokens (D,), widened one segment at a time."""
    count = int(tokens.lengths.sum())
    mean_D = sum(tokens_TD.sum(axis=0, dtype=np.float64) for tokens_TD in tokens) / count
    square_D = sum(np.square(tokens_TD - mean_D).sum(axis=0) for tokens_TD in tokens) / count
    return torch.from_numpy(mean_D).float(), torch.from_numpy(np.sqrt(square_D)).float()
