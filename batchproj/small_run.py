"""A few items are done by the command itself: Ray takes longer to start than they take."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

from batchproj.collection.unit import Receipt, Unit
from batchproj.news import OnNews, noticing, polling
from batchproj.pipeline import PoolName, by_pool, is_ray_asked_for, pool_size
from batchproj.recipe import Pool
from batchproj.stages import Desk, Embedding, Job, Projecting, Reader, Writer

MOST_ITEMS = 200


def is_small(job: Job, units: list[Unit]) -> bool:
    """Whether there is nothing to spread: few items, one unit a pool, and no word on how pools should be."""
    few = sum(unit.items for unit in units) <= MOST_ITEMS and len(by_pool(job, units)) == len(units)
    return few and not job.recipe.pools and not is_ray_asked_for()


def run_here(job: Job, units: list[Unit], on_news: OnNews) -> Iterator[Receipt]:
    """Do the units one after the other in this process; the same stages, and so the same files.

    Raises what a worker would.
    """
    # as for workers of Ray, and read when torch is first imported: threads that wait must not spin
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    desk = Desk()
    called = _Called(desk)
    with noticing(job.recipe.stall_s, on_news, lambda: "the command waits") as heard, polling(desk.news, heard):
        for pool, group in by_pool(job, units).items():
            work = _worker(job, pool, called)
            for unit in group:
                batch = work(pa.table({"unit": [unit.model_dump_json()]}))
                yield Receipt.model_validate_json(batch["receipt"][0].as_py())


def _worker(job: Job, pool: PoolName, desk: Any) -> Callable[[pa.Table], pa.Table]:
    task, modality = pool
    if task == "project":
        assert modality is not None, "what is projected has an encoder"
        return Projecting(job, modality, 1, desk)
    _, threads = pool_size(Pool(), len(job.members), os.cpu_count() or 1)
    read, embed, write = Reader(job, desk), Embedding(job, modality, threads, 1, False, desk), Writer(job, desk)
    return lambda batch: write(embed(read(batch)))


class _Called:
    """A desk in this process, called as one in another is."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def __getattr__(self, name: str) -> _Method:
        return _Method(getattr(self._desk, name))


class _Method:
    def __init__(self, method: Callable[..., None]) -> None:
        self.remote = method
