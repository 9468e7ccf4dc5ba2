"""Weights laid out beforehand: the same bits in bf16, close ones in fp32."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from batchproj import prepacked_linear
from batchproj.prepacked_linear import PrepackedLinear, gains, prepack

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN here")


@pytest.fixture(params=[torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """Of weights that are laid out, whether this CPU gains by it or not."""
    wanted: torch.dtype = request.param
    if wanted == torch.bfloat16 and torch.backends.cpu.get_cpu_capability() != "AVX512":
        pytest.skip("oneDNN has no products in bf16 here")
    monkeypatch.setattr(prepacked_linear, "gains", lambda dtype: dtype == wanted)
    return wanted


def network(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(1_536, 384, bias=False), nn.LayerNorm(384))
    return nn.Sequential(nn.Linear(384, 1_536), nn.GELU(), inner).to(dtype)


@pytest.mark.parametrize("rows", [1, 3, 16, 256, 512, 700])
def test_states_are_those_of_the_layers_replaced(rows: int, dtype: torch.dtype) -> None:
    plain, packed = network(dtype), network(dtype)
    assert prepack(packed) == 2
    states = torch.randn(1, rows, 384, dtype=dtype)
    with torch.inference_mode():
        found, expected = packed(states), plain(states)
    # in bf16 both are oneDNN's; in fp32 the layers are MKL's, which adds in another order
    torch.testing.assert_close(found, expected, rtol=0, atol=0 if dtype == torch.bfloat16 else 1e-5)


def test_no_weights_are_kept_twice(dtype: torch.dtype) -> None:
    packed = network(dtype)
    prepack(packed)
    layers = [part for part in packed.modules() if isinstance(part, PrepackedLinear)]
    assert [[name for name, _ in layer.named_parameters()] for layer in layers] == [["bias"], []]


def test_weights_can_still_be_looked_at(dtype: torch.dtype) -> None:
    plain, packed = network(dtype), network(dtype)
    prepack(packed)
    assert torch.equal(packed[0].weight, plain[0].weight)  # type: ignore[index]


def test_where_nothing_is_gained_layers_stay() -> None:
    assert prepack(network(torch.float64)) == 0
    assert (prepack(network(torch.float32)) == 2) is gains(torch.float32)


def test_what_does_more_than_a_linear_layer_stays(dtype: torch.dtype) -> None:
    class Own(nn.Linear):
        pass

    assert prepack(nn.Sequential(Own(8, 8), nn.Bilinear(8, 8, 8)).to(dtype)) == 0
