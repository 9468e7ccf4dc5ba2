"""Convolutions in groups that torch gets wrong in bf16 on this CPU are done in fp32."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

FAR = 0.1
"""Relative error: bf16 alone makes 0.003 of it, the noise that is meant here 1."""


def keep_right(network: nn.Module) -> int:
    """Let the convolutions of a network that are wrong in bf16 compute in fp32; their number.

    Found in torch 2.14.1 (oneDNN) on CPUs with AMX: groups of 4 to 12 channels with kernels of 8, 16, 32 or 128 give
    noise. No published model that was looked at has such groups; one that has would be embedded as noise, silently.
    """
    wrong = [part for part in network.modules() if _in_bf16_groups(part) and not _is_right(part)]
    for part in wrong:
        part.float()
        part.register_forward_pre_hook(lambda _part, inputs: tuple(each.float() for each in inputs))
        part.register_forward_hook(lambda _part, _inputs, output: output.bfloat16())
    return len(wrong)


def _in_bf16_groups(part: nn.Module) -> bool:
    is_convolution = isinstance(part, nn.Conv1d | nn.Conv2d) and part.groups > 1
    return is_convolution and part.weight.dtype == torch.bfloat16 and part.weight.device.type == "cpu"


def _is_right(part: Any) -> bool:
    drawn = torch.Generator().manual_seed(0)
    size = [dilation * (kernel - 1) + 8 for kernel, dilation in zip(part.kernel_size, part.dilation, strict=True)]
    signal = torch.randn(1, part.in_channels, *size, generator=drawn)
    weight = torch.randn(part.weight.shape, generator=drawn) / math.sqrt(part.weight[0].numel())
    compute = torch.conv1d if isinstance(part, nn.Conv1d) else torch.conv2d
    how = {"stride": part.stride, "dilation": part.dilation, "groups": part.groups}
    with torch.inference_mode():
        exact, found = compute(signal, weight, **how), compute(signal.bfloat16(), weight.bfloat16(), **how).float()
    return bool((exact - found).norm() < FAR * exact.norm())
