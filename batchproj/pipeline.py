"""Units of work through Ray Data; beside `ray_training` the one module that knows Ray.

    to embed, per modality:    unit -> read (tasks) -> embed (actor pool) -> write (tasks) -> receipt
    to project, per modality:  unit -> read, project and write (actor pool) -> receipt
                               all branches joined by `union` into one execution

A row between stages is a whole unit: its description and its compressed bytes as one Arrow IPC
buffer, so that Ray never splits it; pixels and samples stay inside the embed actor.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
import re
import signal
import socket
import struct
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from batchproj import retry
from batchproj.collection import layout
from batchproj.collection.cache import known_features
from batchproj.collection.unit import (
    Output,
    Receipt,
    Task,
    Unit,
    finish,
    read_inputs,
    read_receipt,
    read_rows,
    write_features,
    write_part,
)
from batchproj.errors import BatchprojError, ItemFault, SpaceError, TryLater, UsageError, WeightsError
from batchproj.failpoint import failpoint
from batchproj.metrics import RunMetrics
from batchproj.nodes import check_nodes
from batchproj.objectstore import GONE, Folder
from batchproj.recipe import Pool, Recipe, Tasks
from batchproj.schema import Modality, Reason
from batchproj.source.reading import read_items
from batchproj.space import Member

PROJECT_UNITS = 16
"""Units that keep one more projecting actor busy for longer than it takes to start."""

POLL_S = 0.5
DESK_S = 3.0
"""How long the desk may take to answer: a signal must not wait for it for long."""


@dataclass(frozen=True)
class News:
    """How the workers get on: items done so far by modality, workers that died and were replaced
    so far, and what they have to say since the last time."""

    done: dict[str, int]
    replaced: int
    lines: list[str]


OnNews = Callable[[News], None]


@dataclass(frozen=True)
class Job:
    """What every worker of a run is told; small enough to be pickled to each."""

    folder: Folder
    dim: int
    members: dict[Modality, Member]
    recipe: Recipe
    live: str | None = None  # the run that readers see meanwhile

    @property
    def in_space(self) -> frozenset[Modality]:
        return frozenset(self.members)


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
    # inherited by local workers: encoders of several modalities share the cores, waiting threads must not spin
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
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
    in_main = threading.current_thread() is threading.main_thread()
    if in_main:
        signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield
    finally:
        with _held_back(signal.SIGTERM) if in_main else contextlib.nullcontext():
            ray.shutdown()
            if in_main:
                signal.signal(signal.SIGTERM, on_sigterm)  # Ray puts the default in its place


@contextlib.contextmanager
def _held_back(number: signal.Signals) -> Iterator[None]:
    """A signal that comes meanwhile is delivered at the end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run_units(job: Job, units: list[Unit], on_news: OnNews) -> Iterator[Receipt]:
    """Do the units, all modalities in one execution; receipts as they finish, in any order.

    Raises the BatchprojError of a worker as it was raised there. Needs a `ray_session`.
    """
    import ray

    if not units:
        return
    # it may be killed like any worker: then the counts begin anew, nothing else depends on it
    desk = ray.remote(num_cpus=0, max_restarts=-1)(_Desk).remote()
    check_nodes(member.config.model for member in job.members.values())
    metrics = RunMetrics(job.folder.uri, job.live, units, label)
    groups = _by_pool(job, units)
    branches = [_branch(job, pool, group, desk, list(groups)) for pool, group in groups.items()]
    results = branches[0].union(*branches[1:]) if len(branches) > 1 else branches[0]
    try:
        with polling(desk.news, lambda news: _heard(news, metrics, on_news)):
            for row in results.iter_rows():
                receipt = Receipt.model_validate_json(row["receipt"])
                metrics.add(receipt)
                yield receipt
    except Exception as error:
        raise failure(desk) or error from error


def _heard(news: News, metrics: RunMetrics, on_news: OnNews) -> None:
    metrics.replaced(news.replaced)
    on_news(news)


