"""Linear layers whose weights lie as a CPU's matrix products want them, once and for all.

oneDNN otherwise lays bf16 weights out anew for every product: a quarter of its time at 512 rows of width 384 (AMX,
measured), for the same bits. Products in fp32 are made by MKL, which is not at its best on AMD's CPUs: there oneDNN
made short texts 1.06 to 1.13 times as fast in three runs (AVX2; `benchmarks/techniques.py prepacked`), for bits of its
own. The operators are those that torch's own compiler has for weights that are frozen.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import nn

from batchproj.recorded_steps import branching


class PrepackedLinear(nn.Module):
    """(…, in) -> (…, out) as the `nn.Linear` that it was made of, whose weights it does not keep."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.packed: torch.Tensor
        self.register_buffer("packed", torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach()))
        self.bias = linear.bias

    @property
    def weight(self) -> torch.Tensor:
        """Unpacked for each look."""
        return self.packed.to_dense()

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return _product(states, self.packed, self.bias)


@branching
def _product(states: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(states, packed, bias, "none", [], "")  # type: ignore[no-any-return]


def gains(dtype: torch.dtype) -> bool:
    """Whether weights of this dtype are laid out beforehand here; in fp32 on AMD's CPUs alone."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if dtype == torch.bfloat16:
        return torch.backends.cpu.get_cpu_capability() == "AVX512"
    return dtype == torch.float32 and _is_amd()


@cache
def _is_amd() -> bool:
    told = Path("/proc/cpuinfo")
    return told.is_file() and "AuthenticAMD" in told.read_text()


def prepack(network: nn.Module) -> int:
    """Replace the linear layers of a network on a CPU, where it gains by it; their number.

    For networks that only call these layers: those that look at `weight` (T5, WavLM, BEiT) have it unpacked each time.
    """
    found = 0
    for name, part in network.named_children():
        if type(part) is not nn.Linear:
            found += prepack(part)
        elif part.weight.device.type == "cpu" and gains(part.weight.dtype):
            setattr(network, name, PrepackedLinear(part))
            found += 1
    return found
