"""Batches for an accelerator: a few on their way at any time, as large as it is worth and as it has room for.

An accelerator does not promise the same bits for other batch sizes, so rows are not kept from seeing theirs; see
`fixed_shapes` for where they are.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
from torch import OutOfMemoryError

from batchproj.accelerator import Coming

Row = TypeVar("Row")
Output = npt.NDArray[np.float32]
Outputs = Sequence[Output] | Output

AHEAD = 2
"""So many batches are asked for before the first one's answer is waited for."""
MOST = 16
"""Batches grow to so many times what `full` says at most: others may share the accelerator."""
WORTH = 1.05
"""A batch twice the size must give so many times the rows a second."""
_UNTIMED = 2
"""First runs of a size: libraries choose their kernels, and a graph is recorded."""


@dataclass
class _Size:
    """How many rows make a batch of one shape, and what is known of the sizes tried."""

    rows: int
    most: int
    runs: int = 0
    rate: float = 0.0
    settled: bool = False

    def time(self, rate: float) -> None:
        """Take a timed run: twice the rows next if it was worth it, else what was best before."""
        if rate < self.rate * WORTH:
            self.rows, self.settled = self.rows // 2, True
            return
        self.rate, self.runs = rate, 0
        if self.rows * 2 > self.most:
            self.settled = True
        else:
            self.rows *= 2

    def halve(self) -> None:
        self.rows, self.settled = max(1, self.rows // 2), True


class QueuedBatches(Generic[Row]):
    """Runs `forward`, rows -> one float32 array each, or `Coming` that will be such an array."""

    def __init__(self, forward: Callable[[Sequence[Row]], Outputs | Coming]) -> None:
        self._forward = forward
        self._sizes: dict[Hashable, _Size] = {}

    def run(self, rows: Sequence[Row], key: Callable[[Row], Hashable], full: Callable[[Row], int]) -> list[Output]:
        """Outputs in the order of `rows`.

        `key` names a row's shape, `full` how many rows of that shape make a batch of the least size worth asking for.
        Raises torch.OutOfMemoryError if there is no room for one row.
        """
        groups: dict[Hashable, list[int]] = {}
        for index, row in enumerate(rows):
            groups.setdefault(key(row), []).append(index)
        outputs: dict[int, Output] = {}
        ahead: deque[tuple[list[int], Outputs | Coming]] = deque()
        for name, indices in groups.items():
            least = full(rows[indices[0]])
            size = self._sizes.setdefault(name, _Size(least, least * MOST))
            at = 0
            while at < len(indices):
                chosen = indices[at : at + size.rows]
                at += len(chosen)
                if not size.settled and len(chosen) == size.rows:
                    while ahead:
                        outputs |= _arrived(*ahead.popleft())
                    outputs |= zip(chosen, self._timed([rows[i] for i in chosen], size), strict=True)
                else:
                    ahead.append((chosen, self._fitting([rows[i] for i in chosen], size)))
                while len(ahead) > AHEAD:
                    outputs |= _arrived(*ahead.popleft())
        for each in ahead:
            outputs |= _arrived(*each)
        return [outputs[index] for index in range(len(rows))]

    def _timed(self, rows: list[Row], size: _Size) -> Outputs:
        """One batch with nothing beside it."""
        begun = time.perf_counter()
        output = self._fitting(rows, size)
        here = output.arrived() if isinstance(output, Coming) else output
        size.runs += 1
        if size.runs > _UNTIMED and not size.settled:
            size.time(len(rows) / (time.perf_counter() - begun))
        return here

    def _fitting(self, rows: list[Row], size: _Size) -> Outputs | Coming:
        """In batches of half the size, from now on, where a whole one is more than there is room for."""
        while True:
            try:
                if len(rows) <= size.rows:
                    return self._forward(rows)
                parts = [self._forward(rows[at : at + size.rows]) for at in range(0, len(rows), size.rows)]
                return [row for part in parts for row in (part.arrived() if isinstance(part, Coming) else part)]
            except OutOfMemoryError:
                if min(size.rows, len(rows)) == 1:
                    raise
            size.rows = min(size.rows, len(rows))
            size.halve()  # outside: the error holds on to what did not fit


def _arrived(indices: list[int], output: Outputs | Coming) -> dict[int, Output]:
    here = output.arrived() if isinstance(output, Coming) else output
    return dict(zip(indices, here, strict=True))
