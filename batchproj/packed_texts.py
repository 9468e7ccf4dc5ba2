"""Short texts of any lengths through a model as one row of tokens, nothing padded but the end.

Of the layers of a text encoder attention alone looks at more than one token. So texts laid end to end in one row are
exact as long as attention stays within each, and all other layers see the same shape, whatever the texts:
Krell et al. 2021 (packing without cross-contamination), arXiv:2107.02027.
L tokens of a text, M of a row, D wide, H heads.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from batchproj.lanes import side_by_side
from batchproj.media import Tokens
from batchproj.prepacked_linear import prepack
from batchproj.recorded_steps import PROOFS, Recorded, branching

_ATTENTION = "batchproj_packed"
_AT_ONCE = 2
"""Rows shorter than this part of M are packed: of longer ones too few share a row to fill it."""
_LEAST_PAIR = 0.8
"""Two texts that are this part of M together get rows that just take two: of M such pairs would leave the rest empty.
Rows of more sizes would leave more of them half filled than they save (measured on lengths of many kinds)."""
_STEP = 16
_MADE_UP = 40
"""Tokens of the longest text of a rehearsal."""
_COPIED = (33, 7, 3)
"""Tokens of texts that are copied all over a row: one that fills whole vectors but for one, and two that are filled up;
they begin at every place within blocks of 8, 16, 24, …"""


FIRST_POSITION: Mapping[str, str | None] = {
    "bert": None,
    "camembert": "pad_token_id",
    "distilbert": None,
    "electra": None,
    "roberta": "pad_token_id",
    "xlm-roberta": "pad_token_id",
}
"""Model types whose layers but attention are of single tokens, whose attention transformers lets us choose, and whose
positions can be given: None where they are numbered from 0, or the config's field that they come after."""


@dataclass(frozen=True)
class Stretch:
    """Texts of one length, side by side in a row: `indices` of them, from token `start` on."""

    indices: tuple[int, ...]
    length: int
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.indices) * self.length


@dataclass(frozen=True)
class Row:
    """What lies in a row of `tokens` tokens."""

    tokens: int
    stretches: tuple[Stretch, ...]


