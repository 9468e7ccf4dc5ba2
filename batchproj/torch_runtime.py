"""How torch runs: the one place that picks threads, number format and batch sizes; `accelerator` picks the device."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Hashable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch

from batchproj.accelerator import Coming, device, is_apart, stacked, waiting_for_copies
from batchproj.bf16_convolutions import keep_right
from batchproj.errors import SpaceError
from batchproj.fixed_shapes import FixedShapes, Output, Outputs
from batchproj.lanes import open_lanes
from batchproj.media import Segment
from batchproj.model_folder import ImageInput
from batchproj.queued_batches import QueuedBatches
from batchproj.tokens import padded_length

Dtype = Literal["bf16", "fp32"]
_STEP = 16
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}

Row = TypeVar("Row")
Forward = Callable[[Sequence[Row]], Outputs | Coming]
"""Rows of one shape -> one float32 array each."""


class Batches(Protocol[Row]):
    """`FixedShapes` on CPUs, `QueuedBatches` on an accelerator."""

    def run(self, rows: Sequence[Row], key: Callable[[Row], Hashable], full: Callable[[Row], int]) -> list[Output]: ...


def use_threads(threads: int) -> None:
    """Bind torch (and the tokenizer's own pool) to `threads`; Ray would give an actor one."""
    open_lanes(1 if is_apart() else threads)
    torch.set_num_threads(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"


def torch_dtype(dtype: Dtype) -> torch.dtype:
    """What a config's `dtype` is computed in here: bf16 in fp32 on CPUs that only emulate it, which takes several times
    as long and gives more error."""
    return torch.float32 if not is_apart() and is_slow_in_bf16() else _DTYPES[dtype]


@cache
def is_slow_in_bf16() -> bool:
    """Whether this CPU has no instructions for products of bf16, or torch no use for them."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return True
    if platform.machine() in ("x86_64", "AMD64"):  # where oneDNN counts emulation by AVX-512 as well
        return not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def forward_tokens(hidden: int) -> int:
    """Tokens in a full forward batch of a transformer `hidden` wide.

    On CPU few, as they are also what a last, short batch costs: of 128, 256 and 512 at width 384
    the second took least time over short texts, and 1.05 times the third's over long ones (measured).
    """
    return 16_384 if is_apart() else max(64, 256 * 384 // hidden)


def packed_tokens(hidden: int) -> int:
    """Tokens in a row of packed texts; on CPU 512 at width 384 are 1.1 times as fast as 256 or 1,024 (measured)."""
    return max(256, 512 * 384 // hidden)


def forward_images() -> int:
    """Images in a full forward batch; on CPU 8 stay in the cache and are the fastest (measured)."""
    return 64 if is_apart() else 8


def forward_frames() -> int:
    """Mel frames (10 ms) in a full forward batch; on CPU more than these leave the cache and get slower (measured)."""
    return 48_000 if is_apart() else 800


def batches(forward: Forward[Row], dtype: torch.dtype) -> Batches[Row]:
    """What runs `forward` here, in this number format."""
    if is_apart():
        return QueuedBatches(forward)
    here = cast("Callable[[Sequence[Row]], Outputs]", forward)  # on a CPU nothing is on its way
    return FixedShapes(here, "filled until proven" if dtype == torch.float32 else "filled")


def row_length(tokens: int) -> int:
    """What a text of so many tokens is padded to: on an accelerator few lengths fill their batches, on a CPU many
    waste little. Always with one place left where it is not the exact length, see `padded_length`."""
    return (tokens // _STEP + 1) * _STEP if is_apart() else padded_length(tokens)


def load_pretrained(loader: Any, folder: Path, dtype: Dtype, unused: Sequence[str] = (), config: Any = None) -> Any:
    """A transformers model from safetensors, in eval mode on `device()`; `config` replaces the folder's.

    Parameters that the file lacks would be random: SpaceError, unless their name starts with one
    of `unused`, the parts that no feature passes through.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    options = {"config": config, "local_files_only": True, "trust_remote_code": False, "use_safetensors": True}
    try:
        model, report = loader.from_pretrained(folder, dtype=torch_dtype(dtype), output_loading_info=True, **options)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise SpaceError(f"the model in {folder} does not load: {reason}") from error
    lacking = sorted(key for key in report["missing_keys"] if not key.startswith(tuple(unused)))
    if lacking:
        raise SpaceError(
            f"the weights in {folder} lack {len(lacking)} parameters of {type(model).__name__}, "
            f"'{lacking[0]}' first: they would be random; use a complete checkpoint of this kind"
        )
    with waiting_for_copies:
        network = model.to(device()).eval()
    keep_right(network)
    return network


def pixel_batch(segments: Sequence[Segment], wanted: ImageInput) -> torch.Tensor:
    """Images (H, W, 3) uint8 -> (B, H, W, 3) uint8 on the device, a quarter of what they are once normalised."""
    arrays = [np.asarray(segment.data) for segment in segments]
    expected = (wanted.spec.height, wanted.spec.width, 3)
    for array in arrays:
        if array.shape != expected or array.dtype != np.uint8:
            raise SpaceError(
                f"an image is {array.shape} {array.dtype}, this encoder takes {expected} uint8: "
                "decode with the encoder's own spec"
            )
    return stacked(arrays)


class Normalising:
    """uint8 (B, H, W, 3) -> (B, 3, H, W) of `dtype`, normalised in fp32, channels last."""

    def __init__(self, wanted: ImageInput, dtype: torch.dtype) -> None:
        mean, std = (torch.tensor(triple, dtype=torch.float64) for triple in (wanted.mean, wanted.std))
        # for a whole row of pixels: of three numbers at a time torch makes hardly more than one
        self._factor, self._shift = (
            each.float().repeat(wanted.spec.width).to(device()) for each in (wanted.scale / std, -mean / std)
        )
        self._dtype = dtype

    def __call__(self, pixels_BHWC: torch.Tensor) -> torch.Tensor:
        rows_BHR = torch.addcmul(self._shift, pixels_BHWC.flatten(2).float(), self._factor)
        return rows_BHR.view(pixels_BHWC.shape).to(self._dtype).permute(0, 3, 1, 2)


def to_numpy(output: torch.Tensor) -> npt.NDArray[np.float32]:
    """Back on the host as float32."""
    return output.float().cpu().numpy()


def to_host(output: torch.Tensor) -> npt.NDArray[np.float32] | Coming:
    """The same, not waited for where it takes time."""
    return Coming(output) if is_apart() else to_numpy(output)