_Pool = tuple[Task, Modality | None]


def _by_pool(job: Job, units: list[Unit]) -> dict[_Pool, list[Unit]]:
    """Units by the pool of workers that does them; without an encoder all modalities share one."""
    groups: dict[_Pool, list[Unit]] = {}
    for unit in units:
        modality = unit.modality if unit.modality in job.members else None
        groups.setdefault((unit.task, modality), []).append(unit)
    return groups


def _branch(job: Job, pool: _Pool, units: list[Unit], desk: Any, pools: list[_Pool]) -> Any:
    """The stages of one of these pools as a lazy dataset."""
    import ray

    task, modality = pool
    rows = [{"unit": unit.model_dump_json()} for unit in units]
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
            _ProjectActor,
            fn_constructor_args=(job, modality, size, desk),
            compute=ray.data.ActorPoolStrategy(size=size),
            num_cpus=cpus,
            **whole_units,
        )
    size = min(workers, len(units))
    read = source.map_batches(_Reader(job, desk), **_held_by(job.recipe.read), **whole_units)
    embedded = read.map_batches(
        _EmbedActor,
        fn_constructor_args=(job, modality, threads, size, desk),
        compute=_strategy(settings, size),
        num_cpus=cpus,
        num_gpus=settings.gpus or None,
        memory=_bytes(settings.memory_gib),
        resources=settings.resources or None,
        **whole_units,
    )
    return embedded.map_batches(_Writer(job, desk), **_held_by(job.recipe.write), **whole_units)


def _strategy(settings: Pool, size: int) -> Any:
    """How many workers a pool has: so many, or fewer that become so many while units wait."""
    import ray

    if settings.min_workers is None and settings.max_workers is None:
        return ray.data.ActorPoolStrategy(size=size)
    return ray.data.ActorPoolStrategy(min_size=min(settings.min_workers or 1, size), max_size=size)


def _held_by(tasks: Tasks) -> dict[str, Any]:
    return {"num_cpus": tasks.cpus, "memory": _bytes(tasks.memory_gib)}


def _bytes(gib: float | None) -> int | None:
    return None if gib is None else int(gib * 2**30)


def _settings(job: Job, modality: Modality | None) -> Pool:
    return job.recipe.pools.get(modality, Pool()) if modality else Pool()


