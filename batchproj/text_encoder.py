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
from batchproj.packed_texts import PackedTexts
from batchproj.tokens import TextTokenizer, Tokens, padded, padded_length
from batchproj.torch_runtime import device, forward_tokens, small_batches, to_numpy

States = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Ids and mask (B, L) -> states (B, L, D) of the last layer."""
Pooled = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Ids and mask (B, L), and the place of the first and the end of the last token (B,) that are pooled -> (B, D)."""
Array = npt.NDArray[np.float32]
_Finished = Callable[[torch.Tensor, Sequence[Tokens]], Sequence[Array] | Array]


class TextEncoder:
    """A loaded text model, `width` wide inside and `dim` outside; `spec.spans` cuts long texts to its token limit.

    `routed`: tokens of a batch share experts, so that each text has to be alone to be exact.
    `skipped`: tokens of the prompt, seen by the model, that are not part of what comes out.
    `packed`: the same model for short texts.
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
        packed: PackedTexts | None = None,
    ) -> None:
        self._tokenizer, self._states_of, self._pooled_of, self._dim = tokenizer, states, pooled, dim
        self._skipped = skipped
        self._packed = packed
        small = small_batches(dtype)
        self._pooled: FixedShapes[Tokens] = FixedShapes(self._forward_pooled, small)
        self._states: FixedShapes[Tokens] = FixedShapes(self._forward_tokens, small)
        self._full_tokens = 1 if routed and small != "as they come" else forward_tokens(width)
        self.spec: Spec = tokenizer.spec

    def encode(self, segments: Sequence[Segment]) -> Array:
        """Texts -> (B, D) float32; a text beyond the token limit is cut at it."""
        if not segments:
            return np.empty((0, self._dim), np.float32)
        return np.stack(self._run(self._pooled, segments, self._pool))

    def encode_tokens(self, segments: Sequence[Segment]) -> list[Array]:
        """Texts -> the states of their tokens, (T, width) float32 each; cut as in `encode`."""
        return self._run(self._states, segments, self._cut)

    def _run(self, batches: FixedShapes[Tokens], segments: Sequence[Segment], finished: _Finished) -> list[Array]:
        """`finished` makes of packed texts' states what `batches` makes of the other texts."""
        rows = self._tokenizer.ids([str(segment.data) for segment in segments])
        longest = self._packed.longest if self._packed else 0
        short = [index for index, row in enumerate(rows) if len(row) <= longest]
        long = [index for index, row in enumerate(rows) if len(row) > longest]
        found = dict(zip(long, batches.run([rows[i] for i in long], self._shape, self._batch_rows), strict=True))
        if self._packed:
            with torch.inference_mode():
                for indices, states_BLD in self._packed.states([rows[i] for i in short]):
                    chosen = [short[index] for index in indices]
                    found |= zip(chosen, finished(states_BLD, [rows[i] for i in chosen]), strict=True)
        return [found[index] for index in range(len(rows))]

    def _pool(self, states_BLD: torch.Tensor, rows: Sequence[Tokens]) -> Array:
        assert self._packed, "states of rows come from it"
        return to_numpy(self._packed.pool(states_BLD, *self._places(rows)))

    def _cut(self, states_BLD: torch.Tensor, rows: Sequence[Tokens]) -> list[Array]:
        return [
            states_LD[self._start(row) : len(row)] for states_LD, row in zip(to_numpy(states_BLD), rows, strict=True)
        ]

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
            return to_numpy(self._pooled_of(*self._batch(rows), *self._places(rows)))

    def _forward_tokens(self, rows: Sequence[Tokens]) -> list[Array]:
        with torch.inference_mode():
            return self._cut(self._states_of(*self._batch(rows)), rows)

    def _places(self, rows: Sequence[Tokens]) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the first token that is pooled, and after the last one (B,)."""
        starts_B = torch.tensor([self._start(row) for row in rows], device=device())
        return starts_B, torch.tensor([len(row) for row in rows], device=device())

    def _start(self, row: Tokens) -> int:
        """An empty text without an end mark is the prompt's last token."""
        return min(self._skipped, len(row) - 1)

    def _batch(self, rows: Sequence[Tokens]) -> tuple[torch.Tensor, torch.Tensor]:
        ids_BL, mask_BL = padded(rows, self._shape(rows[0])[0], self._tokenizer.pad)
        return torch.from_numpy(ids_BL).to(device()), torch.from_numpy(mask_BL).to(device())