Pool = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""States (B, L, D), and the place of the first and the end of the last token (B,) that are pooled -> (B, D)."""
Array = npt.NDArray[np.float32]
Finished = Callable[[torch.Tensor, Sequence[Tokens]], Sequence[Array] | Array]
"""States (B, L, D) of texts of one length, and their tokens -> what is kept of each."""


class PackedTexts:
    """A loaded bidirectional encoder, run on rows of `tokens` tokens or somewhat fewer (`row_tokens`); `pool` is how
    its states are pooled."""

    def __init__(self, model: Any, pool: Pool, tokens: int, pad: int) -> None:
        before = FIRST_POSITION[model.config.model_type]
        self._first = 0 if before is None else int(getattr(model.config, before)) + 1
        self._tokens, self._pad, self._vocabulary = tokens, pad, int(model.config.vocab_size)
        self._positions = int(model.config.max_position_embeddings) - self._first
        self.pool = pool
        self.longest = tokens // _AT_ONCE
        _register()
        model.set_attn_implementation(_ATTENTION)
        prepack(model)
        self._states = Recorded(_States(model))
        self._shares_cores = model.dtype == torch.bfloat16  # in fp32 bits depend on how many threads share a product

    @property
    def recorded(self) -> list[torch.Size]:
        """Shapes of rows whose steps are recorded."""
        return self._states.shapes

    def states(self, rows: Sequence[Tokens], finished: Finished) -> dict[int, Array]:
        """Of texts of at most `longest` tokens: by index, what `finished` makes of its states."""

        def work(row: Row) -> dict[int, Array]:
            found: dict[int, Array] = {}
            with torch.inference_mode():
                states_MD = self._forward(rows, row)
                if not states_MD[: row.stretches[-1].end].sum().isfinite():
                    states_MD = self._forward(rows, row, fills_by_copy=True)  # whose it is must not show in the others
                for each in row.stretches:
                    own_BLD = states_MD[each.start : each.end].reshape(len(each.indices), each.length, -1)
                    found |= zip(each.indices, finished(own_BLD, [rows[i] for i in each.indices]), strict=True)
            return found

        laid = side_by_side(work, pack([len(row) for row in rows], self._tokens), shares_cores=self._shares_cores)
        return {index: output for found in laid for index, output in found.items()}

    def shows_places(self) -> bool:
        """Whether a text's bits depend on where in a row it lies, or on how its keys are filled up: seen in fp32.

        Of made-up texts of a few lengths, many copies of each in one row.
        """
        texts = [
            np.arange(length) % self._vocabulary
            for length in _COPIED
            if length <= self._positions
            for _ in range((self._tokens - _STEP) // len(_COPIED) // length)
        ]
        row = pack([len(text) for text in texts], self._tokens)[0]

        def states(fills_by_copy: bool) -> torch.Tensor:
            with torch.inference_mode():
                return self._forward(texts, row, fills_by_copy=fills_by_copy)[: row.stretches[-1].end]

        by_views, by_copies = side_by_side(states, [False, True], shares_cores=self._shares_cores)
        stretches = [by_views[each.start : each.end].reshape(len(each.indices), -1) for each in row.stretches]
        return not torch.equal(by_views, by_copies) or any((copies != copies[0]).any() for copies in stretches)

    def rehearse(self) -> None:
        """Have the steps of a row of `tokens` recorded before texts come, by rows of short ones that are made up."""
        numbers = np.random.default_rng(0)
        most = min(_MADE_UP, self._positions)
        batches = []
        for _ in range(PROOFS):
            lengths = numbers.integers(1, most + 1, 2 * self._tokens // most)
            texts = [numbers.integers(0, self._vocabulary, length) for length in lengths]
            batches.append(self._inputs(texts, pack([len(text) for text in texts], self._tokens)[0]))
        with torch.inference_mode():
            self._states.rehearse(batches)

    def _forward(self, rows: Sequence[Tokens], row: Row, *, fills_by_copy: bool = False) -> torch.Tensor:
        return self._states(*self._inputs(rows, row, fills_by_copy))[0]

    def _inputs(self, rows: Sequence[Tokens], row: Row, fills_by_copy: bool = False) -> tuple[torch.Tensor, ...]:
        ids_M = np.full(row.tokens, self._pad, np.int64)
        positions_M = np.full(row.tokens, self._first, np.int64)
        for each in row.stretches:
            ids_M[each.start : each.end] = np.concatenate([rows[index] for index in each.indices])
            own = np.arange(self._first, self._first + each.length)
            positions_M[each.start : each.end] = np.tile(own, len(each.indices))
        stretches_S4 = torch.tensor(
            [(len(each.indices), each.length, each.start, fills_by_copy) for each in row.stretches]
        )
        return torch.from_numpy(ids_M)[None], torch.from_numpy(positions_M)[None], stretches_S4


class _States(torch.nn.Module):
    """Ids and positions (1, M), and of each stretch how many texts, how long, from where on and how filled up (S, 4)
    -> states (1, M, D) of the last layer."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._model = model

    def forward(self, ids_1M: torch.Tensor, positions_1M: torch.Tensor, stretches_S4: torch.Tensor) -> torch.Tensor:
        states_1MD: torch.Tensor = self._model(
            input_ids=ids_1M, position_ids=positions_1M, stretches=stretches_S4
        ).last_hidden_state
        return states_1MD


