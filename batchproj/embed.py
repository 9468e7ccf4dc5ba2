"""The main job: list, plan, embed what changed, check, and switch readers to the new run.

    gate       a space that finds worse than the live one is refused      nothing is written
    compare    the listing against the live manifest                        nothing is written
    units      read, decode, encode, project; each with a done-record       resumed by the next attempt
    parts      live parts that lose items, written again without them
    manifest   what became of every listed item, as far as the run changed it
    table      a new version of the Lance table, counted, indexed, searched
    snapshot   the exact list of files
    switch     commit record, run tag, live tag                             the first step that shows

A process may die anywhere: the next one does the rest, and every step done twice is done once.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path

import pyarrow as pa

from batchproj import retry
from batchproj.breaker import Breaker, Trip, paused
from batchproj.changes import (
    check_places,
    check_sound_tracks,
    compare,
    compare_with_itself,
    fingerprints_of,
    mass_delete,
)
from batchproj.collection import commit, layout, ledger, manifest
from batchproj.collection.efficiency import efficiency
from batchproj.collection.lease import Lease, refuse_if_held
from batchproj.collection.ledger import Entry, Report
from batchproj.collection.plan import TRANSIENT, Counts, Plan
from batchproj.collection.snapshot import Snapshot, write_snapshot
from batchproj.collection.unit import DONE, Receipt, Unit, read_receipt, write_inputs
from batchproj.decode.versions import decoders
from batchproj.errors import BatchprojError, TooManyBad, TryLater, UsageError
from batchproj.failpoint import failpoint
from batchproj.gate import refuse_if_worse
from batchproj.index import VectorTable, is_written_anew, live_snapshot
from batchproj.lance_store import lance_faults
from batchproj.news import News
from batchproj.objectstore import GONE, Folder, canonical
from batchproj.pipeline import ray_session, run_units
from batchproj.recipe import Recipe
from batchproj.schema import Reason
from batchproj.small_run import is_small, run_here
from batchproj.source.reading import DISK_FAILS
from batchproj.space import ResolvedSpace
from batchproj.stages import Job, label
from batchproj.switch import finish, next_run, unsettled, writing
from batchproj.timeline import require_writable, write_timeline

MASS_FORBIDDEN = 0.2
"""Share of all listed objects, newly forbidden, from which on we take it for a fault of the credentials."""

MASS_GONE = 0.2
"""The same of objects that were listed and are gone when they are read: more likely a mount that went away."""

_SOUND_BUT_UNREADABLE = """
SELECT count(*) FROM final f JOIN manifest m USING (item)
WHERE f.reason IN ('changed', 'forbidden') AND m.status = 'embedded'
    AND m.part NOT IN (SELECT file FROM damaged WHERE kind = 'parquet')
"""

ROUNDS = 2
"""First by the names' promise, then, for what was misnamed, by the content: it cannot be wrong twice."""


def usual_space(collection: str) -> str:
    """The space a collection was last made with, so that a plain rerun undoes nothing; builtin for a new one."""
    folder = Folder(collection)
    live = live_snapshot(folder)
    return f"{folder.uri}/{layout.space(live.space)}" if live else "builtin"


def _ignore(*_: object) -> None:
    """For those who do not watch."""


@dataclass(frozen=True)
class Watch:
    """Who wants to know how a run gets on; every call is cheap and may come from any thread.

    `totals` is told items done by an earlier attempt and items to do, `progress` those done since.
    """

    step: Callable[[str], None] = _ignore
    totals: Callable[[dict[str, int], dict[str, int]], None] = _ignore
    progress: Callable[[dict[str, int]], None] = _ignore


@dataclass(frozen=True)
class Options:
    """How a run may go about it; none of it changes a vector.

    What is in quarantine for one of the reasons `retry_quarantined` is tried again. `max_bad` is the share of the
    last thousand finished items, and of all so far, that may have one and the same reason; with more the run is paused.
    `profile` is a file for a timeline of the run.
    `force` lets a space take over that finds worse than the live one. `redo` names damaged parts and
    files of features, as in the collection, whose items are done again; `rebuild` writes the table
    anew from the parts. With either of these the run is a repair, which does nothing else: the source
    is not listed.
    """

    recipe: Recipe = Recipe()  # noqa: RUF009 - frozen
    allow_mass_delete: bool = False
    single_writer: bool = False
    force: bool = False
    verbose: bool = False
    retry_quarantined: frozenset[Reason] = frozenset()
    max_bad: float = 1.0
    profile: Path | None = None
    redo: tuple[str, ...] = ()
    rebuild: bool = False

    @property
    def is_repair(self) -> bool:
        return self.rebuild or bool(self.redo)


