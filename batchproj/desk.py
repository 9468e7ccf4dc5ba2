"""Where workers report, and whoever watches the run asks."""

from __future__ import annotations

import threading
import time

from batchproj.errors import BatchprojError
from batchproj.news import News
from batchproj.stall import Doing


class Desk:
    """Where workers report; an actor, or in small runs shared by threads."""

    def __init__(self) -> None:
        self._done: dict[str, int] = {}
        self._spare: dict[tuple[str, str | None], int] = {}
        self._lines: list[str] = []
        self._failure: BatchprojError | None = None
        self._signs = 0
        self._doing: dict[tuple[str, int], tuple[str, float]] = {}
        self._lock = threading.Lock()

    def started(self, task: str, modality: str | None, pool: int) -> None:
        """One more worker than a pool of that size has replaces one that died."""
        with self._lock:
            self._signs += 1
            self._spare[task, modality] = self._spare.get((task, modality), -pool) + 1

    def at(self, where: str, thread: int, what: str | None) -> None:
        """A thread of a process has begun something, or is done with it."""
        with self._lock:
            self._signs += 1
            if what is None:
                self._doing.pop((where, thread), None)
            else:
                self._doing[where, thread] = (what, time.monotonic())

    def add(self, modality: str, items: int) -> None:
        with self._lock:
            self._signs += 1
            self._done[modality] = self._done.get(modality, 0) + items

    def say(self, line: str) -> None:
        with self._lock:
            self._signs += 1
            self._lines.append(line)

    def fail(self, error: BatchprojError) -> None:
        self._failure = self._failure or error

    def failure(self) -> BatchprojError | None:
        return self._failure

    def news(self) -> News:
        with self._lock:
            lines, self._lines = self._lines, []
            doing = [Doing(where, what, since) for (where, _), (what, since) in self._doing.items()]
            replaced = sum(max(0, spare) for spare in self._spare.values())
            return News(dict(self._done), replaced, lines, self._signs, doing, time.monotonic())
