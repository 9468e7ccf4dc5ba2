"""Weights laid out beforehand: the same bits, of what computes in bf16 alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from batchproj.prepacked_linear import PrepackedLinear, prepack

gains = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512",
    reason="this CPU lays nothing out",
)


def network(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(1_536, 384, bias=False), nn.LayerNorm(384))
    return nn.Sequential(nn.Linear(384, 1_536), nn.GELU(), inner).to(dtype)


@gains
@pytest.mark.parametrize("rows", [1, 3, 16, 256, 512, 700])
def test_bits_are_those_of_the_layers_replaced(rows: int) -> None:
    plain, packed = network(torch.bfloat16), network(torch.bfloat16)
    assert prepack(packed) == 2
    states = torch.randn(1, rows, 384, dtype=torch.bfloat16)
    with torch.inference_mode():
        assert torch.equal(packed(states), plain(states))


@gains
def test_no_weights_are_kept_twice() -> None:
    packed = network(torch.bfloat16)
    prepack(packed)
    layers = [part for part in packed.modules() if isinstance(part, PrepackedLinear)]
    assert [[name for name, _ in layer.named_parameters()] for layer in layers] == [["bias"], []]


@gains
def test_weights_can_still_be_looked_at() -> None:
    plain, packed = network(torch.bfloat16), network(torch.bfloat16)
    prepack(packed)
    assert torch.equal(packed[0].weight, plain[0].weight)  # type: ignore[index]


@gains
def test_what_does_not_compute_in_bf16_stays() -> None:
    assert prepack(network(torch.float32)) == 0


@gains
def test_what_does_more_than_a_linear_layer_stays() -> None:
    class Own(nn.Linear):
        pass

    assert prepack(nn.Sequential(Own(8, 8), nn.Bilinear(8, 8, 8)).bfloat16()) == 0
