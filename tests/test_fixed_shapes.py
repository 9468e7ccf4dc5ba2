"""Batches that do not show, on a model whose bits depend on the batch's size on purpose."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from batchproj.fixed_shapes import PROOF_ROWS, FixedShapes

Array = npt.NDArray[np.float32]


class Moody:
    """(n,) rows -> (B, 1): their sums, plus something of the batch's size below `honest_from`, if only in some sums."""

    def __init__(self, honest_from: int, shows_in: float | None = None) -> None:
        self.honest_from = honest_from
        self.shows_in = shows_in
        self.sizes: list[int] = []

    def __call__(self, rows: Sequence[Array]) -> Array:
        self.sizes.append(len(rows))
        mood = 0 if len(rows) >= self.honest_from else len(rows) * 1e-3
        sums = [row.sum() for row in rows]
        return np.array([[each + mood * (self.shows_in in (None, each))] for each in sums], np.float32)


def run(model: Moody, rows: list[Array], batches: FixedShapes[Array] | None = None) -> Array:
    return (batches or FixedShapes(model)).run(rows, key=len, full=lambda _: 8)


def rows_of(*lengths: int) -> list[Array]:
    return [np.arange(length, dtype=np.float32) + index for index, length in enumerate(lengths)]


def test_rows_come_back_in_order_and_only_equal_shapes_share_a_batch() -> None:
    rows = rows_of(3, 5, 3, 2, 5, 3)
    np.testing.assert_array_equal(run(Moody(0), rows)[:, 0], [row.sum() for row in rows])


def test_a_short_batch_is_run_full_until_the_small_shape_is_proven() -> None:
    model = Moody(honest_from=0)
    batches = FixedShapes(model)
    rows = rows_of(*[3] * 8)
    whole = run(model, rows, batches)
    for _ in range(PROOF_ROWS // 4):
        np.testing.assert_array_equal(run(model, rows[:4], batches), whole[:4])
    assert model.sizes.count(8) == 1 + PROOF_ROWS // 4
    model.sizes.clear()
    np.testing.assert_array_equal(run(model, rows[:3], batches), whole[:3])
    assert model.sizes == [4]  # proven, and half the cost
    run(model, rows[:2], batches)
    assert model.sizes == [4, 8, 2]  # another shape has a proof of its own


def test_one_row_that_differs_in_many_is_enough_for_full_batches_from_then_on() -> None:
    model = Moody(honest_from=8, shows_in=15.0)
    batches = FixedShapes(model)
    rows = rows_of(*[3] * 8)
    whole = run(model, rows, batches)
    order = [0, 1, 4, 2, 3, 5, 6, 7]  # 0 + 1 + 2 + 3 * 4 is the sum of row 4 alone
    for count in (1, 2, 3):
        np.testing.assert_array_equal(run(model, [rows[i] for i in order[:count]], batches), whole[order[:count]])
    model.sizes.clear()
    for count in (1, 2, 3, 4):
        np.testing.assert_array_equal(run(model, rows[:count], batches), whole[:count])
    assert set(model.sizes) == {8}


def test_nan_in_a_row_is_a_result_like_any_other() -> None:
    rows = rows_of(3, 3, 3)
    rows[1][0] = np.nan
    output = run(Moody(0), rows)
    assert np.isnan(output[:, 0]).tolist() == [False, True, False]
