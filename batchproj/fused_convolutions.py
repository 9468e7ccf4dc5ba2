"""Convolutions that apply the activation after them, and take TensorFlow's padding before them, as they go.

By itself torch writes what a convolution gives, and reads and writes it again for the activation; and it copies what
is to be padded on one side more than on the other. Without that EfficientNet-lite0 is 1.8 times as fast in bf16 with
AMX, 1.4 times in fp32 with AVX2 (`benchmarks/techniques.py fused-image`). The operators are those that torch's own
compiler has for CPUs.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TypeGuard

import torch
from torch import nn

from batchproj.recorded_steps import branching

_ACTIVATIONS: dict[type[nn.Module], tuple[str, list[int | float | complex | None]]] = {
    nn.Identity: ("none", []),
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.SiLU: ("swish", []),
}
"""oneDNN's names and their numbers."""


class FusedConvolution(nn.Module):
    """(B, C, H, W) -> (B, D, H', W') of the dtype of the `nn.Conv2d` that it was made of, its activation included.

    Of timm's `Conv2dSame`, which pads as TensorFlow does: at the right and below by one more than at the left and above
    where what is lacking is odd. That is an equal padding for a kernel with one more row and column of zeros before it.
    """

    def __init__(self, convolution: nn.Conv2d, activation: nn.Module) -> None:
        super().__init__()
        self._activation, self._scalars = _ACTIVATIONS[type(activation)]
        self._kernel = [int(side) for side in convolution.weight.shape[2:]]
        self._stride, self._dilation = list(convolution.stride), list(convolution.dilation)
        self._groups, self._is_same = convolution.groups, _is_same(convolution)
        self._padding = [int(side) for side in convolution.padding]
        # not laid out beforehand for oneDNN: tried by hand, one of 1,152 channels to 192 was then 60 times as slow
        self.weight, self.bias = convolution.weight, convolution.bias
        self.wider: torch.Tensor
        if self._is_same:
            wider = nn.functional.pad(convolution.weight.detach(), [1, 0, 1, 0])
            self.register_buffer("wider", wider.contiguous(memory_format=torch.channels_last))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        if not self._is_same:
            return self._computed(pixels, self.weight, self._padding)
        before, after = zip(*map(self._around, (0, 1), pixels.shape[2:]), strict=True)
        if before == after:
            return self._computed(pixels, self.weight, list(after))
        if self._dilation == [1, 1] and all(one + 1 == other for one, other in zip(before, after, strict=True)):
            return self._computed(pixels, self.wider, list(after))
        padded = nn.functional.pad(pixels, [before[1], after[1], before[0], after[0]])
        return self._computed(padded, self.weight, [0, 0])

    def _around(self, axis: int, side: int) -> tuple[int, int]:
        """What is padded before and after an input's side."""
        stride, reach = self._stride[axis], self._dilation[axis] * (self._kernel[axis] - 1)
        lacking = max(0, (-(-int(side) // stride) - 1) * stride + reach + 1 - int(side))
        return lacking // 2, lacking - lacking // 2

    def _computed(self, pixels: torch.Tensor, weight: torch.Tensor, padding: list[int]) -> torch.Tensor:
        how = (padding, self._stride, self._dilation, self._groups)
        return _convolved(pixels, weight, self.bias, *how, self._activation, self._scalars)


@branching
def _convolved(
    pixels: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    padding: list[int],
    stride: list[int],
    dilation: list[int],
    groups: int,
    activation: str,
    scalars: list[int | float | complex | None],
) -> torch.Tensor:
    return torch.ops.mkldnn._convolution_pointwise(  # type: ignore[no-any-return]
        pixels, weight, bias, padding, stride, dilation, groups, activation, scalars, ""
    )


def gains(dtype: torch.dtype) -> bool:
    """Whether convolutions of this dtype are fused here: in bf16 they need AVX-512, in fp32 AVX2 was measured."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    capability = torch.backends.cpu.get_cpu_capability()
    return capability in {torch.bfloat16: ("AVX512",), torch.float32: ("AVX2", "AVX512")}.get(dtype, ())


def fuse(network: nn.Module) -> None:
    """Let each convolution of a network apply the activation that is its next sibling, where this CPU gains by it.

    For networks that call siblings in their order.
    """
    parts = [(name, part) for name, part in network._modules.items() if part is not None]  # shared ones each time
    for (name, part), (following_name, following) in pairwise(parts):
        if _is_plain(part) and type(following) in _ACTIVATIONS and not _has_hooks(following):
            setattr(network, name, FusedConvolution(part, following))
            setattr(network, following_name, nn.Identity())
    for child in network.children():
        fuse(child)


def _is_plain(part: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether it is a convolution here of which nothing else is wanted, such as fp32 in the place of bf16."""
    if type(part) is not nn.Conv2d and not _is_same(part):
        return False
    is_here = part.weight.device.type == "cpu" and gains(part.weight.dtype)
    pads_zeros = isinstance(part.padding, tuple) and part.padding_mode == "zeros"
    return is_here and pads_zeros and not _has_hooks(part)


def _has_hooks(part: nn.Module) -> bool:
    return bool(part._forward_hooks or part._forward_pre_hooks)


def _is_same(part: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether it is timm's."""
    from timm.layers import Conv2dSame

    return type(part) is Conv2dSame
