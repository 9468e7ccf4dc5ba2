"""Batches for an accelerator: their sizes, found by the clock and by what there is room for."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch

from batchproj.queued_batches import MOST, QueuedBatches

Array = npt.NDArray[np.float32]


class Clocked:
    """(n,) rows -> (B, 1): their sums; a batch takes so many seconds, and a row, and there is `room` for rows."""

    def __init__(self, batch_s: float, row_s: float, room: int = 10_000) -> None:
        self.batch_s, self.row_s, self.room = batch_s, row_s, room
        self.now = 0.0
        self.sizes: list[int] = []

    def __call__(self, rows: Sequence[Array]) -> Array:
        self.sizes.append(len(rows))
        if len(rows) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.now += self.batch_s + self.row_s * len(rows)
        return np.array([[row.sum()] for row in rows], np.float32)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> type[Clocked]:
    class OnClock(Clocked):
        def __init__(self, *told: float) -> None:
            super().__init__(*told)  # type: ignore[arg-type]
            monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    return OnClock


def rows_of(*lengths: int) -> list[Array]:
    return [np.arange(length, dtype=np.float32) + index for index, length in enumerate(lengths)]


def run(batches: QueuedBatches[Array], rows: list[Array]) -> list[float]:
    return np.stack(batches.run(rows, key=len, full=lambda _: 8))[:, 0].tolist()


def sums(rows: list[Array]) -> list[float]:
    return [float(row.sum()) for row in rows]


def test_rows_come_back_in_order_and_only_equal_shapes_share_a_batch() -> None:
    model = Clocked(0, 0)
    rows = rows_of(3, 5, 3, 2, 5, 3)
    assert run(QueuedBatches(model), rows) == sums(rows)
    assert sorted(model.sizes) == [1, 2, 3]


def test_batches_grow_while_asking_for_one_takes_most_of_its_time(clock: type[Clocked]) -> None:
    model = clock(1.0, 0.01)
    batches, rows = QueuedBatches(model), rows_of(*[3] * 2_000)
    assert run(batches, rows) == sums(rows)
    assert list(dict.fromkeys(model.sizes[:-1])) == [8, 16, 32, 64, 128]
    assert max(model.sizes) == 8 * MOST


def test_batches_grow_no_further_than_is_worth_it(clock: type[Clocked]) -> None:
    model = clock(0.02, 0.01)
    batches, rows = QueuedBatches(model), rows_of(*[3] * 2_000)
    assert run(batches, rows) == sums(rows)
    assert model.sizes[-2] == 32  # 64 were tried, and gave 1.03 times as many a second
    assert max(model.sizes) == 64


def test_a_few_rows_are_neither_timed_nor_do_they_settle_anything(clock: type[Clocked]) -> None:
    model = clock(1.0, 0.01)
    batches = QueuedBatches(model)
    for _ in range(5):
        run(batches, rows_of(3, 3))
    assert set(model.sizes) == {2}
    run(batches, rows_of(*[3] * 200))
    assert max(model.sizes) == 32


def test_a_batch_without_room_is_halved_and_the_next_is_not_tried_whole() -> None:
    model, rows = Clocked(0, 0, room=3), rows_of(*[3] * 8)
    batches = QueuedBatches(model)
    assert run(batches, rows) == sums(rows)
    assert model.sizes == [8, 4, 2, 2, 2, 2]
    model.sizes.clear()
    assert run(batches, rows) == sums(rows)
    assert model.sizes == [2, 2, 2, 2]


def test_a_size_that_has_grown_beyond_its_room_goes_back(clock: type[Clocked]) -> None:
    model = clock(1.0, 0.01, 20)
    batches, rows = QueuedBatches(model), rows_of(*[3] * 400)
    assert run(batches, rows) == sums(rows)
    assert model.sizes.count(32) == 1
    assert model.sizes[-2] == 16


def test_a_single_row_without_room_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        run(QueuedBatches(Clocked(0, 0, room=0)), rows_of(3))