@dataclass(frozen=True)
class _Run:
    """What stays the same from the plan to the switch of one run."""

    plan: Plan
    counts: Counts
    job: Job
    live: Snapshot | None
    target: Snapshot
    lease: Lease


def embed(source: str, collection: str, space: ResolvedSpace, options: Options, watch: Watch) -> Report:
    """Bring a collection up to date with a source.

    Raises SourceError or UsageError before anything is written, TryLater if storage is away or
    another run holds the collection.
    """
    started = time.monotonic()
    space.refuse_if_bridge()
    if options.profile is not None:
        require_writable(options.profile)
    retry.configure(options.recipe.retry_s)
    with retry.watch_pauses(watch.step):
        return _embed(source, Folder(collection), space, options, watch, started)


def _embed(source: str, folder: Folder, space: ResolvedSpace, options: Options, watch: Watch, started: float) -> Report:
    check_places(source, folder, options.recipe)
    check_sound_tracks(options.recipe, space)
    refuse_if_held(folder, watch.step)
    live = live_snapshot(folder)
    if unsettled(folder, live.run if live else None):
        with writing(folder, "embed", watch.step, options.single_writer):
            live = live_snapshot(folder)
    if live is not None and not options.force:
        refuse_if_worse(folder, live, space, watch.step)
    fingerprints = fingerprints_of(space)
    here = decoders()
    # a repair tries nothing again, so what it leaves in quarantine was judged by the decoders before
    judging = live.decoders if live is not None and options.is_repair else here
    with Plan(fingerprints, options.recipe.limits, judging) as plan:
        plan.redo(list(options.redo))
        if live is not None and options.is_repair:
            reads = any(name.startswith("features/") for name in options.redo)
            counts = compare_with_itself(plan, folder, live, roots=options.recipe.roots if reads else None)
        else:
            counts = compare(plan, source, folder, live, options.recipe, watch.step, options.retry_quarantined)
        if not options.allow_mass_delete and (reason := mass_delete(counts, live)):
            raise UsageError(reason)
        if live is not None and counts.nothing_to_do and not options.rebuild:
            return _unchanged(counts, live, started)
        with writing(folder, f"embed {source} {folder.uri}", watch.step, options.single_writer) as lease:
            if lease.run != (live.run if live else None):
                raise TryLater(f"run {lease.run} became live while this one was planned; run the same command again")
            target = Snapshot(
                run=next_run(folder, lease),
                parent=live.run if live else None,
                source=canonical(source),
                space=space.fingerprint,
                dim=space.dim,
                fingerprints=fingerprints,
                listed=counts.listed,
                limits=options.recipe.limits,
                decoders=judging,
                sealed=plan.sealed,
            )
            space.save(Folder(f"{folder.uri}/{layout.space(space.fingerprint)}"))
            job = Job(folder, space.dim, space.members, options.recipe, live.run if live else None, here)
            report = _do(_Run(plan, counts, job, live, target, lease), options, watch, started)
    return report or _unchanged(counts, live, started)


def _unchanged(counts: Counts, live: Snapshot | None, started: float) -> Report:
    assert live is not None, "a first run always commits"
    report = Report(
        run=live.run,
        items=counts.listed,
        unchanged=counts.unchanged,
        quarantined=counts.quarantined + counts.retry,
        rows=live.rows,
        tried=counts.retry,
    )
    return report.model_copy(update={"seconds": _since(started)})


def _since(started: float) -> float:
    return round(time.monotonic() - started, 3)


def _do(run: _Run, options: Options, watch: Watch, started: float) -> Report | None:
    """Execute the plan and switch; None if all that came of it is what was there before."""
    folder = run.job.folder
    entry = _begin(run)
    run.lease.working_on = run.target.run
    executed = _Executed()
    try:
        _execute(run, watch, options, executed)
    except TooManyBad:
        ended = {"state": "paused", "seconds": _since(started), "finished": ledger.now()}
        ledger.write_entry(folder, entry.model_copy(update=ended))
        raise
    finally:
        _draw(executed.fresh, options.profile, watch)
    receipts = executed.receipts
    retry.check_abandoned()
    watch.step("checking, indexing and switching")
    commit.check_complete(run.plan)
    _check_readable(run, receipts, options)
    _check_encoders(run, receipts)
    # what was tried again because decoders, limits or encoders are others must not be by every run from now on
    judged_alike = run.live is not None and run.live.judges_as(run.target)
    if not options.rebuild and judged_alike and commit.is_as_before(run.plan):
        _drop_records(folder, receipts)
        folder.remove([layout.ledger(run.target.run)])
        return None
    report = _account(run.counts, receipts, run.target.run)
    table = VectorTable(folder)
    snapshot, version = _commit(run, table, receipts, options)
    found = {"rows": snapshot.rows, "commit": version, "efficiency": efficiency(executed.fresh)}
    report = report.model_copy(update={**found, "seconds": _since(started)})
    told = {**report.model_dump(), "efficiency": report.efficiency}
    entry = entry.model_copy(update={**told, "restarts": entry.restarts + executed.replaced})
    ledger.write_entry(folder, entry)
    failpoint("commit.ledger")
    finish(folder, run.lease, entry, version)
    _tidy(run, table, options, watch)
    return report


