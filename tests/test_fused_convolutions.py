"""Convolutions with their activation and padding in one pass: what they give, recorded or not, and which they are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from timm.layers import Conv2dSame
from timm.models.efficientnet import EfficientNet
from torch import nn

from batchproj import fused_convolutions
from batchproj.encode.vision import _prepare
from batchproj.fused_convolutions import FusedConvolution, fuse, gains
from batchproj.recorded_steps import _played, _traced

DTYPES = [
    pytest.param(dtype, marks=pytest.mark.skipif(not gains(dtype), reason="this CPU does not fuse them"))
    for dtype in (torch.float32, torch.bfloat16)
]

CLOSE = {torch.float32: 1e-5, torch.bfloat16: 0.008}
"""Relative; bf16 has eight bits."""


def noise(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    return drawn.contiguous(memory_format=torch.channels_last)


def enlivened(convolution: nn.Conv2d, dtype: torch.dtype) -> nn.Conv2d:
    torch.manual_seed(1)
    nn.init.normal_(convolution.weight, std=convolution.weight[0].numel() ** -0.5)
    if convolution.bias is not None:
        nn.init.normal_(convolution.bias)
    return convolution.to(dtype).eval().requires_grad_(requires_grad=False)


def assert_same(convolution: nn.Conv2d, activation: nn.Module, pixels: torch.Tensor) -> None:
    fused = FusedConvolution(convolution, activation)
    with torch.inference_mode():
        expected, found = activation(convolution(pixels)), fused(pixels)
        record = _traced(fused, (pixels,))
        assert torch.equal(_played(record, (pixels,)), found)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=CLOSE[pixels.dtype], atol=CLOSE[pixels.dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", [nn.Identity(), nn.ReLU(), nn.ReLU6(), nn.SiLU()])
def test_activations_are_what_they_are_alone(activation: nn.Module, dtype: torch.dtype) -> None:
    pixels = noise(2, 16, 14, 14, dtype=dtype) * 4  # some beyond what ReLU6 lets through
    assert_same(enlivened(nn.Conv2d(16, 24, 1), dtype), activation, pixels)
    assert_same(enlivened(nn.Conv2d(16, 16, 5, padding=2, groups=16, bias=False), dtype), activation, pixels)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("side", [(14, 14), (15, 15), (14, 15), (7, 9)])
@pytest.mark.parametrize("kernel", [2, 3, 5])
def test_padding_is_tensorflows(kernel: int, side: tuple[int, int], dtype: torch.dtype) -> None:
    pixels = noise(2, 24, *side, dtype=dtype)
    for dilation in (1, 2):
        for out, groups in ((24, 24), (96, 1)):
            convolution = Conv2dSame(24, out, kernel, stride=2, groups=groups, dilation=dilation)
            assert_same(enlivened(convolution, dtype), nn.ReLU6(), pixels)


@pytest.mark.parametrize("computed_in", DTYPES)
@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "efficientnet_b0", "tf_mobilenetv3_small_075"])
def test_a_network_gives_the_same_with_all_its_convolutions_fused(
    name: str, computed_in: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made() -> nn.Module:
        torch.manual_seed(0)
        network = timm.create_model(name, pretrained=False, num_classes=0).eval().requires_grad_(requires_grad=False)
        return network.to(memory_format=torch.channels_last)

    pixels = noise(2, 3, 96, 96, dtype=torch.float32)
    network, plain = made(), made()
    dtype = _prepare(network, computed_in)
    monkeypatch.setattr(fused_convolutions, "gains", lambda _dtype: False)
    assert _prepare(plain, computed_in) is dtype
    with torch.inference_mode():
        found, expected = (each(pixels.to(dtype)).float() for each in (network, plain))
    assert torch.nn.functional.cosine_similarity(found, expected).min() > 0.9999
    fused = {name for name, part in network.named_modules() if isinstance(part, FusedConvolution)}
    followed = {name for name, part in plain.named_modules() if isinstance(part, nn.Conv2d)}
    followed -= {name for name in followed if name.endswith("conv_expand")}  # by a sigmoid
    assert fused == (followed if type(network) is EfficientNet else set())


@pytest.mark.parametrize(
    "parts",
    [
        lambda: [nn.Conv2d(4, 4, 1), nn.GELU()],
        lambda: [nn.Conv2d(4, 4, 3, padding="same"), nn.ReLU()],
        lambda: [nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), nn.ReLU()],
        lambda: [nn.Conv2d(4, 4, 1, dtype=torch.float64), nn.ReLU()],
        lambda: [nn.Conv2d(4, 4, 1, device="meta"), nn.ReLU()],
        lambda: [nn.Conv2d(4, 4, 1), hooked(nn.ReLU())],
        lambda: [hooked(nn.Conv2d(4, 4, 1)), nn.ReLU()],
        lambda: [pool := nn.AvgPool2d(1), nn.Conv2d(4, 4, 1), pool, nn.ReLU()],
    ],
    ids=["activation", "padding by name", "reflecting", "fp64", "elsewhere", "hook", "hook before", "between"],
)
def test_of_which_more_is_wanted_stays(parts: Callable[[], list[nn.Module]]) -> None:
    made = parts()
    network = nn.Sequential(*made)
    fuse(network)
    assert list(network) == made


def hooked(part: nn.Module) -> nn.Module:
    part.register_forward_hook(lambda _part, _inputs, output: output)
    return part
