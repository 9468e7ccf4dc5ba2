"""How an accelerator is kept busy: copies that nobody waits for, and steps recorded once and replayed.

What the host asks for is queued, and runs in the order it was asked for. So the host prepares the next batch while
the last one is worked on, as long as it does not wait for an answer. Small models take less time to run than their
many small steps take to be asked for: a CUDA graph asks for all of them at once. On a CPU each of these is the plain
thing, but for `replayed`.
Source: CUDA C++ Programming Guide, "Asynchronous Concurrent Execution" and "CUDA Graphs".
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from batchproj.recorded_steps import Recorded, Steps

log = logging.getLogger(__name__)

GRAPHS = 32
"""So many shapes of one function are recorded at most; each keeps its memory."""

_Shape = tuple[tuple[tuple[int, ...], torch.dtype], ...]


@cache
def device() -> torch.device:
    """The accelerator if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def is_apart() -> bool:
    """Whether models run on something else than the CPUs that decode, so that both work at once."""
    return device().type == "cuda"


def to_device(array: npt.NDArray[Any]) -> torch.Tensor:
    """A copy of an array on `device()`, not waited for; on a CPU the array itself."""
    return stacked([array])[0] if is_apart() else torch.from_numpy(array)


def stacked(arrays: Sequence[npt.NDArray[Any]]) -> torch.Tensor:
    """Equal shapes (...) -> (B, ...) on `device()`: by page-locked memory, on a stream beside the one that computes.

    Memory is given back to the allocators at once, and they lend it again when the copy is done.
    """
    if not is_apart():
        return torch.from_numpy(np.stack(arrays))
    held = _page_locked((len(arrays), *arrays[0].shape), arrays[0].dtype)
    np.stack(arrays, out=held.numpy())
    return _sent(held)


def filled(arrays: Sequence[npt.NDArray[Any]], length: int) -> torch.Tensor:
    """Arrays (N,) of up to `length` -> (B, length) on an accelerator, as `stacked`, zeros behind each: copied once."""
    held = _page_locked((len(arrays), length), arrays[0].dtype)
    for row, array in zip(held.numpy(), arrays, strict=True):
        row[: len(array)] = array
        row[len(array) :] = 0
    return _sent(held)


def _page_locked(shape: tuple[int, ...], dtype: np.dtype[Any]) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.from_numpy(np.empty(0, dtype)).dtype, pin_memory=True)


def _sent(held: torch.Tensor) -> torch.Tensor:
    computing = torch.cuda.current_stream()
    with torch.cuda.stream(_copies()):
        there = held.to(device(), non_blocking=True)
    computing.wait_stream(_copies())
    there.record_stream(computing)
    return there


@cache
def _copies() -> torch.cuda.Stream:
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


waiting_for_copies = threading.RLock()
"""Held by who copies and waits, as loading a model does, and by who has torch refuse that while it records."""


class Coming:
    """An output on its way from the accelerator to the host."""

    def __init__(self, output: torch.Tensor) -> None:
        self._held = torch.empty(output.shape, dtype=torch.float32, pin_memory=True)
        self._held.copy_(output.float(), non_blocking=True)
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._event.record()

    def arrived(self) -> npt.NDArray[np.float32]:
        """Wait for it; float32."""
        self._event.synchronize()
        return self._held.numpy().copy()  # page-locked memory is scarce, and rows may be kept for long


class Replayed:
    """A function of tensors that looks at their shapes alone: on an accelerator it is recorded, per shape, when the
    shape comes a second time, and replayed from then on. What cannot be recorded runs step by step.
    """

    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        self._function = function
        self._once: set[_Shape] = set()
        self._recorded: dict[_Shape, _Recorded | None] = {}
        self._lock = threading.Lock()

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        if not is_apart():
            return self._function(*inputs)
        shape = tuple((tuple(each.shape), each.dtype) for each in inputs)
        with self._lock:  # of threads that share it, one fills its inputs at a time
            if shape in self._once and shape not in self._recorded and len(self._recorded) < GRAPHS:
                self._recorded[shape] = _recorded(self._function, inputs)
            self._once.add(shape)
            recorded = self._recorded.get(shape)
            return self._function(*inputs) if recorded is None else recorded(inputs)


def replayed(function: Callable[[torch.Tensor], torch.Tensor], network: torch.nn.Module) -> Replayed | Recorded:
    """The same on CPUs as well, by another kind of record, for what is done by `network`."""
    return Replayed(function) if is_apart() else Recorded(Steps(function, network))


class _Recorded:
    """A graph, the inputs that it reads and the output that it overwrites each time."""

    def __init__(self, graph: torch.cuda.CUDAGraph, inputs: Sequence[torch.Tensor], output: torch.Tensor) -> None:
        self._graph, self._inputs, self._output = graph, inputs, output

    def __call__(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        self._graph.replay()
        return self._output.clone()


def _recorded(function: Callable[..., torch.Tensor], inputs: Sequence[torch.Tensor]) -> _Recorded | None:
    """None if the function asks something of the host in between; it has run once on such a shape."""
    graph, own, computing = torch.cuda.CUDAGraph(), [each.clone() for each in inputs], torch.cuda.current_stream()
    with waiting_for_copies:
        return _record(function, graph, own, computing)


def _record(
    function: Callable[..., torch.Tensor],
    graph: torch.cuda.CUDAGraph,
    own: Sequence[torch.Tensor],
    computing: torch.cuda.Stream,
) -> _Recorded | None:
    try:
        with _refusing_to_wait():  # a recording that fails leaves much to clear up
            function(*own)
    except RuntimeError as error:
        _say_why(error)
        return None
    memory = _memory()
    try:
        # other threads may take page-locked memory meanwhile
        with torch.cuda.graph(graph, pool=memory.handle, capture_error_mode="thread_local"):
            output = function(*own)
    except RuntimeError as error:
        torch.cuda.set_stream(computing)  # else the one that was recorded from stays the current one
        torch.cuda.synchronize()
        _give_up(memory, graph)
        _say_why(error)
        return None
    memory.keeper = memory.keeper or graph
    return _Recorded(graph, own, output)


def _say_why(error: RuntimeError) -> None:
    log.info("a step runs as it is, it cannot be recorded: %s", str(error).partition("\n")[0])


def _give_up(memory: _Memory, graph: torch.cuda.CUDAGraph) -> None:
    """After a recording that failed torch 2.11 believes that it still goes on: random numbers are an error then,
    and its memory is not to be had for others. Later versions clear up by themselves.
    """
    index = torch.cuda.current_device()
    with suppress(RuntimeError, AttributeError):  # torch has done it, or has another way to
        torch._C._cuda_endAllocateToPool(index, memory.handle)
    generator = torch.cuda.default_generators[index]
    generator.graphsafe_set_state(generator.clone_state())
    _memory.cache_clear()
    _failed.append(graph)


@contextmanager
def _refusing_to_wait() -> Iterator[None]:
    """What makes the host wait for the accelerator is a RuntimeError."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


_failed: list[torch.cuda.CUDAGraph] = []
"""Never freed: allocators may ask one of them whether it is still recorded."""


@dataclass
class _Memory:
    """Of graphs, and the first of them: torch refuses memory that no graph uses any more."""

    handle: Any
    keeper: torch.cuda.CUDAGraph | None = None


@cache
def _memory() -> _Memory:
    """Graphs share it, till a recording fails: they run one after another, and their outputs are copied before the next
    one runs."""
    return _Memory(torch.cuda.graph_pool_handle())
