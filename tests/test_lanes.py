"""Batches side by side: in order, on threads of one core each, and alone in the caller's own."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from batchproj.lanes import open_lanes, side_by_side


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    open_lanes(1)
    torch.set_num_threads(threads)


def seen(_: int) -> tuple[int, str]:
    time.sleep(0.01)
    return torch.get_num_threads(), threading.current_thread().name


def test_results_are_in_order_whoever_is_done_first() -> None:
    open_lanes(2)

    def slow_first(number: int) -> int:
        time.sleep(0.05 if number == 0 else 0)
        return number

    assert side_by_side(slow_first, range(5)) == [0, 1, 2, 3, 4]


def test_a_lane_computes_with_one_thread_and_the_caller_with_all() -> None:
    open_lanes(2)
    torch.set_num_threads(2)
    found = side_by_side(seen, range(6))
    assert {threads for threads, _ in found} == {1}
    assert len({name for _, name in found}) == 2
    assert side_by_side(seen, [0]) == [(2, threading.current_thread().name)]
    assert torch.get_num_threads() == 2


def test_while_others_call_a_batch_alone_is_a_lane_s_as_well() -> None:
    open_lanes(2)
    is_there, may_end = threading.Event(), threading.Event()

    def hold(_: int) -> None:
        is_there.set()
        assert may_end.wait(60)

    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(side_by_side, hold, [0], shares_cores=False)  # one lane is taken
        assert is_there.wait(60)
        ((threads, name),) = side_by_side(seen, [0])
        may_end.set()
        assert other.result(60) == [None]
    assert (threads, name.startswith("lane")) == (1, True)
    assert side_by_side(seen, [0])[0][1] == threading.current_thread().name  # nobody else calls any more


def test_one_lane_is_the_caller_s_own_thread() -> None:
    open_lanes(1)
    assert {name for _, name in side_by_side(seen, range(3))} == {threading.current_thread().name}


def test_an_error_is_the_caller_s() -> None:
    open_lanes(2)
    with pytest.raises(ZeroDivisionError):
        side_by_side(lambda number: 1 // number, [1, 0, 2])
