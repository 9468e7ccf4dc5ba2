"""How many requests are worked on at once: some in threads, some more wait, the others are told to come again."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.to_thread
from fastapi import HTTPException

from batchproj.serve.guards import RETRY_S

T = TypeVar("T")


class Admission:
    """For work of one kind, on the event loop of one server."""

    def __init__(self, most: int, threads: int, seconds: float) -> None:
        """`most` are in work or wait, `threads` of them at once, each `seconds` at most from when it came."""
        self._most, self._threads, self._seconds = most, threads, seconds
        self._limiter: anyio.CapacityLimiter | None = None
        self.admitted = 0

    async def run(self, work: Callable[[], T]) -> T:
        """Work in a thread; raises HTTPException 429 if there are too many, 503 if it takes too long.

        Work that is given up before it began is not done. Begun, it goes on until its end, and holds its place until
        then: threads cannot be stopped.
        """
        if self.admitted >= self._most:
            raise HTTPException(429, "too many requests at once; try again", headers={"Retry-After": str(RETRY_S)})
        self.admitted += 1
        self._limiter = self._limiter or anyio.CapacityLimiter(self._threads)
        turn = threading.Lock()  # whoever has it first: the thread to begin, or we to give up

        def begun() -> T:
            if not turn.acquire(blocking=False):
                raise asyncio.CancelledError
            return work()

        task = asyncio.ensure_future(anyio.to_thread.run_sync(begun, limiter=self._limiter))
        task.add_done_callback(self._leave)
        try:
            return await asyncio.wait_for(asyncio.shield(task), self._seconds)
        except TimeoutError:
            if turn.acquire(blocking=False):
                task.cancel()
            raise HTTPException(
                503, f"it took longer than {self._seconds:g} s", headers={"Retry-After": str(RETRY_S)}
            ) from None

    def _leave(self, task: asyncio.Future[T]) -> None:
        self.admitted -= 1
        if not task.cancelled():
            task.exception()  # it was told to who waited, or nobody does any more
