"""What takes less time than Ray takes to start is done by the command itself: a few items, and projecting alone."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from queue import SimpleQueue
from typing import Any

import pyarrow as pa

from batchproj.collection.unit import Receipt, Unit
from batchproj.desk import Desk
from batchproj.news import OnNews, noticing, polling
from batchproj.pools import by_pool, pool_size
from batchproj.recipe import Pool
from batchproj.schema import Modality
from batchproj.stages import Embedding, Job, Projecting, Reader
from batchproj.unit_row import unit_row
from batchproj.worker_environment import PATIENT_THREADS

MOST_ITEMS = 400
MOST_PROJECTED = 300_000
"""Items whose pooled features are projected again: 100,000 with 384 numbers take some three seconds on two cores."""


def is_small(job: Job, units: list[Unit]) -> bool:
    """Whether there is nothing to spread: few items, one unit of a kind, whatever is projected, and no word on how
    pools should be."""
    embedded = [unit for unit in units if unit.task == "embed"]
    kinds = {(unit.modality, unit.again) for unit in embedded}
    few = sum(unit.items for unit in embedded) <= MOST_ITEMS and len(kinds) == len(embedded)
    is_quick = sum(_weight(job, unit) for unit in units if unit.task == "project") <= MOST_PROJECTED
    return few and is_quick and not job.recipe.pools and not is_ray_asked_for()


def _weight(job: Job, unit: Unit) -> float:
    """Items of a unit to project, by what they may be at most: of tokens there is far more to read and to compute."""
    assert unit.modality is not None, "what is projected has an encoder"
    return unit.items * (1 if job.members[unit.modality].cache == "pooled" else MOST_PROJECTED / MOST_ITEMS)


def is_ray_asked_for() -> bool:
    """Whether a cluster is named, or a session of Ray is open already."""
    ray = sys.modules.get("ray")
    return bool(os.environ.get("RAY_ADDRESS")) or (ray is not None and ray.is_initialized())


def run_here(job: Job, units: list[Unit], on_news: OnNews) -> Iterator[Receipt]:
    """Do the units in this process, those to embed one after the other; the same stages, and so the same files.

    In a thread of their own: one that hangs in a read, of a mount that is away, must not keep a signal or the end of a
    run that stalls from getting through. Raises what a worker would.
    """
    # as for workers of Ray, and read when torch is first imported: threads that wait must not spin
    os.environ.setdefault(*PATIENT_THREADS)
    desk, done, is_over = Desk(), SimpleQueue[Receipt | BaseException | None](), threading.Event()

    def work() -> None:
        try:
            for receipt in _receipts(job, units, _Called(desk)):
                done.put(receipt)
                if is_over.is_set():
                    return
            done.put(None)
        except BaseException as error:
            done.put(error)

    with noticing(job.recipe.stall_s, on_news, lambda: "the command waits") as heard, polling(desk.news, heard):
        threading.Thread(target=work, name="units").start()
        try:
            while (found := done.get()) is not None:
                if isinstance(found, BaseException):
                    raise found
                yield found
        finally:
            is_over.set()


def _receipts(job: Job, units: list[Unit], desk: Any) -> Iterator[Receipt]:
    for pool, group in by_pool(job, units).items():
        task, modality = pool
        if task == "embed":
            _, threads = pool_size(Pool(), len(job.members), os.cpu_count() or 1)
            read, embed = Reader(job, desk), Embedding(job, modality, threads, 1, 1, desk, has_own_process=False)
            for unit in group:
                yield _receipt(embed(read(unit_row(unit))))
        else:
            assert modality is not None, "what is projected has an encoder"
            yield from _projected(job, modality, group, desk)


def _projected(job: Job, modality: Modality, group: list[Unit], desk: Any) -> Iterator[Receipt]:
    """By as many threads as there are cores, in any order: an error must not wait for a read that hangs."""
    import torch

    before = torch.get_num_threads()
    project, pool = Projecting(job, modality, 1, desk), ThreadPoolExecutor(os.cpu_count(), "project")
    try:
        for done in as_completed([pool.submit(project, unit_row(unit)) for unit in group]):
            yield _receipt(done.result())
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        torch.set_num_threads(before)


def _receipt(batch: pa.Table) -> Receipt:
    return Receipt.model_validate_json(batch["receipt"][0].as_py())


class _Called:
    """A desk in this process, called as one in another is."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def __getattr__(self, name: str) -> _Method:
        return _Method(getattr(self._desk, name))


class _Method:
    def __init__(self, method: Callable[..., None]) -> None:
        self.remote = method
