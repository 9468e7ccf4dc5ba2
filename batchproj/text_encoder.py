"""The encoder that text models with an attention mask share: they differ in how states become a vector.

B rows, L tokens, D width of what comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from batchproj.fixed_shapes import FixedShapes
from batchproj.media import Segment, Spec
from batchproj.tokens import TextTokenizer, Tokens, padded, padded_length
from batchproj.torch_runtime import device, forward_tokens, small_batches, to_numpy

States = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Ids and mask (B, L) -> states (B, L, D) of the last layer."""
Pooled = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Ids and mask (B, L), and the place of the first and the end of the last token (B,) that are pooled -> (B, D)."""
Array = npt.NDArray[np.float32]


class TextEncoder:
    """A loaded text model, `width` wide inside and `dim` outside; `spec.spans` cuts long texts to its token limit.

    `routed`: tokens of a batch share experts, so that each text has to be alone to be exact.
    `skipped`: tokens of the prompt, seen by the model, that are not part of what comes out.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        states: States,
        pooled: Pooled,
        dim: int,
        width: int,
        dtype: torch.dtype,
        *,
        routed: bool = False,
        skipped: int = 0,
    ) -> None:
        self._tokenizer, self._states_of, self._pooled_of, self._dim = tokenizer, states, pooled, dim
        self._skipped = skipped
        small = small_batches(dtype)
        self._pooled: FixedShapes[Tokens] = FixedShapes(self._forward_pooled, small)
        self._states: FixedShapes[Tokens] = FixedShapes(self._forward_tokens, small)
        self._full_tokens = 1 if routed and small != "as they come" else forward_tokens(width)
        self.spec: Spec = tokenizer.spec

    def encode(self, segments: Sequence[Segment]) -> Array:
        """Texts -> (B, D) float32; a text beyond the token limit is cut at it."""
        if not segments:
            return np.empty((0, self._dim), np.float32)
        return np.stack(self._run(self._pooled, segments))

    def encode_tokens(self, segments: Sequence[Segment]) -> list[Array]:
        """Texts -> the states of their tokens, (T, width) float32 each; cut as in `encode`."""
        return self._run(self._states, segments)

    def _run(self, batches: FixedShapes[Tokens], segments: Sequence[Segment]) -> list[Array]:
        rows = self._tokenizer.ids([str(segment.data) for segment in segments])
        return batches.run(rows, self._shape, self._batch_rows)

    def _batch_rows(self, row: Tokens) -> int:
        return max(1, self._full_tokens // self._shape(row)[0])

    def _shape(self, row: Tokens) -> tuple[int, bool]:
        """Padded length, and whether the row fills it: transformers drops an all-true mask and
        then takes another attention kernel, so full rows may not share a batch with padded ones.
        """
        length = min(padded_length(len(row)), self._tokenizer.max_tokens)
        return length, len(row) == length

    def _forward_pooled(self, rows: Sequence[Tokens]) -> Array:
        with torch.inference_mode():
            starts_B = torch.tensor([self._start(row) for row in rows], device=device())
            ends_B = torch.tensor([len(row) for row in rows], device=device())
            return to_numpy(self._pooled_of(*self._batch(rows), starts_B, ends_B))

    def _forward_tokens(self, rows: Sequence[Tokens]) -> list[Array]:
        with torch.inference_mode():
            states_BLD = to_numpy(self._states_of(*self._batch(rows)))
        return [states_LD[self._start(row) : len(row)] for states_LD, row in zip(states_BLD, rows, strict=True)]

    def _start(self, row: Tokens) -> int:
        """An empty text without an end mark is the prompt's last token."""
        return min(self._skipped, len(row) - 1)

    def _batch(self, rows: Sequence[Tokens]) -> tuple[torch.Tensor, torch.Tensor]:
        ids_BL, mask_BL = padded(rows, self._shape(rows[0])[0], self._tokenizer.pad)
        return torch.from_numpy(ids_BL).to(device()), torch.from_numpy(mask_BL).to(device())