def _draw(receipts: list[Receipt], file: Path | None, watch: Watch) -> None:
    """Write the timeline, if there is to be one; no run ends for want of it."""
    if file is None:
        return
    try:
        write_timeline(receipts, file)
    except OSError as error:
        watch.step(f"warning: the timeline {file} was not written: {error.strerror}")


def _tidy(run: _Run, table: VectorTable, options: Options, watch: Watch) -> None:
    """The run is live: what goes wrong from here on is the next run's to do."""
    try:
        if run.lease.superseded() is None:
            table.tidy(options.recipe.index)
    except (BatchprojError, OSError, RuntimeError, ValueError) as error:
        watch.step(f"cleaning up is left to the next run: {error}")


def _begin(run: _Run) -> Entry:
    """Note in the ledger that the run was begun, or begun again after its process died."""
    folder, target = run.job.folder, run.target
    before = ledger.read_entry(folder, target.run)
    holder = run.lease.holder
    entry = Entry(
        run=target.run,
        items=target.listed,
        state="running",
        parent=target.parent,
        source=target.source,
        space=target.space,
        command=holder.command,
        user=holder.user,
        host=holder.host,
        started=before.started if before else ledger.now(),
        attempts=before.attempts + 1 if before else 1,
        pauses=before.pauses + (before.state == "paused") if before else 0,
        restarts=before.restarts if before else 0,
        differences=ledger.differences(run.live.fingerprints, target.fingerprints) if run.live else [],
    )
    ledger.write_entry(folder, entry)
    return entry


def _drop_records(folder: Folder, receipts: list[Receipt]) -> None:
    """Let the next attempt try again what was not embedded."""
    units = [receipt.unit for receipt in receipts if receipt.quarantined]
    folder.remove([layout.unit_file(unit.run, unit.name, DONE) for unit in units])


def _check_readable(run: _Run, receipts: list[Receipt], options: Options) -> None:
    """Many objects that are forbidden or gone are the fault of the credentials or of a mount, not the objects', and a
    repair must not take away what is sound: stop before anything shows."""
    forbidden, failing, gone, read = run.plan.rows(
        f"SELECT count(*) FILTER (reason = 'forbidden'), count(*) FILTER (starts_with(detail, '{DISK_FAILS}')), "
        f"count(*) FILTER (reason = 'changed' AND ends_with(detail, '{GONE}')), count(*) "
        "FROM final JOIN plan USING (item) WHERE action IN ('new', 'changed', 'encode')"
    )[0]
    if lost := run.plan.rows(_SOUND_BUT_UNREADABLE)[0][0] if options.is_repair else 0:
        _drop_records(run.job.folder, receipts)
        raise UsageError(
            f"{lost:,} objects whose features are damaged cannot be read any more as they were embedded, and their "
            f"vectors are sound; nothing was made visible; first run: batchproj embed {run.target.source} "
            f"{run.job.folder.uri}"
        )
    if forbidden > MASS_FORBIDDEN * run.counts.listed:
        _drop_records(run.job.folder, receipts)
        if failing > forbidden / 2:
            raise TryLater(
                f"{failing:,} of {read:,} objects could not be read from their disk; nothing was made visible; "
                "check it and run the same command again"
            )
        raise _unreadable(Reason.FORBIDDEN, f"{forbidden:,} of {read:,}")
    may_go = options.allow_mass_delete or options.is_repair  # what a repair reads had been lost before
    if gone > MASS_GONE * run.counts.listed and not may_go:
        _drop_records(run.job.folder, receipts)
        raise _unreadable(Reason.CHANGED, f"{gone:,} of {read:,}")