def _workers(job: Job, pool: _Pool, cores: int) -> tuple[int, int]:
    """Workers of a pool at most, and threads of each; projecting takes little, so a core each."""
    task, modality = pool
    if task == "project":
        return max(1, cores // len(job.members)), 1
    return pool_size(_settings(job, modality), len(job.members), cores)


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


def reserved_cpus(nodes: list[float], workers: int, headroom: float) -> float:
    """Logical CPUs that each of so many workers holds on nodes of so many CPUs: as many as let all of
    them fit, beside `headroom` for the tasks that read and write, when the largest node is lost.

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


@contextlib.contextmanager
def polling(look: Any, on_news: Callable[[Any], None]) -> Iterator[None]:
    """Pass on what a method of a desk, an actor, gives, now and then while the body runs and once after it."""
    import ray

    stop = threading.Event()

    def poll() -> None:
        while not stop.wait(POLL_S):
            with contextlib.suppress(ray.exceptions.RayError):  # a progress line is not worth a run
                on_news(ray.get(look.remote(), timeout=DESK_S))

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    with contextlib.suppress(ray.exceptions.RayError):
        on_news(ray.get(look.remote(), timeout=DESK_S))


def label(unit: Unit) -> str:
    """What progress counts a unit under: the modality its names promise, if they promise any."""
    return str(unit.modality or "unclear")


class _Desk:
    """Where workers report; an actor."""

    def __init__(self) -> None:
        self._done: dict[str, int] = {}
        self._spare: dict[tuple[str, str | None], int] = {}
        self._lines: list[str] = []
        self._failure: BatchprojError | None = None

    def started(self, task: str, modality: str | None, pool: int) -> None:
        """One more worker than a pool of that size has replaces one that died."""
        self._spare[task, modality] = self._spare.get((task, modality), -pool) + 1

    def add(self, modality: str, items: int) -> None:
        self._done[modality] = self._done.get(modality, 0) + items

    def say(self, line: str) -> None:
        self._lines.append(line)

    def fail(self, error: BatchprojError) -> None:
        self._failure = self._failure or error

    def failure(self) -> BatchprojError | None:
        return self._failure

    def news(self) -> News:
        lines, self._lines = self._lines, []
        return News(dict(self._done), sum(max(0, spare) for spare in self._spare.values()), lines)


@contextlib.contextmanager
def _reporting(job: Job, desk: Any) -> Iterator[None]:
    """In a worker process: the run's patience with the store, and a line to the desk while it is tried."""
    retry.configure(job.recipe.retry_s)
    with retry.watch_pauses(lambda line: desk.say.remote(line)):
        try:
            yield
        except BatchprojError as error:
            desk.fail.remote(error)  # on its way through Ray it would lose its type
            raise


@contextlib.contextmanager
def _loading(member: Member | None) -> Iterator[None]:
    """Whatever a library makes of a model that it cannot load, said in one line: Ray would try on and on."""
    try:
        yield
    except WeightsError as error:
        raise WeightsError(f"{error} (on {socket.gethostname()})") from error
    except BatchprojError:
        raise
    except Exception as error:
        what = f"the encoder of {member.modality}, {member.config.model}," if member else "a worker"
        said = " ".join(str(error).split())[:300]
        raise SpaceError(
            f"{what} cannot be loaded on {socket.gethostname()}: {type(error).__name__}: {said}"
        ) from error


_NO_MEMORY = re.compile(r"out of memory|can(no|')t allocate", re.IGNORECASE)


@contextlib.contextmanager
def _remembering() -> Iterator[None]:
    """Want of memory, the machine's or the accelerator's, said in one line: it is no item's fault."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError) or _NO_MEMORY.search(str(error))):
            raise
        said = " ".join(str(error).split())[:200]
        raise UsageError(
            f"a worker ran out of memory: {type(error).__name__}: {said}; nothing was made visible; let fewer workers "
            "run at once, or make units smaller (`pools`, `units.max_items` in the recipe)"
        ) from error


def failure(desk: Any) -> BatchprojError | None:
    """The error of ours that a worker ended with, if it was one."""
    import ray

    with contextlib.suppress(ray.exceptions.RayError):
        found: BatchprojError | None = ray.get(desk.failure.remote(), timeout=DESK_S)
        return found
    return None


class _Reader:
    """Task: a unit's inputs and the bytes of its items."""

    def __init__(self, job: Job, desk: Any) -> None:
        self._job = job
        self._desk = desk

    def __call__(self, batch: pa.Table) -> pa.Table:
        with _reporting(self._job, self._desk):
            return self._read_unit(batch)

    def _read_unit(self, batch: pa.Table) -> pa.Table:
        unit = Unit.model_validate_json(batch["unit"][0].as_py())
        items = self._with_bytes(read_inputs(self._job.folder, unit))
        known = self._known(unit, items)
        return _row(unit, [items.drop_columns("known"), *([known] if known is not None else [])])

    def _with_bytes(self, inputs: pa.Table) -> pa.Table:
        recipe = self._job.recipe
        found = read_items(inputs.to_pylist(), recipe.limits.item_bytes, recipe.read_threads)
        read = [(b"", each) if isinstance(each, ItemFault) else (each, None) for each in found]
        digests = ["" if fault else hashlib.sha256(data).hexdigest() for data, fault in read]
        return (
            inputs.append_column("data", pa.array([data for data, _ in read], pa.large_binary()))
            .append_column("content_id", pa.array(digests, pa.string()))
            .append_column("reason", pa.array([fault.reason if fault else None for _, fault in read], pa.string()))
            .append_column("detail", pa.array([fault.detail if fault else None for _, fault in read], pa.string()))
        )

    def _known(self, unit: Unit, items: pa.Table) -> pa.Table | None:
        """Cached features of those items whose bytes turn out to be embedded already."""
        if unit.modality is None or unit.modality not in self._job.members:
            return None
        wanted = {
            content["content_id"]: content["features"]
            for read, contents in zip(items["content_id"].to_pylist(), items["known"].to_pylist(), strict=True)
            for content in contents or []
            if content["content_id"] == read and content["modality"] == unit.modality
        }
        return known_features(self._job.folder, self._job.members[unit.modality].feature_fp, wanted)


class _EmbedActor:
    """Actor: loads one modality's encoder once, then embeds unit after unit."""

    def __init__(self, job: Job, modality: Modality | None, threads: int, pool: int, desk: Any) -> None:
        self._job = job
        self._desk = desk
        desk.started.remote("embed", modality, pool)
        member = job.members.get(modality) if modality else None
        with _reporting(job, desk), _loading(member):
            # only here: the processes that read and write must not wait for models' and codecs' imports
            from batchproj.embedding import UnitWorker

            self._worker = UnitWorker(member, job.dim, job.in_space, job.recipe.limits, threads)
            self._worker.load()

    def __call__(self, batch: pa.Table) -> pa.Table:
        unit = Unit.model_validate_json(batch["unit"][0].as_py())
        tables = _tables(batch)
        failpoint("unit.begun")
        began, started = time.time(), time.monotonic()
        with _reporting(self._job, self._desk), _remembering():
            output = self._embed(unit, tables)
        work = _Work(output.encoded, output.copied, time.monotonic() - started, output.model_s, began, _node())
        return _row(unit, [output.vectors, output.features, output.outcome, pa.Table.from_pylist([asdict(work)])])

    def _embed(self, unit: Unit, tables: list[pa.Table]) -> Output:
        from batchproj.decoding import Fetched

        items = [
            Fetched.of_row(
                row,
                row["data"],
                row["content_id"],
                ItemFault(Reason(row["reason"]), row["detail"]) if row["reason"] else None,
            )
            for row in tables[0].to_pylist()
        ]
        known = tables[1] if len(tables) > 1 else None
        output = self._worker.embed(unit, items, known, lambda done: self._report(unit, done))
        if line := misnamed_line(output.outcome, {item.item: item.uri for item in items}):
            self._desk.say.remote(line)
        return output

    def _report(self, unit: Unit, items: int) -> None:
        self._desk.add.remote(label(unit), items)


def misnamed_line(outcome: pa.Table, uris: dict[str, str]) -> str | None:
    """What to say of a unit's items that are embedded although they are not what their names promise."""
    noted = [row for row in outcome.to_pylist() if row["status"] == "embedded" and row["detail"]]
    if not noted:
        return None
    more = f", and {len(noted) - 1:,} more beside it" if len(noted) > 1 else ""
    return f"warning: {uris[noted[0]['item']]} is {noted[0]['detail']}; embedded as what it is{more}"


class _ProjectActor:
    """Actor: projects units of cached features.

    It reads and writes them itself: there is little to compute, and processes for that alone would take
    longer to start.
    """

    def __init__(self, job: Job, modality: Modality, pool: int, desk: Any) -> None:
        self._job = job
        self._member = job.members[modality]
        self._desk = desk
        desk.started.remote("project", modality, pool)

    def __call__(self, batch: pa.Table) -> pa.Table:
        unit = Unit.model_validate_json(batch["unit"][0].as_py())
        failpoint("unit.begun")
        with _reporting(self._job, self._desk):
            receipt = read_receipt(self._job.folder, unit) or self._project(unit)
        return pa.table({"receipt": [receipt.model_dump_json()]})

    def _project(self, unit: Unit) -> Receipt:
        from batchproj.embedding import project_unit  # as in _EmbedActor

        assert unit.cached is not None, unit
        began, started = time.time(), time.monotonic()
        folder = self._job.folder
        inputs = read_inputs(folder, unit)
        cached = read_rows(folder, layout.features(self._member.feature_fp, unit.cached), unit.cached_sha256)
        output = project_unit(unit, self._member, inputs, cached)
        self._desk.add.remote(label(unit), unit.items)
        return _written(self._job, unit, output, _Work(0, 0, time.monotonic() - started, 0.0, began, _node()))


class _Writer:
    """Task: a unit's files, its done-record last."""

    def __init__(self, job: Job, desk: Any) -> None:
        self._job = job
        self._desk = desk

    def __call__(self, batch: pa.Table) -> pa.Table:
        with _reporting(self._job, self._desk):
            return self._write_unit(batch)

    def _write_unit(self, batch: pa.Table) -> pa.Table:
        unit = Unit.model_validate_json(batch["unit"][0].as_py())
        folder = self._job.folder
        if (done := read_receipt(folder, unit)) is not None:  # Ray runs a task again when a node is lost
            return pa.table({"receipt": [done.model_dump_json()]})
        vectors, features, outcome, told = _tables(batch)
        work = _Work(**told.to_pylist()[0])
        output = Output(vectors, features, outcome, work.encoded, work.copied, work.model_s)
        return pa.table({"receipt": [_written(self._job, unit, output, work).model_dump_json()]})


@dataclass(frozen=True)
class _Work:
    """What the worker that embedded or projected a unit tells the one that writes it; see `Receipt`."""

    encoded: int
    copied: int
    busy_s: float
    model_s: float
    began: float
    node: str | None


def _node() -> str | None:
    """This node, as Ray calls it."""
    import ray

    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else None


def _written(job: Job, unit: Unit, output: Output, work: _Work) -> Receipt:
    """Write a unit's files, its done-record last."""
    started = time.monotonic()
    cached = None
    if unit.task == "embed" and output.features.num_rows and unit.modality is not None:
        cached = write_features(job.folder, job.members[unit.modality].feature_fp, unit.name, output.features)
        failpoint("unit.features")
    part = write_part(job.folder, unit.name, output.vectors) if output.vectors.num_rows else None
    failpoint("unit.part")
    statuses = output.outcome["status"].to_pylist()
    reasons = Counter(reason for reason in output.outcome["reason"].to_pylist() if reason is not None)
    changed = output.outcome.filter(pc.equal(output.outcome["reason"], str(Reason.CHANGED)))
    receipt = Receipt(
        unit=unit,
        embedded=statuses.count("embedded") - output.copied,
        copied=output.copied,
        quarantined=statuses.count("quarantined"),
        reasons=dict(reasons),
        gone=sum(detail.endswith(GONE) for detail in changed["detail"].to_pylist()),
        deferred=statuses.count("deferred"),
        encoded=output.encoded,
        busy_s=work.busy_s,
        model_s=work.model_s,
        write_s=time.monotonic() - started,
        began=work.began,
        ended=time.time(),
        node=work.node,
        part=part,
        features=cached,
    )
    return finish(job.folder, receipt, output.outcome)


def _row(unit: Unit, tables: list[pa.Table]) -> pa.Table:
    """One row that carries whole tables; a single cell cannot be split between blocks."""
    cells = {f"table{number}": _cell(table) for number, table in enumerate(tables)}
    return pa.table({"unit": [unit.model_dump_json()], **cells})


def _cell(table: pa.Table) -> pa.LargeBinaryArray:
    """A table as one binary value, without copying the stream again."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    data = sink.getvalue()
    offsets = pa.py_buffer(struct.pack("<qq", 0, data.size))
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, data])


def _tables(batch: pa.Table) -> list[pa.Table]:
    names = sorted(name for name in batch.column_names if name.startswith("table"))
    return [pa.ipc.open_stream(batch[name][0].as_buffer()).read_all() for name in names]
