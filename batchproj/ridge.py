"""Ridge regression in closed form: the baseline that training has to beat, and where it starts from.

N samples, D encoder dim, K dim of the space.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from batchproj.project.linear import Config, LinearProjector

PENALTIES: tuple[float, ...] = tuple(np.geomspace(10, 1e5, 9).tolist())
"""Worth trying; of standardised features."""


class Ridge:
    """Features (N, D) to targets (N, K); everything but the penalty is done once.

    Source: Hoerl and Kennard 1970, Ridge Regression: Biased Estimation for Nonorthogonal Problems.
    """

    def __init__(self, features_ND: Tensor, targets_NK: Tensor) -> None:
        self._config = Config(in_dim=features_ND.shape[1], out_dim=targets_NK.shape[1])
        self._features_ND = features_ND
        projector = self._fresh()
        standard_ND = projector.standardise(features_ND).double()  # of mean 0, so the bias is the mean target
        self._mean_K = targets_NK.mean(dim=0)
        self._eigenvalues_D, self._eigenvectors_DD = torch.linalg.eigh(standard_ND.T @ standard_ND)
        self._moment_DK = self._eigenvectors_DD.T @ (standard_ND.T @ (targets_NK - self._mean_K).double())

    def solve(self, penalty: float) -> LinearProjector:
        weights_DK = self._eigenvectors_DD @ (self._moment_DK / (self._eigenvalues_D + penalty)[:, None])
        projector = self._fresh()
        with torch.no_grad():
            projector.map.weight.copy_(weights_DK.T)
            assert projector.map.bias is not None
            projector.map.bias.copy_(self._mean_K)
        return projector.eval()

    def _fresh(self) -> LinearProjector:
        with torch.random.fork_rng(devices=[]):  # nothing of what is drawn stays
            projector = self._config.build()
        projector.standardise_to(self._features_ND)
        return projector