def row_tokens(length: int, tokens: int) -> int:
    """Of the rows that texts of this length lie in: it alone decides, for what a row's layers give may depend on its
    size. `tokens`, or somewhat fewer for texts of which two nearly fill that."""
    pair = 2 * -(-length // _STEP) * _STEP
    return pair if _LEAST_PAIR * tokens <= pair < tokens else tokens


def pack(lengths: Sequence[int], tokens: int) -> list[Row]:
    """Rows of at most `tokens`, see `row_tokens`: each time the longest text that still fits, so that few lengths share
    a row."""
    waiting: dict[int, dict[int, list[int]]] = {}
    for index, length in enumerate(lengths):
        waiting.setdefault(row_tokens(length, tokens), {}).setdefault(length, []).append(index)
    return [Row(size, tuple(row)) for size in sorted(waiting) for row in _filled(waiting[size], size)]


def _filled(waiting: dict[int, list[int]], tokens: int) -> list[list[Stretch]]:
    """Texts by length, in rows of `tokens`."""
    known = sorted(waiting)
    rows: list[list[Stretch]] = []
    while known:
        row: list[Stretch] = []
        start = 0
        while at := bisect_right(known, tokens - start):
            length = known[at - 1]
            count = min(len(waiting[length]), (tokens - start) // length)
            taken, waiting[length] = waiting[length][:count], waiting[length][count:]
            if not waiting[length]:
                known.pop(at - 1)
            row.append(Stretch(tuple(taken), length, start))
            start = row[-1].end
        rows.append(row)
    return rows


def _attention(
    module: torch.nn.Module,
    query_BHLD: torch.Tensor,
    key_BHLD: torch.Tensor,
    value_BHLD: torch.Tensor,
    mask: torch.Tensor | None,
    stretches: torch.Tensor | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers asks for it, (B, H, L, D) each -> (B, L, H, D): its usual one, but within stretches if there
    are any. What is in none of them is zero."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if stretches is None:
        usual: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query_BHLD, key_BHLD, value_BHLD, mask, **options
        )
        return usual
    return _within(query_BHLD, key_BHLD, value_BHLD, stretches, options.get("scaling")), None


@branching
def _within(
    query_1HMD: torch.Tensor,
    key_1HMD: torch.Tensor,
    value_1HMD: torch.Tensor,
    stretches_S4: torch.Tensor,
    scale: float | None,
) -> torch.Tensor:
    """Attention of each text to itself, (1, M, H, D).

    Keys are filled up to whole vectors of 16, unless hardly any were left over: torch's softmax takes the rest one by
    one, which makes a text of 30 tokens take twice as long as one of 32 (bf16, AVX-512, measured). What they are filled
    with is what follows in the row, where there is enough of it, and nothing is copied for it: a mask gives it weights
    of exactly 0, so that nothing shows of it unless it is not finite. A stretch may ask for a copy, filled with zeros.
    """
    found_1MHD = torch.empty_like(query_1HMD.transpose(1, 2))
    tokens = query_1HMD.size(2)
    masks = torch.zeros([tokens + 16], dtype=query_1HMD.dtype)
    masks[tokens:] = -math.inf
    end = 0
    stretches: list[list[int]] = stretches_S4.tolist()
    for each in stretches:
        count, length, start = each[0], each[1], each[2]
        end = start + count * length
        query = _windows(query_1HMD, start, count, length, 0)
        filling = 16 - length % 16 if length % 16 > 2 else 0
        if end + filling <= tokens and each[3] == 0:
            key = _windows(key_1HMD, start, count, length, filling)
            value = _windows(value_1HMD, start, count, length, filling)
        else:
            key = torch.constant_pad_nd(_windows(key_1HMD, start, count, length, 0), [0, 0, 0, filling])
            value = torch.constant_pad_nd(_windows(value_1HMD, start, count, length, 0), [0, 0, 0, filling])
        mask: torch.Tensor | None = None
        if filling:
            mask = masks[tokens - length : tokens + filling].view(1, 1, 1, length + filling)
        found_BHLD = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, 0.0, False, scale=scale)
        found_1MHD[0, start:end] = found_BHLD.transpose(1, 2).flatten(0, 1)
    found_1MHD[0, end:] = 0.0  # stretches follow one another from the first token on
    return found_1MHD


def _windows(states_1HMD: torch.Tensor, start: int, count: int, length: int, filling: int) -> torch.Tensor:
    """Of each text of a stretch its part of the row and so many tokens after it (B, H, L, D): views that overlap."""
    steps = states_1HMD.stride()
    return states_1HMD.as_strided(
        [count, states_1HMD.size(1), length + filling, states_1HMD.size(3)],
        [length * steps[2], steps[1], steps[2], steps[3]],
        states_1HMD.storage_offset() + start * steps[2],
    )


def _register() -> None:
    """Tell transformers of this attention, and that its masks are the usual ones'."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(_ATTENTION, _attention)
    AttentionMaskInterface.register(_ATTENTION, sdpa_mask)
