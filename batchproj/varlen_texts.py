"""Texts of any lengths through a model on an accelerator as one row of tokens, attention within each.

What `packed_texts` does on a CPU, by the kernel that accelerators have for it: Dao 2023 (FlashAttention-2),
arXiv:2307.08691, for sequences of varying length. Only token ids and the texts' bounds cross over; rows have a few
sizes, so that all steps of one are recorded once and replayed.
M tokens of a row, N texts that it may have, D wide, H heads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from batchproj.accelerator import Coming, Replayed, to_device
from batchproj.media import Tokens
from batchproj.packed_texts import FIRST_POSITION
from batchproj.queued_batches import AHEAD
from batchproj.sentence_layout import Pooling

_ATTENTION = "batchproj_varlen"
_SHORTEST = 16
"""Texts up to so many tokens need not be told apart by the kernel."""
_PARTS = (1, 4, 16)
"""Of the full row's tokens, sizes that hold what is left at the end."""

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Row:
    """Texts that share a row of `tokens`: their `indices`; it has bounds for `texts` of at most `longest` tokens."""

    indices: tuple[int, ...]
    tokens: int
    texts: int
    longest: int


class VarlenTexts:
    """A loaded bidirectional encoder in bf16, run on rows of at most `tokens`; `finish` is what comes after pooling."""

    def __init__(
        self, model: Any, pooling: Pooling, finish: Callable[[torch.Tensor], torch.Tensor], tokens: int, pad: int
    ) -> None:
        before = FIRST_POSITION[model.config.model_type]
        self._first = 0 if before is None else int(getattr(model.config, before)) + 1
        self._model, self._pooling, self._finish, self._pad = model, pooling, finish, pad
        self.longest = tokens
        self._runs: dict[tuple[int, int], Replayed] = {}
        _register()
        model.set_attn_implementation(_ATTENTION)

    def pooled(self, chunks: Iterable[Sequence[Tokens]], skipped: int) -> list[Array]:
        """(D,) of each text, of the tokens after the first `skipped`; a chunk is taken while the ones before run."""
        found: list[Array] = []
        ahead: deque[tuple[list[Row], list[Coming]]] = deque()
        for rows in chunks:
            laid = list(lay([len(each) for each in rows], self.longest))
            ahead.append((laid, [self._pooled_row(rows, row, skipped) for row in laid]))
            if len(ahead) > AHEAD:
                found += _arrived(*ahead.popleft())
        for each in ahead:
            found += _arrived(*each)
        return found

    def states(self, rows: Sequence[Tokens]) -> list[Array]:
        """(L, width) of each."""
        found: list[Array] = [np.empty(0, np.float32)] * len(rows)
        for row in lay([len(each) for each in rows], self.longest):
            ids_M, bounds_N = self._laid(rows, row)
            states_MD = self._forward(to_device(ids_M), to_device(bounds_N), row.longest).float().cpu().numpy()
            for number, index in enumerate(row.indices):
                found[index] = states_MD[bounds_N[number] : bounds_N[number + 1]]
        return found

    def _pooled_row(self, rows: Sequence[Tokens], row: Row, skipped: int) -> Coming:
        if (row.longest, skipped) not in self._runs:
            self._runs[row.longest, skipped] = self._pooling_run(row.longest, skipped)
        ids_M, bounds_N = self._laid(rows, row)
        pooled_ND = self._runs[row.longest, skipped](to_device(ids_M), to_device(bounds_N))
        return Coming(pooled_ND[: len(row.indices)])

    def _pooling_run(self, longest: int, skipped: int) -> Replayed:
        def run(ids_M: torch.Tensor, bounds_N: torch.Tensor) -> torch.Tensor:
            states_MD = self._forward(ids_M, bounds_N, longest)
            return self._finish(pool(states_MD, bounds_N, skipped, self._pooling))

        return Replayed(run)

    def _laid(self, rows: Sequence[Tokens], row: Row) -> tuple[Tokens, npt.NDArray[np.int32]]:
        """Ids (M,), and where texts begin and end (N + 1,): those that there are not are empty."""
        ids_M = np.full(row.tokens, self._pad, np.int64)
        ids = np.concatenate([rows[index] for index in row.indices])
        ids_M[: len(ids)] = ids
        bounds_N = np.full(row.texts + 1, len(ids), np.int32)
        bounds_N[0] = 0
        bounds_N[1 : len(row.indices) + 1] = np.cumsum([len(rows[index]) for index in row.indices])
        return ids_M, bounds_N

    def _forward(self, ids_M: torch.Tensor, bounds_N: torch.Tensor, longest: int) -> torch.Tensor:
        """States (M, D)."""
        with torch.inference_mode():
            states_1MD: torch.Tensor = self._model(
                input_ids=ids_M[None],
                position_ids=positions(bounds_N, len(ids_M))[None] + self._first,
                bounds=bounds_N,
                longest=longest,
            ).last_hidden_state
        return states_1MD[0]


