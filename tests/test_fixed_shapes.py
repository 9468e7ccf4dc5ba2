"""Batches that do not show, on a model whose bits depend on the batch's size on purpose."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from batchproj.fixed_shapes import FixedShapes

Array = npt.NDArray[np.float32]


class Moody:
    """(n,) rows -> (B, 1): their sums, plus something of the batch's size below `honest_from`."""

    def __init__(self, honest_from: int) -> None:
        self.honest_from = honest_from
        self.sizes: list[int] = []

    def __call__(self, rows: Sequence[Array]) -> Array:
        self.sizes.append(len(rows))
        mood = 0 if len(rows) >= self.honest_from else len(rows) * 1e-3
        return np.array([[row.sum() + mood] for row in rows], np.float32)


def run(model: Moody, rows: list[Array], batches: FixedShapes[Array] | None = None) -> Array:
    return np.stack((batches or FixedShapes(model)).run(rows, key=len, full=lambda _: 8))


def rows_of(*lengths: int) -> list[Array]:
    return [np.arange(length, dtype=np.float32) + index for index, length in enumerate(lengths)]


def test_rows_come_back_in_order_and_only_equal_shapes_share_a_batch() -> None:
    rows = rows_of(3, 5, 3, 2, 5, 3)
    np.testing.assert_array_equal(run(Moody(0), rows)[:, 0], [row.sum() for row in rows])


def test_a_short_batch_is_run_full_until_the_small_shape_is_proven() -> None:
    model = Moody(honest_from=4)
    batches = FixedShapes(model)
    rows = rows_of(*[3] * 8)
    whole = run(model, rows, batches)
    for count in (1, 2, 3, 4, 5, 8, 1, 2, 3):
        np.testing.assert_array_equal(run(model, rows[:count], batches), whole[:count])
    model.sizes.clear()
    run(model, rows[:3], batches)
    assert model.sizes == [4]  # proven, and half the cost
    run(model, rows[:1], batches)
    assert model.sizes == [4, 4]  # 1 and 2 were seen to differ


def test_a_model_that_differs_at_every_size_always_gets_the_full_batch() -> None:
    model = Moody(honest_from=8)
    batches = FixedShapes(model)
    rows = rows_of(*[3] * 8)
    whole = run(model, rows, batches)
    for _ in range(2):
        for count in range(1, 9):
            np.testing.assert_array_equal(run(model, rows[:count], batches), whole[:count])


def test_a_short_batch_may_always_be_filled() -> None:
    model = Moody(honest_from=0)
    batches = FixedShapes(model, "filled")
    rows = rows_of(3, 3, 3)
    for count in (1, 3, 1):
        np.testing.assert_array_equal(run(model, rows[:count], batches)[:, 0], [row.sum() for row in rows[:count]])
    assert set(model.sizes) == {8}


def test_nan_in_a_row_is_a_result_like_any_other() -> None:
    rows = rows_of(3, 3, 3)
    rows[1][0] = np.nan
    output = run(Moody(0), rows)
    assert np.isnan(output[:, 0]).tolist() == [False, True, False]
