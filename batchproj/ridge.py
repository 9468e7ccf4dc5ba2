"""Ridge regression in closed form: the baseline that training has to beat, and where it starts from.

N samples, D encoder dim, K dim of the space.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from batchproj.project.linear import Config, LinearProjector
from batchproj.projector import divisor

PENALTIES: tuple[float, ...] = tuple(np.geomspace(10, 1e5, 9).tolist())
"""Worth trying; of standardised features."""


class Moments:
    """What a linear regression needs to know of samples: sums and products, however many there are of them."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        self.count = 0
        self._sum_D, self._sum_K = torch.zeros(in_dim, dtype=torch.float64), torch.zeros(out_dim, dtype=torch.float64)
        self._product_DD = torch.zeros(in_dim, in_dim, dtype=torch.float64)
        self._product_DK = torch.zeros(in_dim, out_dim, dtype=torch.float64)

    @staticmethod
    def of(features_ND: Tensor, targets_NK: Tensor) -> Moments:
        moments = Moments(features_ND.shape[1], targets_NK.shape[1])
        moments.add(features_ND, targets_NK)
        return moments

    def add(self, features_ND: Tensor, targets_NK: Tensor) -> None:
        """Count in some more samples."""
        features_ND, targets_NK = features_ND.double(), targets_NK.double()
        self.count += len(features_ND)
        self._sum_D += features_ND.sum(dim=0)
        self._sum_K += targets_NK.sum(dim=0)
        self._product_DD += features_ND.T @ features_ND
        self._product_DK += features_ND.T @ targets_NK

    @property
    def mean(self) -> Tensor:
        return self._sum_D / self.count

    @property
    def target_mean(self) -> Tensor:
        return self._sum_K / self.count

    @property
    def spread(self) -> Tensor:
        return (self._product_DD.diagonal() / self.count - self.mean**2).clamp(min=0).sqrt()

    def standardised(self) -> tuple[Tensor, Tensor]:
        """Products (D, D) and (D, K), summed over samples, of features of mean 0 and spread 1 and targets of mean 0."""
        divisor_D = divisor(self.spread)
        centred_DD = self._product_DD - self.count * torch.outer(self.mean, self.mean)
        centred_DK = self._product_DK - self.count * torch.outer(self.mean, self.target_mean)
        return centred_DD / torch.outer(divisor_D, divisor_D), centred_DK / divisor_D[:, None]


class Ridge:
    """Features (N, D) to targets (N, K); everything but the penalty is done once.

    Source: Hoerl and Kennard 1970, Ridge Regression: Biased Estimation for Nonorthogonal Problems.
    """

    def __init__(self, moments: Moments) -> None:
        self._moments = moments
        product_DD, product_DK = moments.standardised()
        self._config = Config(in_dim=product_DK.shape[0], out_dim=product_DK.shape[1])
        self._eigenvalues_D, self._eigenvectors_DD = torch.linalg.eigh(product_DD)
        self._moment_DK = self._eigenvectors_DD.T @ product_DK

    def solve(self, penalty: float) -> LinearProjector:
        weights_DK = self._eigenvectors_DD @ (self._moment_DK / (self._eigenvalues_D + penalty)[:, None])
        with torch.random.fork_rng(devices=[]), torch.no_grad():  # nothing of what is drawn stays
            projector = self._config.build()
            projector.take_moments(self._moments.mean, self._moments.spread)
            projector.map.weight.copy_(weights_DK.T)
            assert projector.map.bias is not None
            projector.map.bias.copy_(self._moments.target_mean)
        return projector.eval()
