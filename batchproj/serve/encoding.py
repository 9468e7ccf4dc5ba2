"""Queries of many requests through one model: those that come within a few milliseconds are one batch."""

from __future__ import annotations

import hashlib
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from batchproj.bounded_cache import BoundedCache
from batchproj.decode.limits import Limits
from batchproj.media import Segment
from batchproj.queries import Example, QueryEncoder, Vector
from batchproj.serve.metrics import Metrics
from batchproj.space import Member

MOST_SEGMENTS = 64
"""In one batch: a query waits for no more than these."""

CACHE_BYTES = 32 * 2**20
_KEY_BYTES = 200


@dataclass
class _Job:
    member: Member
    segments: Sequence[Segment]
    done: Future[Vector] = field(default_factory=Future)


class BatchingEncoder(QueryEncoder):
    """One thread runs the models; vectors of the last queries are kept, by what made them."""

    def __init__(self, threads: int, limits: Limits, window_s: float, metrics: Metrics) -> None:
        super().__init__(threads, limits)
        self._window_s, self._metrics = window_s, metrics
        self._jobs: queue.Queue[_Job | None] = queue.Queue()
        self._known: BoundedCache[Vector] = BoundedCache(CACHE_BYTES)
        self._thread = threading.Thread(target=self._work, name="batchproj-encoder", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Let the thread end."""
        self._jobs.put(None)
        self._thread.join()

    def vector(self, member: Member, example: Example) -> Vector:
        asked = (example.data if example.data is not None else (example.text or "").encode()) or b""
        key = (member.vector_fp, example.data is None, hashlib.sha256(asked).digest())
        if (known := self._known.get(key)) is not None:
            self._metrics.cached.inc()
            return known
        made = super().vector(member, example)
        made.setflags(write=False)
        self._known.put(key, made, made.nbytes + _KEY_BYTES)
        return made

    def vectors(self, member: Member, segments: Sequence[Segment]) -> Vector:
        job = _Job(member, segments)
        self._jobs.put(job)
        return job.done.result()

    def _work(self) -> None:
        held: _Job | None = None
        while True:
            first = held or self._jobs.get()
            if first is None:
                return
            batch, held = self._together(first)
            self._encode(batch)

    def _together(self, first: _Job) -> tuple[list[_Job], _Job | None]:
        """Jobs for the same model that are there within the window, and one for another model."""
        batch, until = [first], time.monotonic() + self._window_s
        while sum(len(job.segments) for job in batch) < MOST_SEGMENTS:
            try:
                job = self._jobs.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                return batch, None
            if job is None:
                self._jobs.put(None)  # for the turn after this one
                return batch, None
            if job.member.vector_fp != first.member.vector_fp:
                return batch, job
            batch.append(job)
        return batch, None

    def _encode(self, batch: list[_Job]) -> None:
        begun = time.perf_counter()
        try:
            vectors = super().vectors(batch[0].member, [each for job in batch for each in job.segments])
        except BaseException as error:
            if len(batch) == 1:
                batch[0].done.set_exception(error)
                return
            for job in batch:  # one of them is at fault, the others are not to be told so
                self._encode([job])
            return
        self._metrics.encoding.observe(time.perf_counter() - begun)
        self._metrics.batch.observe(len(batch))
        ends = np.cumsum([len(job.segments) for job in batch])[:-1]
        for job, own in zip(batch, np.split(vectors, ends), strict=True):
            job.done.set_result(own)
