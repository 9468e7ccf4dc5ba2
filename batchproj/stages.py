"""What workers do with a unit; which engine calls them they do not know.

A row of `unit_row` goes from who reads a unit to who embeds it; pixels, samples and vectors stay inside the embedding
worker.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import math
import os
import platform
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from batchproj import retry
from batchproj.collection import layout
from batchproj.collection.cache import known_features
from batchproj.collection.unit import (
    Output,
    Receipt,
    Span,
    Stage,
    Unit,
    finish,
    read_inputs,
    read_receipt,
    read_rows,
    write_features,
    write_part,
)
from batchproj.errors import BatchprojError, ItemFault, SpaceError, UsageError, WeightsError
from batchproj.failpoint import failpoint
from batchproj.lanes import UNITS_AT_ONCE
from batchproj.objectstore import GONE, Folder
from batchproj.recipe import Recipe
from batchproj.schema import Modality, Reason
from batchproj.source.reading import ASKED, read_items
from batchproj.space import Member
from batchproj.unit_row import binaries, tables_of, unit_of, unit_row

if TYPE_CHECKING:
    from batchproj.decoding import Fetched

CEILING_SHARE = 0.01
"""Of the time that an encoder has worked, this part is spent on measuring what it does alone: `CEILING_S` at most."""
PROJECTING_THREADS = 1
"""Of torch, for a unit: its bits depend on how many there are, and any worker may do it."""
LEAST_CEILING_S, CEILING_S = 0.5, 1.0
"""Not for less: to fill its batches takes a good part of a second."""


@dataclass(frozen=True)
class Job:
    """What every worker of a run is told; small enough to be pickled to each."""

    folder: Folder
    dim: int
    members: dict[Modality, Member]
    recipe: Recipe
    live: str | None = None  # the run that readers see meanwhile
    decoders: dict[str, str] = field(default_factory=dict)  # versions that every worker must have

    @property
    def in_space(self) -> frozenset[Modality]:
        return frozenset(self.members)


def label(unit: Unit) -> str:
    """What progress counts a unit under: the modality its names promise, if they promise any."""
    return str(unit.modality or "unclear")


@contextlib.contextmanager
def _reporting(job: Job, desk: Any, what: str) -> Iterator[None]:
    """In a worker process, at `what`: the run's patience with the store, and a line to the desk while it is tried."""
    retry.configure(job.recipe.retry_s)
    here = (_here(), threading.get_ident())
    desk.at.remote(*here, what)
    with retry.watch_pauses(lambda line: desk.say.remote(line)):
        try:
            yield
        except BatchprojError as error:
            desk.fail.remote(error)  # on its way through Ray it would lose its type
            raise
        finally:
            desk.at.remote(*here, None)


def _here() -> str:
    """This process: host:pid, or host/raylet:pid, for one host may be several nodes of Ray's."""
    raylet = os.environ.get("RAY_RAYLET_PID")
    return f"{platform.node()}{f'/{raylet}' if raylet else ''}:{os.getpid()}"


@dataclass(frozen=True)
class _Clock:
    """Started when something begins."""

    began: float
    started: float

    @classmethod
    def start(cls) -> _Clock:
        return cls(time.time(), time.monotonic())

    def span(self, stage: Stage) -> Span:
        return Span(stage=stage, where=_here(), began=self.began, seconds=time.monotonic() - self.started)


@contextlib.contextmanager
def _loading(member: Member | None) -> Iterator[None]:
    """Whatever a library makes of a model that it cannot load, said in one line: Ray would try on and on."""
    try:
        yield
    except WeightsError as error:
        raise WeightsError(f"{error} (on {platform.node()})") from error
    except BatchprojError:
        raise
    except Exception as error:
        what = f"the encoder of {member.modality}, {member.config.model}," if member else "a worker"
        said = " ".join(str(error).split())[:300]
        raise SpaceError(f"{what} cannot be loaded on {platform.node()}: {type(error).__name__}: {said}") from error


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


_READ = "read"
"""Key of the metadata that tells who read a unit and when."""