def lay(lengths: Sequence[int], tokens: int) -> Iterator[Row]:
    """Rows of at most `tokens`, longest texts first, so that those of a row are about equally long."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    at = 0
    while at < len(order):
        longest = max(_SHORTEST, 1 << (lengths[order[at]] - 1).bit_length())
        texts = max(1, 8 * tokens // longest)
        taken: list[int] = []
        filled = 0
        while at < len(order) and len(taken) < texts and filled + lengths[order[at]] <= tokens:
            taken.append(order[at])
            filled += lengths[order[at]]
            at += 1
        part = next(part for part in reversed(_PARTS) if filled <= tokens // part)
        yield Row(tuple(taken), tokens // part, texts, longest)


def positions(bounds_N: torch.Tensor, tokens: int) -> torch.Tensor:
    """Each token's place in its text (M,); 0 of what is in none."""
    places_M = torch.arange(tokens, device=bounds_N.device, dtype=bounds_N.dtype)
    text_M = torch.searchsorted(bounds_N, places_M, right=True) - 1
    own_M = places_M - bounds_N[text_M]
    return torch.where(places_M < bounds_N[-1], own_M, 0).long()


def pool(states_MD: torch.Tensor, bounds_N: torch.Tensor, skipped: int, pooling: Pooling) -> torch.Tensor:
    """Token states -> (N, D) float32, of each text but its first `skipped` tokens; of no text anything."""
    begins_N, ends_N = bounds_N[:-1].long(), bounds_N[1:].long()
    starts_N = torch.maximum(torch.minimum(begins_N + skipped, ends_N - 1), begins_N)
    if pooling == "cls":
        return states_MD[starts_N.clamp(max=len(states_MD) - 1)].float()
    if pooling == "last":
        return states_MD[(ends_N - 1).clamp(min=0)].float()
    # what is skipped and what is pooled, in turn
    lengths_2N = torch.stack([starts_N - begins_N, ends_N - starts_N], 1).flatten()
    rest_1 = len(states_MD) - bounds_N[-1:].long()
    lengths = torch.cat([lengths_2N, rest_1])
    return torch.segment_reduce(states_MD.float(), "mean", lengths=lengths, unsafe=True)[1::2]


def _arrived(laid: Sequence[Row], pooled: Sequence[Coming]) -> list[Array]:
    """In the order of the texts."""
    found: dict[int, Array] = {}
    for row, coming in zip(laid, pooled, strict=True):
        found |= zip(row.indices, coming.arrived(), strict=True)
    return [found[index] for index in range(len(found))]


def _attention(
    _module: torch.nn.Module,
    query_1HMD: torch.Tensor,
    key_1HMD: torch.Tensor,
    value_1HMD: torch.Tensor,
    _mask: None,
    bounds: torch.Tensor | None = None,
    longest: int = 0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers asks for it, (1, H, M, D) each -> (1, M, H, D). What is in no text is anything at all."""
    from torch.nn.attention.varlen import varlen_attn

    assert bounds is not None, "texts of a row have bounds"
    query, key, value = (states[0].transpose(0, 1) for states in (query_1HMD, key_1HMD, value_1HMD))
    found_MHD = varlen_attn(query, key, value, bounds, bounds, longest, longest)
    assert isinstance(found_MHD, torch.Tensor), "nothing beside it was asked for"
    return found_MHD[None], None


def _register() -> None:
    """Tell transformers of this attention, and that it takes no mask."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(_ATTENTION, _attention)
    AttentionMaskInterface.register(_ATTENTION, lambda *_, **__: None)
