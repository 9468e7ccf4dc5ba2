"""Batches that do not show: a row's bits are the same alone, in a crowd, first or last.

A matrix product picks its kernel by the number of rows, and another kernel may add in another
order: PyTorch's fp32 `linear` on one thread gives 3 rows other bits than 4; bf16 emulated without
avx512_bf16 differs at 9 and at 31. So a model is run on one batch shape for inputs of one shape,
and a short batch is filled up with copies of its own rows. In fp32, where another order shows in
every row, smaller shapes serve short batches after this process has seen them give the bits of the
full one. In bf16 it is rounded away in most rows (with Intel's AMX 3 of 16 differed), so that a few
equal rows prove nothing. Of a GPU no such promise is made: see `queued_batches`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from itertools import cycle, islice
from typing import Generic, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from batchproj.lanes import side_by_side

Row = TypeVar("Row")
Output = npt.NDArray[np.float32]
"""What comes of one row, of any shape; of all rows as one array, if they agree in it."""
Outputs = Sequence[Output] | Output
SmallBatches = Literal["filled", "filled until proven"]


class FixedShapes(Generic[Row]):
    """Runs `forward`, rows -> one float32 array each, so that each row depends on itself alone."""

    def __init__(
        self, forward: Callable[[Sequence[Row]], Outputs], small: SmallBatches = "filled until proven"
    ) -> None:
        self._forward = forward
        self._small = small
        self._proven: dict[tuple[Hashable, int, int], bool] = {}

    def run(self, rows: Sequence[Row], key: Callable[[Row], Hashable], full: Callable[[Row], int]) -> list[Output]:
        """Outputs in the order of `rows`.

        `key` names a row's shape (and whatever else picks a code path), `full` how many rows of
        that shape make a whole batch; both must be functions of the row alone.
        """
        groups: dict[Hashable, list[int]] = {}
        for index, row in enumerate(rows):
            groups.setdefault(key(row), []).append(index)
        batches: list[tuple[Hashable, list[int], int]] = []
        for name, indices in groups.items():
            size = full(rows[indices[0]])
            batches += [(name, indices[start : start + size], size) for start in range(0, len(indices), size)]

        def run(batch: tuple[Hashable, list[int], int]) -> Outputs:
            name, chosen, size = batch
            return self._batch(name, [rows[i] for i in chosen], size)

        outputs: dict[int, Output] = {}
        # in fp32 bits depend on how many threads share a product
        found = side_by_side(run, batches, shares_cores=self._small == "filled")
        for (_, chosen, _), output in zip(batches, found, strict=True):
            outputs |= zip(chosen, output, strict=True)
        return [outputs[index] for index in range(len(rows))]

    def _batch(self, name: Hashable, rows: list[Row], full: int) -> Outputs:
        sizes = [full] if self._small == "filled" else _sizes(len(rows), full)
        for size in sizes:
            proven = True if size == full else self._proven.get((name, full, size))
            if proven is None:
                return self._compare(name, rows, size, full)
            if proven:
                return self._forward(_filled(rows, size))[: len(rows)]
        raise AssertionError("the full batch is always tried")

    def _compare(self, name: Hashable, rows: list[Row], size: int, full: int) -> Outputs:
        """Run both shapes; remember whether the small one may stand for the full one from now on."""
        reference = self._forward(_filled(rows, full))
        small = _filled(list(self._forward(_filled(rows, size))[: len(rows)]), full)
        pairs = zip(small, reference, strict=True)
        self._proven[name, full, size] = all(one.tobytes() == other.tobytes() for one, other in pairs)
        return reference[: len(rows)]


def _sizes(rows: int, full: int) -> list[int]:
    """One row, or a quarter, half, three quarters or all of a batch: those that hold `rows`.

    Few, as each is run twice when it is first used.
    """
    sizes = {1, *(-(-full * quarters // 4) for quarters in range(1, 5))}
    return sorted(size for size in sizes if size >= rows)


def _filled(rows: Sequence[Row], size: int) -> list[Row]:
    return list(islice(cycle(rows), size))
