"""Operators without Python between them: recorded where that gives the same bits, and never where it does not."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from torch import nn

from batchproj import recorded_steps
from batchproj.media import ImageSpec, Segment
from batchproj.prepacked_linear import prepack
from batchproj.recorded_steps import Recorded, Steps, branching
from batchproj.schema import Modality
from batchproj.space import open_space, resolve


class Counted(nn.Module):
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


BEFORE = 4
"""Batches of a shape until its record is used."""


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded_steps, "AFTER", 2)
    monkeypatch.setattr(recorded_steps, "PROOFS", 3)


def test_a_shape_is_recorded_and_python_runs_no_more() -> None:
    steps = Counted()
    recorded = Recorded(steps)
    with torch.inference_mode():
        for _ in range(BEFORE):
            assert recorded.shapes == []
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
    recorded = Recorded(Counted())
    with torch.inference_mode():
        for rows in (3, 5, 6) * (BEFORE - 1) + (3, 5):
            recorded(torch.randn(rows, 4), torch.tensor([1]))
    assert recorded.shapes == [torch.Size([3, 4]), torch.Size([5, 4])]


def test_a_record_with_other_bits_is_not_used() -> None:
    recorded = Recorded(Fickle())
    found = [recorded(torch.zeros(2)).tolist() for _ in range(2 * BEFORE)]
    assert recorded.shapes == []
    assert found == [[1, 1], [2, 2], *([number, number] for number in range(4, 2 * BEFORE + 2))], "one was the try"


def test_what_depends_on_values_is_not_used() -> None:
    def steps(states: torch.Tensor) -> torch.Tensor:
        return states + 1 if states.sum() > 0 else states

    recorded = Recorded(Steps(steps, nn.Identity()))
    found = [recorded(torch.full((1,), value)).item() for value in (1.0, 1.0, -1.0, 1.0, 1.0, -1.0)]
    assert (found, recorded.shapes) == ([2, 2, -1, 2, 2, -1], [])


def test_what_cannot_be_recorded_runs_as_it_did() -> None:
    recorded = Recorded(Refusing())
    assert [recorded(torch.zeros(1)).item() for _ in range(2 * BEFORE)] == [1] * 2 * BEFORE
    assert recorded.shapes == []


@pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512",
    reason="this CPU lays nothing out",
)
def test_weights_that_were_laid_out_are_recorded_too() -> None:
    network = nn.Sequential(nn.Linear(32, 32), nn.GELU()).bfloat16()
    assert prepack(network) == 1
    recorded = Recorded(Steps(lambda states: network(states) + 1, network))
    with torch.inference_mode():
        for _ in range(BEFORE):
            recorded(torch.randn(3, 32, dtype=torch.bfloat16))
        states = torch.randn(3, 32, dtype=torch.bfloat16)
        assert recorded.shapes == [states.shape]
        assert torch.equal(recorded(states), network(states) + 1)


def test_the_builtin_image_encoder_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Recorded] = []

    def noted(recorded: Recorded, steps: nn.Module) -> None:
        made.append(recorded)
        plainly(recorded, steps)

    plainly = Recorded.__init__
    monkeypatch.setattr(Recorded, "__init__", noted)
    space = resolve(open_space("builtin"))
    embedder = space.members[Modality.IMAGE].load(1)
    assert isinstance(embedder.spec, ImageSpec)
    shape = (8 * (BEFORE + 1), embedder.spec.height, embedder.spec.width, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    first, again = (embedder.encode([Segment(image) for image in pixels]) for _ in range(2))
    assert [len(each.shapes) for each in made] == [1, 0], "pooled features, and no tokens"
    np.testing.assert_array_equal(first, again)


def test_threads_that_share_it_get_the_same_bits() -> None:
    recorded = Recorded(Counted())
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