class Reader:
    """Task: a unit's inputs and the bytes of its items."""

    def __init__(self, job: Job, desk: Any) -> None:
        self._job = job
        self._desk = desk

    def __call__(self, batch: pa.Table) -> pa.Table:
        unit = unit_of(batch)
        with _reporting(self._job, self._desk, f"reading unit {unit.name} ({unit.items} items)"):
            return self._read_unit(unit)

    def _read_unit(self, unit: Unit) -> pa.Table:
        clock = _Clock.start()
        items = self._with_bytes(read_inputs(self._job.folder, unit))
        known = self._known(unit, items)
        items = items.drop_columns("known").replace_schema_metadata({_READ: clock.span("read").model_dump_json()})
        return unit_row(unit, [items, *([known] if known is not None else [])])

    def _with_bytes(self, inputs: pa.Table) -> pa.Table:
        recipe = self._job.recipe
        found = read_items(inputs.select(ASKED).to_pylist(), recipe.limits.item_bytes, recipe.read_threads)
        read = [(b"", each) if isinstance(each, ItemFault) else (each, None) for each in found]
        digests = ["" if fault else hashlib.sha256(data).hexdigest() for data, fault in read]
        return (
            inputs.append_column("data", binaries([data for data, _ in read]))
            .append_column("content_id", pa.array(digests, pa.string()))
            .append_column("reason", pa.array([fault.reason if fault else None for _, fault in read], pa.string()))
            .append_column("detail", pa.array([fault.detail if fault else None for _, fault in read], pa.string()))
        )

    def _known(self, unit: Unit, items: pa.Table) -> pa.Table | None:
        """Cached features of those items whose bytes turn out to be embedded already."""
        if unit.modality is None or unit.modality not in self._job.members:
            return None
        asked = items.select(["content_id", "known"]).filter(pc.is_valid(items["known"]))
        wanted = {
            content["content_id"]: content["features"]
            for row in asked.to_pylist()
            for content in row["known"]
            if content["content_id"] == row["content_id"] and content["modality"] == unit.modality
        }
        return known_features(self._job.folder, self._job.members[unit.modality].feature_fp, wanted)


class _Measuring:
    """For how many seconds an encoder is to run alone, to see what it can do: after its worker's last unit, when
    no other one, and mostly no process that reads, takes cores from it."""

    def __init__(self, units: float) -> None:
        """`units` are those that a worker gets; one that gets fewer does not measure."""
        self._left = math.ceil(units)
        self._model_s = 0.0
        self._counting = threading.Lock()

    def after(self, model_s: float) -> float:
        """A unit is done, which took the encoder so long: the seconds, 0 but after the last one."""
        with self._counting:
            self._left -= 1
            self._model_s += model_s
            seconds = min(CEILING_S, CEILING_SHARE * self._model_s)
            return seconds if self._left == 0 and seconds >= LEAST_CEILING_S else 0.0


