"""Pools of workers: which units each does, and how large it is on so many cores."""

from __future__ import annotations

from batchproj.collection.unit import Task, Unit
from batchproj.recipe import Pool
from batchproj.schema import Modality
from batchproj.stages import Job

PoolName = tuple[Task, Modality | None]


def by_pool(job: Job, units: list[Unit]) -> dict[PoolName, list[Unit]]:
    """Units by the pool of workers that does them; without an encoder all modalities share one."""
    groups: dict[PoolName, list[Unit]] = {}
    for unit in units:
        modality = unit.modality if unit.modality in job.members else None
        groups.setdefault((unit.task, modality), []).append(unit)
    return groups


def pool_size(settings: Pool, modalities: int, cores: int) -> tuple[int, int]:
    """Workers and threads per worker of one of so many modalities: the recipe's, or the cores divided up.

    Small machines give each modality one worker that may use all cores: modalities finish at
    different times, and a worker with fewer threads would leave cores idle at the end.
    """
    threads = settings.threads or min(4, cores)
    workers = (
        settings.max_workers
        or settings.workers
        or settings.min_workers
        or max(1, cores // (threads * max(1, modalities)))
    )
    return workers, threads
