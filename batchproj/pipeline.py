"""Units of work through Ray Data; the one module that knows Ray.

    per modality:  unit -> read (tasks) -> embed (actor pool) -> write (tasks) -> receipt
                   all branches joined by `union` into one execution

A row between stages is a whole unit: its description and its compressed bytes as one Arrow IPC
buffer, so that Ray never splits it; pixels and samples stay inside the embed actor.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import struct
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from batchproj.collection import layout
from batchproj.collection.unit import (
    Receipt,
    Task,
    Unit,
    finish,
    parquet_bytes,
    read_inputs,
    read_parquet,
    read_receipt,
    write_part,
)
from batchproj.errors import BatchprojError, ItemFault
from batchproj.objectstore import Folder, read_pinned
from batchproj.recipe import Pool, Recipe
from batchproj.schema import Modality, Reason
from batchproj.space import Member

if TYPE_CHECKING:
    from batchproj.embedding import Output

READ_CPUS = 0.1
WRITE_CPUS = 0.1
CPU_HEADROOM = 0.5
"""Logical CPUs kept free of encoder actors: a pool that takes all of them starves reads and writes."""

POLL_S = 0.5

Progress = Callable[[dict[str, int]], None]


@dataclass(frozen=True)
class Job:
    """What every worker of a run is told; small enough to be pickled to each."""

    folder: Folder
    dim: int
    members: dict[Modality, Member]
    recipe: Recipe

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
        # Ray starts its servers by fork and exec at once; LanceDB warns of forks that go on
        warnings.filterwarnings("ignore", message="lancedb fork support")
        ray.init(
            address=address,
            include_dashboard=False if address == "local" else None,
            log_to_driver=verbose,
            logging_level=logging.INFO if verbose else logging.ERROR,
        )
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # ray.init puts its own in place, which exits with 15
    try:
        yield
    finally:
        ray.shutdown()


def run_units(job: Job, units: list[Unit], on_progress: Progress) -> Iterator[Receipt]:
    """Do the units, all modalities in one execution; receipts as they finish, in any order.

    Raises the BatchprojError of a worker as it was raised there. Needs a `ray_session`.
    """
    import ray

    if not units:
        return
    counter = ray.remote(num_cpus=0)(_Counter).remote()
    groups = _by_pool(job, units)
    cpus = (cluster_cpus() - CPU_HEADROOM) / len(groups)
    branches = [_branch(job, pool, group, counter, cpus) for pool, group in groups.items()]
    results = branches[0].union(*branches[1:]) if len(branches) > 1 else branches[0]
    try:
        with _polling(counter, on_progress):
            for row in results.iter_rows():
                yield Receipt.model_validate_json(row["receipt"])
    except Exception as error:
        raise _original(error) from error


def _by_pool(job: Job, units: list[Unit]) -> dict[tuple[Task, Modality | None], list[Unit]]:
    """Units by the pool of workers that does them; without an encoder all modalities share one."""
    groups: dict[tuple[Task, Modality | None], list[Unit]] = {}
    for unit in units:
        modality = unit.modality if unit.modality in job.members else None
        groups.setdefault((unit.task, modality), []).append(unit)
    return groups


def _branch(job: Job, pool: tuple[Task, Modality | None], units: list[Unit], counter: Any, cpus: float) -> Any:
    """The stages of one pool as a lazy dataset; `cpus` is the pool's share of the cluster's."""
    import ray

    task, modality = pool
    settings = job.recipe.pools.get(modality, Pool()) if modality else Pool()
    workers, threads = pool_size(job, settings)
    rows = [{"unit": unit.model_dump_json()} for unit in units]
    source = ray.data.from_items(rows, override_num_blocks=len(rows))
    read = source.map_batches(
        _Reader(job), batch_size=1, batch_format="pyarrow", num_cpus=READ_CPUS, zero_copy_batch=True
    )
    embedded = read.map_batches(
        _EmbedActor,
        fn_constructor_args=(job, task, modality, threads, counter),
        batch_size=1,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(units))),
        num_cpus=max(0.01, round(cpus / workers - 0.005, 2)),
        num_gpus=settings.gpus or None,
    )
    return embedded.map_batches(
        _Writer(job), batch_size=1, batch_format="pyarrow", num_cpus=WRITE_CPUS, zero_copy_batch=True
    )


def pool_size(job: Job, settings: Pool) -> tuple[int, int]:
    """Workers and threads per worker of one modality: the recipe's, or the cluster divided up.

    Small machines give each modality one worker that may use all cores: modalities finish at
    different times, and a worker with fewer threads would leave cores idle at the end.
    """
    cores = cluster_cpus()
    threads = settings.threads or min(4, cores)
    workers = settings.workers or max(1, cores // (threads * max(1, len(job.members))))
    return workers, threads


def cluster_cpus() -> int:
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))


@contextlib.contextmanager
def _polling(counter: Any, on_progress: Progress) -> Iterator[None]:
    """Tell `on_progress` how many items are done, by modality, while the body runs."""
    import ray

    stop = threading.Event()

    def poll() -> None:
        while not stop.wait(POLL_S):
            with contextlib.suppress(ray.exceptions.RayError):  # a progress line is not worth a run
                on_progress(ray.get(counter.read.remote(), timeout=10))

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    on_progress(ray.get(counter.read.remote(), timeout=10))


def _original(error: BaseException) -> BaseException:
    """The BatchprojError a worker raised, dug out of Ray's wrappers; else the error itself."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, BatchprojError):
            return type(seen)(*seen.args)
        cause = getattr(seen, "cause", None)
        seen = cause if isinstance(cause, BaseException) else seen.__cause__
    return error


