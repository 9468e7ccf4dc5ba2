"""Convolutions whose bf16 is noise on this CPU are done in fp32, and no others."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from batchproj import grouped_convolutions
from batchproj.grouped_convolutions import keep_right

SHAPES = [(nn.Conv1d, 32, 4, 16), (nn.Conv1d, 32, 8, 128), (nn.Conv2d, 64, 8, 8), (nn.Conv1d, 64, 64, 3)]
"""The first three are wrong in torch 2.14.1 on a CPU with AMX, the last is right everywhere."""


@pytest.mark.parametrize(("kind", "channels", "groups", "kernel"), SHAPES)
@torch.inference_mode()
def test_in_bf16_it_is_near_fp32_here(kind: type[nn.Conv1d], channels: int, groups: int, kernel: int) -> None:
    torch.manual_seed(0)
    exact = kind(channels, channels, kernel, groups=groups, padding=kernel // 2).eval()
    half = kind(channels, channels, kernel, groups=groups, padding=kernel // 2).eval()
    half.load_state_dict(exact.state_dict())
    network = nn.Sequential(half.bfloat16(), nn.ReLU())
    keep_right(network)
    signal = torch.randn(2, channels, *[160 if kind is nn.Conv1d else 20] * len(exact.kernel_size))
    expected, found = torch.relu(exact(signal)), network(signal.bfloat16())
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).norm() < 0.01 * expected.norm()


@torch.inference_mode()
def test_only_what_is_wrong_is_kept_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """On whatever CPU: those that the check finds wrong."""
    monkeypatch.setattr(grouped_convolutions, "_is_right", lambda part: part.kernel_size == (3,))
    network = nn.Sequential(nn.Conv1d(8, 8, 3, groups=2), nn.Conv1d(8, 8, 5, groups=2), nn.Conv1d(8, 8, 5)).bfloat16()
    plain = nn.Sequential(*network)(torch.ones(1, 8, 20, dtype=torch.bfloat16))
    assert keep_right(network) == 1
    assert [part.weight.dtype for part in network] == [torch.bfloat16, torch.float32, torch.bfloat16]
    found = network(torch.ones(1, 8, 20, dtype=torch.bfloat16))
    assert found.dtype == torch.bfloat16
    assert (found - plain).float().norm() < 0.02 * plain.float().norm()
