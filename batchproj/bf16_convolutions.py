"""Convolutions that torch gets wrong in bf16 on this CPU are done in fp32."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import nn

FAR = 0.1
"""Relative error: bf16 alone makes 0.003 of it, the noise that is meant here 1."""

NARROW = range(2, 33)
"""Input channels of a group of those that are tried: with one, or with more, none was found wrong; many take long."""

_COMPUTE: tuple[Any, ...] = (torch.conv1d, torch.conv2d, torch.conv3d)
_PLACES = {1: 64, 2: 16, 3: 4}
"""Outputs along each side of what they are tried on, by sides: of some only long rows are wrong."""


def keep_right(network: nn.Module) -> int:
    """Let the convolutions of a network that are wrong in bf16 compute in fp32; their number.

    torch 2.14.1 (oneDNN) on CPUs with AMX makes noise of some whose groups have few input channels: timm's
    `visformer_tiny` (random weights) has a cosine of 0.67 to its fp32 without this, of 0.99 with it or without oneDNN.
    Each kind is tried once, on noise: of 277 wrong ones drawn at random 270 were found, the others are wrong at some
    lengths alone.
    """
    wrong = [part for part in network.modules() if _is_suspect(part) and not _is_right(*_how(part))]
    for part in wrong:
        part.float()
        part.register_forward_pre_hook(_widened, with_kwargs=True)
        part.register_forward_hook(lambda _part, _inputs, output: output.bfloat16())
    return len(wrong)


def _widened(
    _part: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return tuple(each.float() for each in inputs), {name: each.float() for name, each in named.items()}


def _is_suspect(part: nn.Module) -> bool:
    if not isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return False
    is_here = part.weight.dtype == torch.bfloat16 and part.weight.device.type == "cpu"
    return is_here and part.weight.shape[1] in NARROW and part.weight[0, 0].numel() > 1


def _how(part: Any) -> tuple[tuple[int, ...], Any, Any, Any, int]:
    return tuple(part.weight.shape), part.stride, part.padding, part.dilation, part.groups


@cache
def _is_right(shape: tuple[int, ...], stride: Any, padding: Any, dilation: Any, groups: int) -> bool:
    drawn = torch.Generator().manual_seed(0)
    sides, kernel = len(shape) - 2, shape[2:]
    size = [d * (k - 1) + 1 + s * (_PLACES[sides] - 1) for k, d, s in zip(kernel, dilation, stride, strict=True)]
    signal = torch.randn(1, shape[1] * groups, *size, generator=drawn)
    weight = torch.randn(shape, generator=drawn) / math.sqrt(math.prod(shape[1:]))
    compute = _COMPUTE[sides - 1]
    how = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    with torch.inference_mode():
        exact, found = compute(signal, weight, **how), compute(signal.bfloat16(), weight.bfloat16(), **how).float()
    return bool((exact - found).norm() < FAR * exact.norm())