def label(unit: Unit) -> str:
    """What progress counts a unit under: the modality its names promise, if they promise any."""
    return str(unit.modality or "unclear")


class _Counter:
    """Items done so far, by modality; an actor."""

    def __init__(self) -> None:
        self._done: dict[str, int] = {}

    def add(self, modality: str, items: int) -> None:
        self._done[modality] = self._done.get(modality, 0) + items

    def read(self) -> dict[str, int]:
        return self._done


class _Reader:
    """Task: a unit's inputs and the bytes of its items, or its cached features."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def __call__(self, batch: pa.Table) -> pa.Table:
        unit = Unit.model_validate_json(batch["unit"][0].as_py())
        inputs = read_inputs(self._job.folder, unit)
        if unit.task == "project":
            assert unit.modality is not None, unit
            assert unit.cached is not None, unit
            fingerprint = self._job.members[unit.modality].feature_fp
            cached = read_parquet(self._job.folder.read(layout.features(fingerprint, unit.cached)))
            return _row(unit, [inputs, cached])
        return _row(unit, [self._with_bytes(inputs)])

    def _with_bytes(self, inputs: pa.Table) -> pa.Table:
        rows = inputs.to_pylist()
        with ThreadPoolExecutor(self._job.recipe.read_threads) as pool:
            read = list(pool.map(self._read, rows))
        return (
            inputs.append_column("data", pa.array([data for data, _ in read], pa.large_binary()))
            .append_column("reason", pa.array([fault.reason if fault else None for _, fault in read], pa.string()))
            .append_column("detail", pa.array([fault.detail if fault else None for _, fault in read], pa.string()))
        )

    def _read(self, row: dict[str, Any]) -> tuple[bytes, ItemFault | None]:
        try:
            if row["size"] > self._job.recipe.limits.item_bytes:
                raise ItemFault(Reason.TOO_LARGE, f"{row['size']} bytes, limit {self._job.recipe.limits.item_bytes}")
            return read_pinned(row["uri"], row["size"], row["source_version"]), None
        except ItemFault as fault:
            return b"", fault


class _EmbedActor:
    """Actor: loads one modality's encoder once, then embeds unit after unit."""

    def __init__(self, job: Job, task: Task, modality: Modality | None, threads: int, counter: Any) -> None:
        # only here: the processes that read and write must not wait for models' and codecs' imports
        from batchproj.embedding import UnitWorker

        self._job = job
        self._member = job.members.get(modality) if modality else None
        self._counter = counter
        self._worker = UnitWorker(self._member, job.dim, job.in_space, job.recipe.limits, threads)
        if task == "embed":
            self._worker.load()

    def __call__(self, batch: pa.Table) -> pa.Table:
        unit = Unit.model_validate_json(batch["unit"][0].as_py())
        tables = _tables(batch)
        started = time.monotonic()
        output = self._project(unit, tables) if unit.task == "project" else self._embed(unit, tables)
        busy = pa.table({"busy_s": [time.monotonic() - started], "encoded": [output.encoded]})
        return _row(unit, [output.vectors, output.features, output.outcome, busy])

    def _embed(self, unit: Unit, tables: list[pa.Table]) -> Output:
        from batchproj.embedding import Fetched

        items = [
            Fetched(
                row["item"],
                row["uri"],
                row["pair"],
                row["source_version"],
                row["data"],
                ItemFault(Reason(row["reason"]), row["detail"]) if row["reason"] else None,
            )
            for row in tables[0].to_pylist()
        ]
        return self._worker.embed(unit, items, lambda done: self._report(unit, done))

    def _project(self, unit: Unit, tables: list[pa.Table]) -> Output:
        from batchproj.embedding import project_unit

        assert self._member is not None, "features are cached only where there is an encoder"
        output = project_unit(unit, self._member, tables[0]["item"].to_pylist(), tables[1])
        self._report(unit, unit.items)
        return output

    def _report(self, unit: Unit, items: int) -> None:
        self._counter.add.remote(label(unit), items)


class _Writer:
    """Task: a unit's files, its done-record last."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def __call__(self, batch: pa.Table) -> pa.Table:
        unit = Unit.model_validate_json(batch["unit"][0].as_py())
        folder = self._job.folder
        if (done := read_receipt(folder, unit.name)) is not None:  # Ray runs a task again when a node is lost
            return pa.table({"receipt": [done.model_dump_json()]})
        vectors, features, outcome, busy = _tables(batch)
        part = write_part(folder, unit.name, vectors) if vectors.num_rows else None
        if unit.task == "embed" and features.num_rows and unit.modality is not None:
            fingerprint = self._job.members[unit.modality].feature_fp
            folder.write(layout.features(fingerprint, unit.name), parquet_bytes(features))
        statuses = outcome["status"].to_pylist()
        receipt = Receipt(
            unit=unit,
            embedded=statuses.count("embedded"),
            quarantined=statuses.count("quarantined"),
            deferred=statuses.count("deferred"),
            encoded=busy["encoded"][0].as_py(),
            busy_s=busy["busy_s"][0].as_py(),
            part=part,
        )
        return pa.table({"receipt": [finish(folder, receipt, outcome).model_dump_json()]})


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
