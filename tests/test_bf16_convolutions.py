"""Convolutions whose bf16 is noise on this CPU are done in fp32, and no others."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from batchproj import bf16_convolutions
from batchproj.bf16_convolutions import keep_right

WRONG = [
    (nn.Conv1d, 32, 32, 16, {"groups": 4}),
    (nn.Conv1d, 32, 32, 16, {"groups": 4, "stride": 4}),
    (nn.Conv1d, 32, 32, 128, {"groups": 8, "padding": 64}),
    (nn.Conv2d, 16, 96, 4, {"stride": 4}),  # visformer_tiny's
    (nn.Conv2d, 64, 64, 8, {"groups": 8, "padding": 4}),
    (nn.Conv3d, 16, 64, 4, {"stride": 4}),
]
"""In torch 2.14.1 on a CPU with AMX; elsewhere these are right, and this shows no more than that."""


@pytest.mark.parametrize(("kind", "inputs", "outputs", "kernel", "how"), WRONG)
@torch.inference_mode()
def test_here_it_is_near_fp32(
    kind: type[nn.Conv1d], inputs: int, outputs: int, kernel: int, how: dict[str, int]
) -> None:
    torch.manual_seed(0)
    exact = kind(inputs, outputs, kernel, **how).eval()
    half = kind(inputs, outputs, kernel, **how).eval()
    half.load_state_dict(exact.state_dict())
    network = nn.Sequential(half.bfloat16(), nn.ReLU())
    keep_right(network)
    signal = torch.randn(2, inputs, *([200], [40, 40], [16, 16, 16])[len(exact.kernel_size) - 1])
    expected, found = torch.relu(exact(signal)), network(signal.bfloat16())
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).norm() < 0.01 * expected.norm()


def test_what_is_right_stays_in_bf16() -> None:
    """The same on every CPU: a stem, a depthwise one and one by one."""
    network = nn.Sequential(
        nn.Conv2d(3, 32, 3, 2, 1), nn.Conv2d(32, 32, 3, padding="same", groups=32), nn.Conv2d(32, 8, 1)
    ).bfloat16()
    assert keep_right(network) == 0
    assert {part.weight.dtype for part in network} == {torch.bfloat16}


@torch.inference_mode()
def test_only_what_is_wrong_is_kept_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """On whatever CPU: those that the check finds wrong."""
    monkeypatch.setattr(bf16_convolutions, "_is_right", lambda shape, *_: shape[2:] == (3,))
    network = nn.Sequential(nn.Conv1d(8, 8, 3, groups=2), nn.Conv1d(8, 8, 5), nn.Conv1d(8, 8, 1)).bfloat16()
    plain = nn.Sequential(*network)(torch.ones(1, 8, 20, dtype=torch.bfloat16))
    assert keep_right(network) == 1
    assert [part.weight.dtype for part in network] == [torch.bfloat16, torch.float32, torch.bfloat16]
    found = network(torch.ones(1, 8, 20, dtype=torch.bfloat16))
    assert found.dtype == torch.bfloat16
    assert (found - plain).float().norm() < 0.02 * plain.float().norm()
    assert network[1](input=torch.ones(1, 8, 20, dtype=torch.bfloat16)).dtype == torch.bfloat16
