"""Operators without Python between them: recorded where that gives the same bits, and never where it does not."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from batchproj import recorded_steps
from batchproj.recorded_steps import Recorded, branching


class Steps(nn.Module):
    """Counts how often Python runs it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.calls = 0

    def forward(self, states: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.linear(_repeated(states, counts))  # type: ignore[no-any-return]


@branching
def _repeated(states: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    wanted: list[int] = counts.tolist()
    for index, count in enumerate(wanted):
        for _ in range(count):
            states = states + index + 1
    return states


class Fickle(nn.Module):
    """Counts its calls in what it returns, which no record does."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return states + self.calls


class Refusing(nn.Module):
    def forward(self, states: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_tracing():
            raise RuntimeError("not this one")
        return states + 1


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded_steps, "AFTER", 2)


def test_a_shape_is_recorded_and_python_runs_no_more() -> None:
    steps = Steps()
    recorded = Recorded(steps)
    with torch.inference_mode():
        for _ in range(2):
            recorded(torch.randn(3, 4), torch.tensor([1, 2]))
        assert recorded.shapes == [torch.Size([3, 4])]
        before = steps.calls
        for counts in ([0, 0], [3, 1], [1], []):
            states, wanted = torch.randn(3, 4), torch.tensor(counts, dtype=torch.int64)
            found = recorded(states, wanted)
            assert steps.calls == before, "by the record"
            assert torch.equal(found, steps(states, wanted))
            before = steps.calls


def test_another_shape_has_a_record_of_its_own() -> None:
    recorded = Recorded(Steps())
    with torch.inference_mode():
        for rows in (3, 3, 5, 5, 6):
            recorded(torch.randn(rows, 4), torch.tensor([1]))
    assert recorded.shapes == [torch.Size([3, 4]), torch.Size([5, 4])]


def test_a_record_with_other_bits_is_not_kept() -> None:
    fickle = Fickle()
    recorded = Recorded(fickle)
    found = [recorded(torch.zeros(2)).tolist() for _ in range(3)]
    assert recorded.shapes == []
    assert found == [[1, 1], [2, 2], [4, 4]], "one of the calls was the try"


def test_what_cannot_be_recorded_runs_as_it_did() -> None:
    recorded = Recorded(Refusing())
    assert [recorded(torch.zeros(1)).item() for _ in range(4)] == [1] * 4
    assert recorded.shapes == []


def test_what_depends_on_values_is_not_recorded() -> None:
    def steps(states: torch.Tensor) -> torch.Tensor:
        return states + 1 if states.sum() > 0 else states

    recorded = Recorded(steps)
    found = [recorded(torch.full((1,), value)).item() for value in (1.0, 1.0, 1.0, -1.0)]
    assert (found, recorded.shapes) == ([2, 2, 2, -1], [])


def test_threads_that_share_it_get_the_same_bits() -> None:
    recorded = Recorded(Steps())
    states, counts = torch.randn(3, 4), torch.tensor([2, 1])
    found: list[torch.Tensor] = []

    def work() -> None:
        with torch.inference_mode():
            found.extend(recorded(states, counts) for _ in range(50))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 200
    assert all(torch.equal(each, found[0]) for each in found)
    assert recorded.shapes == [states.shape]
