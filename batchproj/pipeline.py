"""Units of work through Ray Data; beside `ray_training` the one module that knows Ray.

    to embed, per modality:    unit -> read (tasks) -> embed and write (actor pool) -> receipt
    to project, per modality:  unit -> read, project and write (actor pool) -> receipt
                               all branches joined by `union` into one execution

A row between stages is a whole unit (`unit_row`); pixels, samples and vectors stay inside the embed actor.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from typing import Any

from batchproj.collection.unit import Receipt, Unit
from batchproj.desk import Desk
from batchproj.errors import BatchprojError, TryLater
from batchproj.importing import importing
from batchproj.lanes import UNITS_AT_ONCE
from batchproj.metrics import RunMetrics
from batchproj.news import News, OnNews, noticing, polling
from batchproj.nodes import check_nodes
from batchproj.pools import PoolName, by_pool, pool_size
from batchproj.recipe import Pool
from batchproj.schema import Modality
from batchproj.stages import Embedding, Job, Projecting, Reader, label
from batchproj.stall import Stalled
from batchproj.unit_row import UNIT
from batchproj.worker_environment import WORKER_ENVIRONMENT

PROJECT_UNITS = 16
"""Units that keep one more projecting actor busy for longer than it takes to start."""

DESK_S = 3.0
"""How long the desk may take to answer: a signal must not wait for it for long."""

ITERATORS_S = {"iter_threaded": 5.0, "Prefetcher": 0.2}
"""Threads of Ray Data's that call Ray, and how long they may take to notice that nobody reads any more; of the second
kind some wait for ever, for a word that they have missed."""

IDLE_SETTING = ("RAY_idle_worker_killing_time_threshold_ms", "600000")
"""Ray's variable, and for how many milliseconds a process that has nothing to do is kept."""

CLOSING_S = 20.0
"""How long a session of Ray may take to end before a signal is answered all the same."""


@contextlib.contextmanager
def ray_session(verbose: bool) -> Iterator[None]:
    """A Ray of our own on this machine, or the cluster named by RAY_ADDRESS; gone afterwards.

    Nothing but errors of Ray is shown unless `verbose`: its warnings are about its own inside.
    """
    # read when ray is imported: leave CUDA_VISIBLE_DEVICES alone on actors without a GPU
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # on a cluster the share of a run that was killed stays reserved for so long: the run that resumes it would
    # encode on what is left and have no room for its writes; living runs renew theirs every ten seconds
    os.environ.setdefault("RAY_DATA_AUTOSCALING_REQUEST_EXPIRE_TIME_S", "30")
    for name, value in WORKER_ENVIRONMENT.items():  # inherited by local workers
        os.environ.setdefault(name, value)
    # read by the raylet: beside actors that hold its CPUs it ends processes that had no task for a second, and one that
    # reads has none while a unit is embedded
    os.environ.setdefault(*IDLE_SETTING)
    # read by all of Ray's processes: a tenth of what they take while they wait goes into times of their own events
    os.environ.setdefault("RAY_event_stats", "0")
    with importing():
        import ray
        from ray.data import DataContext

    if ray.is_initialized():
        yield
        return
    DataContext.get_current().enable_progress_bars = False
    if not verbose:
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # a failed task is raised here as well
    address = os.environ.get("RAY_ADDRESS") or "local"
    on_sigterm = signal.getsignal(signal.SIGTERM)
    # inherited by Ray's processes: a terminal that is closed tells its whole group, and it is for us to end them
    unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    with warnings.catch_warnings():
        # Ray starts its servers by fork and exec at once; Lance and LanceDB warn of forks that go on
        warnings.filterwarnings("ignore", message="lancedb fork support")
        warnings.filterwarnings("ignore", message="lance is not fork-safe")
        try:
            ray.init(
                address=address,
                include_dashboard=False if address == "local" else None,
                log_to_driver=verbose,
                logging_level=logging.INFO if verbose else logging.ERROR,
            )
        except Exception as error:  # Ray raises that very class when its processes do not come up in time
            ray.shutdown()
            raise TryLater(f"Ray did not start ({str(error)[:200]}); run the same command again") from error
        except KeyboardInterrupt:
            ray.shutdown()
            raise
        except SystemExit:  # of the handler that ray.init puts in the place of ours, for SIGTERM
            ray.shutdown()
            signal.signal(signal.SIGTERM, on_sigterm)
            signal.raise_signal(signal.SIGTERM)
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
    in_main = threading.current_thread() is threading.main_thread()
    if in_main:
        signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield
    finally:
        if in_main:
            _undisturbed(_close)
        else:
            _close()