class _Turns:
    """So many units at once, or one alone."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._free = threading.Semaphore(most)
        self._door = threading.Lock()

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        with self._door:
            self._free.acquire()
        try:
            yield
        finally:
            self._free.release()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """For one that has a turn, and not for two of them: when the others have ended theirs, and with nobody beside
        it until it ends this."""
        with self._door:
            for _ in range(self._most - 1):
                self._free.acquire()
            try:
                yield
            finally:
                self._free.release(self._most - 1)


class Embedding:
    """Actor: loads one modality's encoder once, then embeds unit after unit and writes their files.

    Called by two threads, it decodes one unit while the one before is encoded and written. Processes for writing
    alone would take longer to start than most runs write.
    """

    def __init__(
        self,
        job: Job,
        modality: Modality | None,
        threads: int,
        pool: int,
        units: float,
        desk: Any,
        *,
        has_own_process: bool = True,
    ) -> None:
        """`units` are those that it will get, of a pool of so many."""
        self._job = job
        self._measuring = _Measuring(units)
        self._desk = desk
        desk.started.remote("embed", modality, pool)
        member = job.members.get(modality) if modality else None
        with _reporting(job, desk, f"loading the {modality or 'first'} encoder"), _loading(member):
            # only here: the processes that read must not wait for models' and codecs' imports
            from batchproj.decode.versions import check_decoders
            from batchproj.embedding import Disjoint, UnitWorker

            if modality is not Modality.TEXT:
                check_decoders(job.decoders)
            self._worker = UnitWorker(member, job.dim, job.in_space, job.recipe.limits, threads)
            self._worker.load(rehearses=units > 1)
            self._turns, self._busy = _Turns(UNITS_AT_ONCE), Disjoint()
        if has_own_process:
            # what is loaded stays, and is half a million objects: to look through them twice took 0.4 s of the first
            # 3 s of work. Never in the process of a caller: garbage that is frozen is never freed
            gc.freeze()

    def __call__(self, batch: pa.Table) -> pa.Table:
        unit = unit_of(batch)
        with self._turns.one():
            output, busy, ceiling_per_s = self._embedded(unit, tables_of(batch))
        doing = f"writing unit {unit.name} ({unit.items} items)"
        with _reporting(self._job, self._desk, doing), _remembering():
            done = read_receipt(self._job.folder, unit)  # a unit is done again when a node is lost
            receipt = done or _written(self._job, unit, output, busy, ceiling_per_s)
        return pa.table({"receipt": [receipt.model_dump_json()]})

    def _embedded(self, unit: Unit, tables: list[pa.Table]) -> tuple[Output, _Busy, float | None]:
        clock = _Clock.start()
        doing = f"embedding unit {unit.name} ({unit.items} items)"
        with _reporting(self._job, self._desk, doing), _remembering():
            failpoint("unit.begun")
            with self._busy.counted() as counted:
                output = self._embed(unit, tables)
            spans = [Span.model_validate_json(tables[0].schema.metadata[_READ.encode()]), clock.span("embed")]
            ceiling_per_s = None
            if measure_s := self._measuring.after(output.model_s):
                with self._turns.alone():
                    clock = _Clock.start()
                    ceiling_per_s = self._worker.measure(measure_s)
                    spans.append(clock.span("measure"))
        return output, _Busy(spans, counted.seconds), ceiling_per_s

    def _embed(self, unit: Unit, tables: list[pa.Table]) -> Output:
        known = tables[1] if len(tables) > 1 else None
        output = self._worker.embed(unit, _fetched(tables[0]), known, lambda done: self._report(unit, done))
        if line := misnamed_line(output.outcome, tables[0]):
            self._desk.say.remote(line)
        return output

    def _report(self, unit: Unit, items: int) -> None:
        self._desk.add.remote(label(unit), items)


def _fetched(items: pa.Table) -> Iterator[Fetched]:
    """The items, copied out of the table when the first one is asked for: a unit that waits takes no memory twice."""
    from batchproj.decoding import Fetched

    for row in items.to_pylist():
        fault = ItemFault(Reason(row["reason"]), row["detail"]) if row["reason"] else None
        yield Fetched.of_row(row, row["data"], row["content_id"], fault)


def misnamed_line(outcome: pa.Table, items: pa.Table) -> str | None:
    """What to say of a unit's items that are embedded although they are not what their names promise."""
    is_noted = pc.and_(pc.equal(outcome["status"], "embedded"), pc.is_valid(outcome["detail"]))
    if not (noted := outcome.filter(is_noted).to_pylist()):
        return None
    more = f", and {len(noted) - 1:,} more beside it" if len(noted) > 1 else ""
    uri = items["uri"][items["item"].index(noted[0]["item"]).as_py()].as_py()
    return f"warning: {uri} is {noted[0]['detail']}; embedded as what it is{more}"


class Projecting:
    """Actor: projects units of cached features.

    It reads and writes them itself: there is little to compute, and processes for that alone would take
    longer to start. Several threads may call it.
    """

    def __init__(self, job: Job, modality: Modality, pool: int, desk: Any) -> None:
        self._job = job
        self._member = job.members[modality]
        self._desk = desk
        desk.started.remote("project", modality, pool)
        with _reporting(job, desk, f"loading the {modality} projector"):
            import torch

            torch.set_num_threads(PROJECTING_THREADS)
            self._projector = self._member.load_projector()

    def __call__(self, batch: pa.Table) -> pa.Table:
        unit = unit_of(batch)
        failpoint("unit.begun")
        with _reporting(self._job, self._desk, f"projecting unit {unit.name} ({unit.items} items)"):
            receipt = read_receipt(self._job.folder, unit) or self._project(unit)
        return pa.table({"receipt": [receipt.model_dump_json()]})

    def _project(self, unit: Unit) -> Receipt:
        from batchproj.embedding import project_unit  # as in Embedding

        assert unit.cached is not None, unit
        clock = _Clock.start()
        folder = self._job.folder
        inputs = read_inputs(folder, unit)
        cached = read_rows(folder, layout.features(self._member.feature_fp, unit.cached), unit.cached_sha256)
        output = project_unit(unit, self._member, self._projector, inputs, cached)
        self._desk.add.remote(label(unit), unit.items)
        span = clock.span("project")
        return _written(self._job, unit, output, _Busy([span], span.seconds))


@dataclass(frozen=True)
class _Busy:
    """What was done with a unit, and the seconds of it that are not another unit's as well."""

    spans: list[Span]
    seconds: float


def _written(job: Job, unit: Unit, output: Output, busy: _Busy, ceiling_per_s: float | None = None) -> Receipt:
    """Write a unit's files, its done-record last."""
    clock = _Clock.start()
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
        busy_s=busy.seconds,
        model_s=output.model_s,
        spans=(*busy.spans, clock.span("write")),
        ceiling_per_s=ceiling_per_s,
        part=part,
        features=cached,
    )
    return finish(job.folder, receipt, output.outcome)
