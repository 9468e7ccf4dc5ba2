"""A model's operators one after the other, with no Python between them.

Threads that compute side by side wait for their turn at Python before each of a batch's hundreds of operators, and for
whoever decodes or writes meanwhile: two lanes of MiniLM did 1.2 to 1.4 times as much without it, with the same bits
(`benchmarks/techniques.py recorded-text`). `torch.compile` would want a C++ compiler on every machine.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache, wraps
from typing import Any

import torch
from torch import nn

log = logging.getLogger(__name__)

_tracing = threading.Lock()
"""torch keeps what it traces in a place of the process."""

AFTER = 16
"""Batches of one shape before it is recorded: that takes as long as ten batches of a small model."""

PROOFS = 3
"""Batches whose bits a record must give before it is used: steps that depend on values mostly show by others."""


def _hush() -> None:
    """torch warns at every use of what nothing else of it does as yet, and of every size that is a number in Python.
    Not by a context, which would take another thread's filters with it."""
    warnings.filterwarnings("ignore", message=r"`torch\.jit\.", category=FutureWarning)
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]


def branching(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """For one with loops or branches: it stays what it is in a record, and is not laid down as it ran once.

    So it may use what TorchScript knows of Python.
    """

    @wraps(function)
    def call(*inputs: Any) -> torch.Tensor:
        found: torch.Tensor = (_compiled(function) if _is_recording() else function)(*inputs)
        return found

    return call


def _is_recording() -> bool:
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


@cache
def _compiled(function: Callable[..., torch.Tensor]) -> Any:
    _hush()
    return torch.jit.script(function)


class Steps(nn.Module):
    """A function that lets `network` compute: a record refers to the weights of modules, and copies all others."""

    def __init__(self, function: Callable[..., torch.Tensor], network: nn.Module) -> None:
        super().__init__()
        self._function, self.network = function, network

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self._function(*inputs)


class Recorded:
    """Calls `steps` until it has a record for inputs of that shape, which is used once it gave the same bits for the
    inputs of `PROOFS` batches.

    What `steps` do may depend on the first input's shape, on its tensors' values only within `branching` functions.
    """

    def __init__(self, steps: nn.Module) -> None:
        self._steps = steps
        self._calls: Counter[torch.Size] = Counter()
        self._tried: dict[torch.Size, Any] = {}
        self._proven: dict[torch.Size, Any] = {}
        self._trying = threading.Lock()

    @property
    def shapes(self) -> list[torch.Size]:
        """Of which there is a record in use."""
        return list(self._proven)

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        shape = inputs[0].shape
        if (record := self._proven.get(shape)) is not None:
            return _played(record, inputs)
        found: torch.Tensor = self._steps(*inputs)
        if self._trying.acquire(blocking=False):
            try:
                self._try(shape, inputs, found)
            finally:
                self._trying.release()
        return found

    def rehearse(self, batches: Iterable[tuple[torch.Tensor, ...]]) -> None:
        """Record and prove by these, `PROOFS` of one shape, and not by the first ones that come; if it can be done."""
        try:
            for inputs in batches:
                self._calls[inputs[0].shape] = max(self._calls[inputs[0].shape], AFTER - 1)
                self(*inputs)
        except Exception as error:  # over made-up inputs: real ones will tell
            log.info("steps are not rehearsed: %s", str(error).partition("\n")[0][:200])

    def _try(self, shape: torch.Size, inputs: tuple[torch.Tensor, ...], expected: torch.Tensor) -> None:
        """A step on the way to a record in use; whatever goes wrong on it, there is none, and Python goes on."""
        self._calls[shape] += 1
        proofs = self._calls[shape] - AFTER
        try:
            if proofs == 0:
                self._tried[shape] = _traced(self._steps, inputs)
            record = self._tried.get(shape)
            if record is None:
                return
            if not torch.equal(_played(record, inputs), expected):
                raise ValueError("a record gives other bits")
            if proofs == PROOFS - 1:
                self._proven[shape] = record
        except Exception as error:
            self._tried[shape] = None
            log.info("steps are not recorded: %s", str(error).partition("\n")[0][:200])


def _traced(steps: nn.Module, inputs: tuple[torch.Tensor, ...]) -> Any:
    _hush()
    with _tracing:
        return torch.jit.trace(steps, inputs, check_trace=False)  # type: ignore[no-untyped-call]


def _played(record: Any, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """As they are: operators that are joined could round otherwise."""
    with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
        found: torch.Tensor = record(*inputs)
    return found
