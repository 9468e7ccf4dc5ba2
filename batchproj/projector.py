"""What all projectors share: the base class with standardisation, exact rows, and the file they are kept in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, PositiveInt
from safetensors.torch import save
from torch import Tensor

from batchproj.errors import SpaceError
from batchproj.token_features import TokenFeatures

Array = npt.NDArray[np.float32]

# Every product is of this many rows, the last one padded: a matrix product picks its blocking, and
# with it the order of its sums, by shape, so a row's bits would else depend on how many came along.
_CHUNK_ROWS = 32


class ProjectorConfig(BaseModel):
    """Fields every kind shares; each kind's `Config` adds its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    in_dim: PositiveInt
    out_dim: PositiveInt

    def build(self) -> Projector:
        """A projector with fresh weights, drawn from torch's global generator."""
        raise NotImplementedError(self.kind)


class Projector(torch.nn.Module):
    """Features (B, D) -> vectors (B, K) of unit L2 norm.

    Features are standardised first; `mean` and `scale` (D,) are part of the saved weights.
    A kind implements `head`: standardised features (B, D) -> (B, K), of any length. Tokens reach
    such a kind pooled; `token_projector` has the base of the kinds that take them as they are.
    """

    mean: Tensor
    scale: Tensor
    head: Callable[..., Tensor]

    def __init__(self, config: ProjectorConfig) -> None:
        super().__init__()
        self.config = config
        self._chunk_rows_at: dict[tuple[torch.device, int], int] = {}  # and number of threads
        self.register_buffer("mean", torch.zeros(config.in_dim))
        self.register_buffer("scale", torch.ones(config.in_dim))

    def forward(self, *features: Tensor) -> Tensor:
        return torch.nn.functional.normalize(self.head(self.standardise(*features)), dim=-1)

    @property
    def has_linear_path(self) -> bool:
        """Whether `blend` can be called: a linear map can be added and the sum is of this kind."""
        return False

    def blend(self, own: float, weight_KD: Tensor, bias_K: Tensor) -> None:
        """Make what `head` gives `own` times what it was, plus a linear map of the same input."""
        raise NotImplementedError(self.config.kind)

    @property
    def device(self) -> torch.device:
        return self.mean.device

    def standardise(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.scale

    def standardise_to(self, features: npt.ArrayLike | TokenFeatures) -> None:
        """Take mean and spread of these features (N, D) as those of all input from now on."""
        features_ND = torch.tensor(self._pooled(features))
        self.take_moments(features_ND.mean(dim=0), features_ND.std(dim=0, correction=0))

    def take_moments(self, mean_D: Tensor, spread_D: Tensor) -> None:
        """Standardise by these from now on."""
        self.mean.copy_(mean_D)
        self.scale.copy_(divisor(spread_D))

    @torch.inference_mode()
    def project(self, features: npt.ArrayLike | TokenFeatures) -> Array:
        """Map features (N, D) float16 or float32 to vectors (N, K) float32 of unit L2 norm.

        A row's bits depend on that row alone, not on the others or their number (at one thread
        count, on one machine). Tokens are pooled to their mean, or to mean and standard deviation
        for a projector trained on twice their dims (`pooling: mean_std`). Raises SpaceError if D is
        not what the projector was trained on.
        """
        pooled_ND = self._pooled(features)
        self.eval()
        vectors = np.empty((len(pooled_ND), self.config.out_dim), dtype=np.float32)
        chunk_BD = torch.zeros(self._chunk_rows(), self.config.in_dim, device=self.device)
        for start in range(0, len(pooled_ND), len(chunk_BD)):
            rows = pooled_ND[start : start + len(chunk_BD)]
            chunk_BD[: len(rows)] = torch.tensor(rows)
            vectors[start : start + len(rows)] = self(chunk_BD)[: len(rows)].cpu().numpy()
        return vectors

    def _pooled(self, features: npt.ArrayLike | TokenFeatures) -> Array:
        if isinstance(features, TokenFeatures):
            features = features.mean_std() if self.config.in_dim == 2 * features.dim else features.mean()
        pooled_ND = np.asarray(features, dtype=np.float32)
        if pooled_ND.ndim != 2 or pooled_ND.shape[1] != self.config.in_dim:
            raise SpaceError(
                f"features of shape {pooled_ND.shape} do not fit a projector trained on {self.config.in_dim} "
                f"dims: expected (rows, {self.config.in_dim}); train a projector for this encoder"
            )
        return pooled_ND

    def _chunk_rows(self) -> int:
        """_CHUNK_ROWS if a row's place in a chunk does not show in its bits either, else 1.

        It does show where BLAS treats edge rows differently, found with fewer than 16 outputs.
        """
        where = (self.device, torch.get_num_threads())
        if where not in self._chunk_rows_at:
            probe_D = torch.randn(self.config.in_dim, generator=torch.Generator().manual_seed(0))
            vectors_BK = self(probe_D.to(self.device).repeat(_CHUNK_ROWS, 1))
            place_shows = bool((vectors_BK != vectors_BK[0]).any())
            self._chunk_rows_at[where] = 1 if place_shows else _CHUNK_ROWS
        return self._chunk_rows_at[where]

    def to_bytes(self) -> bytes:
        """Weights and config as the content of one safetensors file."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        data: bytes = save(tensors, metadata={"config": self.config.model_dump_json()})
        return data

    def save(self, path: Path) -> None:
        """Write `to_bytes` to a file."""
        path.write_bytes(self.to_bytes())


def divisor(spread_D: Tensor) -> Tensor:
    """A spread to divide by: a feature that never varies says nothing, 1 keeps it at 0 instead of blowing it up."""
    return torch.where(spread_D > 1e-6, spread_D, torch.ones_like(spread_D))