def _close() -> None:
    """Shut Ray down when nobody calls it any more.

    Threads that hand on Ray Data's results end soon after their reader has left, and are not waited for there: one
    that calls Ray's core after its shutdown ends the whole process, with 1 and without a word.
    """
    import ray

    for name, patience_s in ITERATORS_S.items():
        deadline = time.monotonic() + patience_s
        for thread in threading.enumerate():
            if thread.name == name:
                thread.join(max(0.0, deadline - time.monotonic()))
    ray.shutdown()


def _undisturbed(close: Callable[[], None]) -> None:
    """Signals that come meanwhile are answered at the end.

    For SIGTERM Ray's core puts the default action in the place of the handler, below Python, and goes on for a second:
    the handler is put back within milliseconds.
    Who sends one to a session that does not end is answered after CLOSING_S.
    """
    came: set[int] = set()
    deadline = time.monotonic() + CLOSING_S
    stopping = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as `nohup` has it
        stopping.append(signal.SIGHUP)
    before = {number: signal.signal(number, lambda late, _: came.add(late)) for number in stopping}
    aside = ThreadPoolExecutor(1)
    try:
        closing = aside.submit(close)
        while not closing.done() and not (came and time.monotonic() > deadline):
            signal.signal(signal.SIGTERM, lambda late, _: came.add(late))
            wait([closing], timeout=0.001)
        if closing.done():
            closing.result()
    finally:
        aside.shutdown(wait=False)
        for number, handler in before.items():
            signal.signal(number, handler)
        for late in came:
            signal.raise_signal(late)


def run_units(job: Job, units: list[Unit], on_news: OnNews) -> Iterator[Receipt]:
    """Do the units, all modalities in one execution; receipts as they finish, in any order.

    Raises the BatchprojError of a worker as it was raised there. Needs a `ray_session`.
    """
    import ray

    if not units:
        return
    # it may be killed like any worker: then the counts begin anew, nothing else depends on it
    desk = ray.remote(num_cpus=0, max_restarts=-1)(Desk).remote()
    check_nodes(member.config.model for member in job.members.values())
    metrics = RunMetrics(job.folder.uri, job.live, units, label)
    groups = by_pool(job, units)
    branches = [_branch(job, pool, group, desk, list(groups)) for pool, group in groups.items()]
    results = branches[0].union(*branches[1:]) if len(branches) > 1 else branches[0]
    try:
        told = partial(_heard, metrics, on_news)
        with noticing(job.recipe.stall_s, told, _room) as heard, polling(asking(desk.news), heard):
            for row in results.iter_rows():
                receipt = Receipt.model_validate_json(row["receipt"])
                metrics.add(receipt)
                yield receipt
    except Stalled:
        raise
    except Exception as error:
        raise failure(desk) or error from error


def _heard(metrics: RunMetrics, on_news: OnNews, news: News) -> None:
    metrics.tell(news.replaced)
    on_news(news)


def _room() -> str:
    """What may keep workers from starting."""
    import ray

    has, free = ray.cluster_resources(), ray.available_resources()
    told = ", ".join(f"{name} {free.get(name, 0):g} of {has[name]:g} free" for name in ("CPU", "GPU") if name in has)
    return f"no worker is at anything ({told}): they may want more than there is, or be waiting for machines to start"


