"""The encoder that text models with an attention mask share: they differ in how states become a vector.

B rows, L tokens, D width of what comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from batchproj.accelerator import Coming, Replayed, is_apart, to_device
from batchproj.media import Segment, Spec, Tokens
from batchproj.packed_texts import Finished, PackedTexts
from batchproj.tokens import TextTokenizer, padded
from batchproj.torch_runtime import Batches, batches, forward_tokens, row_length, to_host, to_numpy
from batchproj.varlen_texts import VarlenTexts

States = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Ids and mask (B, L) -> states (B, L, D) of the last layer."""
Pooled = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Ids and mask (B, L), and the place of the first and the end of the last token (B,) that are pooled -> (B, D)."""
Array = npt.NDArray[np.float32]


CHUNK = 2_048
"""Texts that are tokenized while an accelerator has those before."""


class TextEncoder:
    """A loaded text model, `width` wide inside and `dim` outside; `spec.spans` cuts long texts to its token limit.

    `routed`: tokens of a batch share experts, so that each text has to be alone to be exact.
    `skipped`: tokens of the prompt, seen by the model, that are not part of what comes out.
    `packed`: the same model for short texts. `varlen`: for all of them, on an accelerator.
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
        varlen: VarlenTexts | None = None,
    ) -> None:
        self._tokenizer, self._dim = tokenizer, dim
        self._states_of, self._pooled_of = Replayed(states), Replayed(pooled)
        self._skipped = skipped
        self._packed, self._varlen = packed, varlen
        self._pooled = batches(self._forward_pooled, dtype)
        self._states = batches(self._forward_tokens, dtype)
        self._full_tokens = 1 if routed and not is_apart() else forward_tokens(width)
        self.spec: Spec = tokenizer.spec

    def encode(self, segments: Sequence[Segment]) -> Array:
        """Texts -> (B, D) float32; a text beyond the token limit is cut at it."""
        if not segments:
            return np.empty((0, self._dim), np.float32)
        if self._varlen:
            chunks = (self._ids(segments[at : at + CHUNK]) for at in range(0, len(segments), CHUNK))
            return np.stack(self._varlen.pooled(chunks, self._skipped))
        return np.stack(self._run(self._pooled, self._ids(segments), self._pool))

    def encode_tokens(self, segments: Sequence[Segment]) -> list[Array]:
        """Texts -> the states of their tokens, (T, width) float32 each; cut as in `encode`."""
        rows = self._ids(segments)
        if self._varlen:
            return [
                states_LD[self._start(row) :] for states_LD, row in zip(self._varlen.states(rows), rows, strict=True)
            ]
        return self._run(self._states, rows, self._cut)

    def rehearse(self) -> None:
        """Record the steps of packed texts."""
        if self._packed:
            self._packed.rehearse()

    def _ids(self, segments: Sequence[Segment]) -> list[Tokens]:
        return self._tokenizer.ids_of(segments)

    def _run(self, texts: Batches[Tokens], rows: Sequence[Tokens], finished: Finished) -> list[Array]:
        """`finished` makes of packed texts' states what `texts` makes of the others."""
        longest = self._packed.longest if self._packed else 0
        short = [index for index, row in enumerate(rows) if len(row) <= longest]
        long = [index for index, row in enumerate(rows) if len(row) > longest]
        found = dict(zip(long, texts.run([rows[i] for i in long], self._shape, self._batch_rows), strict=True))
        if self._packed:
            packed = self._packed.states([rows[i] for i in short], finished)
            found |= {short[index]: output for index, output in packed.items()}
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
        length = min(row_length(len(row)), self._tokenizer.max_tokens)
        return length, len(row) == length

    def _forward_pooled(self, rows: Sequence[Tokens]) -> Array | Coming:
        with torch.inference_mode():
            return to_host(self._pooled_of(*self._batch(rows), *self._places(rows)))

    def _forward_tokens(self, rows: Sequence[Tokens]) -> list[Array]:
        with torch.inference_mode():
            return self._cut(self._states_of(*self._batch(rows)), rows)

    def _places(self, rows: Sequence[Tokens]) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the first token that is pooled, and after the last one (B,)."""
        starts_B = to_device(np.array([self._start(row) for row in rows]))
        return starts_B, to_device(np.array([len(row) for row in rows]))

    def _start(self, row: Tokens) -> int:
        """An empty text without an end mark is the prompt's last token."""
        return min(self._skipped, len(row) - 1)

    def _batch(self, rows: Sequence[Tokens]) -> tuple[torch.Tensor, torch.Tensor]:
        ids_BL, mask_BL = padded(rows, self._shape(rows[0])[0], self._tokenizer.pad)
        return to_device(ids_BL), to_device(mask_BL)
