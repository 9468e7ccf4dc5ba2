"""Where torch runs and how: the one place that picks device, threads and number format."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from batchproj.errors import SpaceError
from batchproj.fixed_shapes import SmallBatches
from batchproj.media import Segment
from batchproj.model_folder import ImageInput

Dtype = Literal["bf16", "fp32"]
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def device() -> torch.device:
    """The accelerator if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def use_threads(threads: int) -> None:
    """Bind torch (and the tokenizer's own pool) to `threads`; Ray would give an actor one."""
    torch.set_num_threads(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"


def torch_dtype(dtype: Dtype) -> torch.dtype:
    """The torch type of a config's `dtype`."""
    return _DTYPES[dtype]


def forward_tokens(hidden: int) -> int:
    """Tokens in a full forward batch of a transformer `hidden` wide.

    On CPU few, as they are also what a last, short batch costs: of 128, 256 and 512 at width 384
    the second took least time over short texts, and 1.05 times the third's over long ones (measured).
    """
    return 16_384 if device().type == "cuda" else max(64, 256 * 384 // hidden)


def packed_tokens(hidden: int) -> int:
    """Tokens in a row of packed texts; on CPU 512 at width 384 are 1.1 times as fast as 256 or 1,024 (measured)."""
    return max(256, 512 * 384 // hidden)


def forward_images() -> int:
    """Images in a full forward batch; on CPU 8 stay in the cache and are the fastest (measured)."""
    return 64 if device().type == "cuda" else 8


def small_batches(dtype: torch.dtype) -> SmallBatches:
    """How `FixedShapes` may run a batch that is not full, here and in this number format."""
    if device().type == "cuda":
        return "as they come"
    return "filled until proven" if dtype == torch.float32 else "filled"


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
    return model.to(device()).eval()


def pixel_batch(segments: Sequence[Segment], wanted: ImageInput, dtype: torch.dtype) -> torch.Tensor:
    """Images (H, W, 3) uint8 -> (B, 3, H, W) normalised in fp32 on the device, channels last."""
    arrays = [np.asarray(segment.data) for segment in segments]
    expected = (wanted.spec.height, wanted.spec.width, 3)
    for array in arrays:
        if array.shape != expected or array.dtype != np.uint8:
            raise SpaceError(
                f"an image is {array.shape} {array.dtype}, this encoder takes {expected} uint8: "
                "decode with the encoder's own spec"
            )
    stacked_BHWC = np.stack(arrays)
    pixels_BHWC = torch.from_numpy(stacked_BHWC).to(device(), torch.float32)
    mean, std = (torch.tensor(triple, device=device()) for triple in (wanted.mean, wanted.std))
    scaled_BHWC = (pixels_BHWC * wanted.scale - mean) / std
    return scaled_BHWC.to(dtype).permute(0, 3, 1, 2)


def to_numpy(output: torch.Tensor) -> npt.NDArray[np.float32]:
    """Back on the host as float32."""
    return output.float().cpu().numpy()