def _branch(job: Job, pool: PoolName, units: list[Unit], desk: Any, pools: list[PoolName]) -> Any:
    """The stages of one of these pools as a lazy dataset."""
    import ray

    task, modality = pool
    rows = [{UNIT: unit.model_dump_json()} for unit in units]
    source = ray.data.from_items(rows, override_num_blocks=len(rows))
    whole_units: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow", "zero_copy_batch": True}
    settings = _settings(job, modality)
    nodes = node_cpus(with_gpu=settings.gpus > 0 and task == "embed")
    cores = max(1, int(sum(nodes)))
    shared = sum(_workers(job, each, cores)[0] for each in pools)
    cpus = settings.cpus or reserved_cpus(nodes, shared, job.recipe.cpu_headroom)
    workers, threads = _workers(job, pool, cores)
    if task == "project":
        size = min(workers, math.ceil(len(units) / PROJECT_UNITS))
        return source.map_batches(
            Projecting,
            fn_constructor_args=(job, modality, size, desk),
            compute=ray.data.ActorPoolStrategy(size=size),
            num_cpus=cpus,
            **whole_units,
        )
    size = min(workers, len(units))
    reading = {"num_cpus": job.recipe.read.cpus, "memory": _bytes(job.recipe.read.memory_gib)}
    # each is a process that takes as long to start as a model, on the same cores
    read = source.map_batches(
        Reader(job, desk), compute=ray.data.TaskPoolStrategy(size=max(1, cores // 2)), **reading, **whole_units
    )
    return read.map_batches(
        Embedding,
        fn_constructor_args=(job, modality, threads, size, len(units) / size, desk),
        compute=_strategy(settings, size),
        num_cpus=cpus,
        num_gpus=settings.gpus or None,
        memory=_bytes(settings.memory_gib),
        resources=settings.resources or None,
        **whole_units,
    )


def _strategy(settings: Pool, size: int) -> Any:
    """How many workers a pool has: so many, or fewer that become so many while units wait."""
    import ray

    threads: dict[str, Any] = {"max_concurrent_calls_per_actor": UNITS_AT_ONCE, "enable_true_multi_threading": True}
    if settings.min_workers is None and settings.max_workers is None:
        # one more waits for its turn
        return ray.data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=UNITS_AT_ONCE + 1, **threads)
    return ray.data.ActorPoolStrategy(
        min_size=min(settings.min_workers or 1, size),
        max_size=size,
        max_tasks_in_flight_per_actor=2 * UNITS_AT_ONCE,  # Ray adds workers where 1.75 units and more want one place
        **threads,
    )


def _bytes(gib: float | None) -> int | None:
    return None if gib is None else int(gib * 2**30)


def _settings(job: Job, modality: Modality | None) -> Pool:
    return job.recipe.pools.get(modality, Pool()) if modality else Pool()


def _workers(job: Job, pool: PoolName, cores: int) -> tuple[int, int]:
    """Workers of a pool at most, and threads of each; projecting takes little, so a core each."""
    task, modality = pool
    if task == "project":
        return max(1, cores // len(job.members)), 1
    return pool_size(_settings(job, modality), len(job.members), cores)


def reserved_cpus(nodes: list[float], workers: int, headroom: float) -> float:
    """Logical CPUs that each of so many workers holds on nodes of so many CPUs: as many as let all of
    them fit, beside `headroom` for the tasks that read, when the largest node is lost.

    A worker that no node can take would be waited for for ever.
    """
    rooms = [cpus - headroom for cpus in sorted(nodes)[: max(1, len(nodes) - 1)]]
    shares = {math.floor(room / count * 100) / 100 for room in rooms for count in range(1, workers + 1)}
    fitting = [s for s in shares if s > 0 and sum(int(room / s + 1e-9) for room in rooms) >= workers]
    return max(fitting, default=0.01)


def node_cpus(with_gpu: bool) -> list[float]:
    """Logical CPUs of every node that may run such work: a head node often offers none."""
    import ray

    offered = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fit = [each["CPU"] for each in offered if each.get("CPU", 0) >= 1 and (each.get("GPU", 0) > 0 or not with_gpu)]
    return fit or [1.0]


def asking(method: Any) -> Callable[[], Any]:
    """Calls a method of a desk, an actor; None where it does not answer, for a progress line is not worth a run."""
    import ray

    def ask() -> Any:
        with contextlib.suppress(ray.exceptions.RayError):
            return ray.get(method.remote(), timeout=DESK_S)
        return None

    return ask


def failure(desk: Any) -> BatchprojError | None:
    """The error of ours that a worker ended with, if it was one."""
    import ray

    with contextlib.suppress(ray.exceptions.RayError):
        found: BatchprojError | None = ray.get(desk.failure.remote(), timeout=DESK_S)
        return found
    return None