def _unreadable(reason: Reason, how_many: str, unless: str = "") -> BatchprojError:
    if reason is Reason.FORBIDDEN:
        return UsageError(
            f"{how_many} objects may be listed but not read; nothing was made visible; "
            f"check the rights of these credentials{unless}"
        )
    return TryLater(
        f"{how_many} objects were listed and are gone: is the source's mount away? nothing was made "
        "visible; run the same command again, if that is meant with --allow-mass-delete"
    )


def _check_encoders(run: _Run, receipts: list[Receipt]) -> None:
    """An encoder that makes nothing of anything blames no items: stop before anything shows."""
    for modality, count in commit.senseless_encoders(run.plan).items():
        _drop_records(run.job.folder, receipts)
        raise UsageError(
            f"the vectors of all {count:,} {modality} items are not finite; nothing was made visible; check the "
            "encoder's weights, try dtype: fp32 in the space file, and run it again"
        )


@dataclass
class _Executed:
    """Receipts of all units, `fresh` ones of this attempt, and how many workers were replaced."""

    receipts: list[Receipt] = field(default_factory=list)
    fresh: list[Receipt] = field(default_factory=list)
    replaced: int = 0


def _execute(run: _Run, watch: Watch, options: Options, executed: _Executed) -> None:
    """Do every unit that is not done yet.

    Raises TooManyBad if the units that are done, by this attempt or an earlier one, have too many items of one reason;
    UsageError or TryLater, as the check of all of them would, where hardly anything can be read.
    """
    job, limits = run.job, run.job.recipe.units
    breaker = Breaker(options.max_bad, _expected(options))
    cut = partial(run.plan.cut, run.target.run, max_items=limits.max_items, max_bytes=limits.max_bytes)
    pending = chain(cut("embed", run.plan.to_embed()), cut("project", run.plan.to_project()))
    receipts = executed.receipts
    with ExitStack() as stack:
        for _ in range(ROUNDS):
            done, todo = _divide(job.folder, run.target.run, pending, options.retry_quarantined)
            if trip := breaker.add(done):
                raise _stopped(job.folder, trip, receipts + done)
            watch.totals(_items_by_modality([receipt.unit for receipt in done]), _items_by_modality(todo))
            if todo:
                teller = _Teller(watch)
                for receipt in _run(job, todo, teller, stack, watch, options.verbose):
                    run.lease.check()
                    retry.check_abandoned()
                    done.append(receipt)
                    executed.fresh.append(receipt)
                    if trip := breaker.add([receipt]):
                        raise _stopped(job.folder, trip, receipts + done)
                executed.replaced += teller.replaced
            commit.record(run.plan, job.folder, done)
            receipts += done
            pending = chain(cut("embed", run.plan.deferred()))


def _run(
    job: Job, units: list[Unit], teller: _Teller, stack: ExitStack, watch: Watch, verbose: bool
) -> Iterator[Receipt]:
    """By this process, or by workers of a Ray that goes on to the end of `stack`."""
    if is_small(job, units):
        return run_here(job, units, teller)
    watch.step("starting workers")
    stack.enter_context(ray_session(verbose))
    return run_units(job, units, teller)


def _expected(options: Options) -> Collection[Reason]:
    """Reasons that may be as many as they are: a repair asks, when it is done, whether what it read is lost."""
    if options.is_repair:
        return TRANSIENT
    return [Reason.CHANGED] if options.allow_mass_delete else []


def _stopped(folder: Folder, trip: Trip, done: list[Receipt]) -> BatchprojError:
    if trip.reason not in TRANSIENT:
        return paused(folder, trip)
    # the next attempt at this run shall try these again
    _drop_records(folder, [each for each in done if each.reasons.keys() & TRANSIENT])
    unless = ", or let them be with a higher --max-bad, 100% for any number"
    return _unreadable(trip.reason, f"{trip.count:,} of the last {trip.items:,}", unless)


class _Teller:
    """Passes the workers' news on to whoever watches."""

    def __init__(self, watch: Watch) -> None:
        self.replaced = 0
        self._watch = watch

    def __call__(self, news: News) -> None:
        self._watch.progress(news.done)
        for line in news.lines:
            self._watch.step(line)
        if news.replaced > self.replaced:
            self.replaced = news.replaced
            many = (
                "1 worker died so far and was"
                if self.replaced == 1
                else f"{self.replaced} workers died so far and were"
            )
            self._watch.step(f"{many} replaced")


