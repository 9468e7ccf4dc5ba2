"""Both losses on batches whose loss can be worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from batchproj import losses

AXES = torch.eye(6)


@pytest.mark.parametrize("name", ["info_nce", "sigmoid"])
def test_what_is_right_is_no_negative(name: losses.Name) -> None:
    """Items 0 and 1 are of one group with captions 0 and 1: each between its two captions is the best place."""
    contrast = losses.build(name, 0.05)
    if isinstance(contrast, losses.Sigmoid):
        contrast.threshold.data.fill_(0.4)
    right = torch.eye(6, dtype=torch.bool)
    right[:2, :2] = True
    between = torch.nn.functional.normalize(AXES[0] + AXES[1], dim=0)
    items = torch.cat([between.expand(2, -1), AXES[2:]])
    own = torch.arange(6)
    together = contrast(items, AXES, own, right)
    apart = contrast(items, AXES, own, torch.eye(6, dtype=torch.bool))
    assert together < apart
    if name == "info_nce":
        assert together < 1e-4


def test_sigmoid_is_the_sum_over_candidates() -> None:
    contrast = losses.Sigmoid(0.1)
    with torch.no_grad():
        contrast.threshold.fill_(0.4)
    items, candidates = AXES[:1], AXES[:3]
    found = contrast(items, candidates, torch.tensor([0]), torch.tensor([[True, False, False]]))
    expected = math.log1p(math.exp(-(10 - 4))) + 2 * math.log1p(math.exp(-4))
    assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("name", "learned"), [("info_nce", {"log_scale"}), ("sigmoid", {"log_scale", "threshold"})])
def test_temperature_and_threshold_are_learned(name: losses.Name, learned: set[str]) -> None:
    contrast = losses.build(name, 0.05)
    assert {each for each, _ in contrast.named_parameters()} == learned
    contrast(AXES, AXES, torch.arange(6), torch.eye(6, dtype=torch.bool)).backward()
    assert all(each.grad is not None for each in contrast.parameters())
    assert contrast.temperature == pytest.approx(0.05)
    with torch.no_grad():
        contrast.log_scale.fill_(99.0)
    assert contrast.temperature == pytest.approx(0.01)  # as CLIP clips it