def _divide(
    folder: Folder, run: str, cut: Iterator[tuple[Unit, pa.Table]], retried: frozenset[Reason]
) -> tuple[list[Receipt], list[Unit]]:
    """Which units are done, by an earlier attempt at this run, and which are to do.

    Those that have put items into quarantine for one of the reasons `retried` are done again, and those that could read
    hardly anything: workers end what they are at when a mount is lost and the run has stopped, and no encoding is lost.
    """
    started = set(folder.names(layout.units(run)))

    def prepare(pair: tuple[Unit, pa.Table]) -> Receipt | Unit:
        unit, inputs = pair
        receipt = read_receipt(folder, unit) if unit.name in started else None
        if receipt is not None and (receipt.reasons.keys() & retried or _is_unread(receipt)):
            _drop_records(folder, [receipt])
            receipt = None
        if receipt is None:
            write_inputs(folder, unit, inputs)
        return receipt or unit

    found: list[Receipt | Unit] = []
    with ThreadPoolExecutor(16) as pool:
        while chunk := list(islice(cut, 64)):
            retry.check_abandoned()
            found += pool.map(prepare, chunk)
    done = [entry for entry in found if isinstance(entry, Receipt)]
    return done, [entry for entry in found if isinstance(entry, Unit)]


def _is_unread(receipt: Receipt) -> bool:
    """Whether more than half of a unit could not be read, which may be otherwise now."""
    return sum(receipt.reasons.get(reason, 0) for reason in TRANSIENT) > receipt.unit.items / 2


def _items_by_modality(units: list[Unit]) -> dict[str, int]:
    items: Counter[str] = Counter()
    for unit in units:
        items[label(unit)] += unit.items
    return dict(items)


def _account(counts: Counts, receipts: list[Receipt], run: str) -> Report:
    """Add up the receipts, and check that every listed item is accounted for."""
    projected = sum(receipt.embedded for receipt in receipts if receipt.unit.task == "project")
    encoded: Counter[str] = Counter()
    done: Counter[str] = Counter()
    busy_s: dict[str, float] = {}
    for receipt in receipts:
        if receipt.unit.modality is not None and receipt.unit.task == "embed":
            encoded[receipt.unit.modality] += receipt.encoded
            done[receipt.unit.modality] += receipt.embedded
            busy_s[receipt.unit.modality] = busy_s.get(receipt.unit.modality, 0.0) + receipt.busy_s
    report = Report(
        run=run,
        items=counts.listed,
        embedded=sum(receipt.embedded for receipt in receipts) - projected,
        reprojected=projected,
        copied=sum(receipt.copied for receipt in receipts),
        unchanged=counts.unchanged,
        deleted=counts.deleted,
        quarantined=counts.quarantined + sum(receipt.quarantined for receipt in receipts),
        encode_calls=dict(encoded),
        items_per_s={m: round(done[m] / busy_s[m], 2) for m in done if busy_s[m]},
    )
    accounted = report.embedded + report.reprojected + report.copied + report.unchanged + report.quarantined
    if accounted != report.items:
        raise BatchprojError(f"{report.items} items listed, {accounted} accounted for; nothing was made visible, rerun")
    return report


def _commit(run: _Run, table: VectorTable, receipts: list[Receipt], options: Options) -> tuple[Snapshot, int]:
    """Write the next snapshot and bring the Lance table to it; readers see neither yet."""
    plan, folder, live = run.plan, run.job.folder, run.live
    # what follows has the run's name, not the lease's: one that was taken over must not write over it
    run.lease.confirm()
    changes = commit.next_parts(plan, folder, live, receipts, options.rebuild)
    failpoint("commit.parts")
    run.lease.confirm()  # writing parts takes long, and later runs will build on the manifest
    parts = [*changes.kept, *changes.added]
    is_anew = is_written_anew(live, run.target, changes)
    snapshot = run.target.model_copy(
        update={
            "parts": parts,
            "rows": sum(part.rows for part in parts),
            "features": commit.live_features(plan, live, receipts),
            "manifest": manifest.write(plan, folder, run.target, None if is_anew else live),
            "quarantine": manifest.write_quarantine(plan, folder, run.target),
        }
    )
    failpoint("commit.manifest")
    version = table.apply(live, snapshot, changes, commit.removed_items(plan), options.recipe.index)
    with lance_faults(folder.uri):
        if is_anew:
            commit.check_keys(plan, table.ids(version))
        else:
            before = run.lease.version
            assert before is not None, "there is a live run"
            commit.check_keys(plan, table.ids(version, without=before), table.ids(before, without=version))
    failpoint("commit.checked")
    run.lease.confirm()
    write_snapshot(folder, snapshot)
    failpoint("commit.snapshot")
    return snapshot, version
