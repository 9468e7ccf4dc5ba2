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
from pathlib import Path

from batchproj import retry
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
from batchproj.collection.lease import refuse_if_held
from batchproj.collection.ledger import Entry, Report
from batchproj.collection.plan import Counts, Plan
from batchproj.collection.snapshot import Snapshot, write_snapshot
from batchproj.collection.unit import Receipt
from batchproj.decode.versions import decoders
from batchproj.errors import BatchprojError, TooManyBad, TryLater, UsageError
from batchproj.execution import Executed, execute
from batchproj.failpoint import failpoint
from batchproj.gate import refuse_if_worse
from batchproj.index import VectorTable, is_written_anew, live_snapshot
from batchproj.lance_store import lance_faults
from batchproj.objectstore import Folder, canonical
from batchproj.run import Options, Run, Watch
from batchproj.run_checks import account, check_encoders, check_readable, drop_records
from batchproj.space import ResolvedSpace
from batchproj.stages import Job
from batchproj.switch import finish, next_run, unsettled, writing
from batchproj.timeline import require_writable, write_timeline

__all__ = ["Options", "Watch", "embed", "usual_space"]


def usual_space(collection: str) -> str:
    """The space a collection was last made with, so that a plain rerun undoes nothing; builtin for a new one."""
    folder = Folder(collection)
    live = live_snapshot(folder)
    return f"{folder.uri}/{layout.space(live.space)}" if live else "builtin"


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
            _draw([], options.profile, watch)
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
            report = _do(Run(plan, counts, job, live, target, lease), options, watch, started)
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


def _do(run: Run, options: Options, watch: Watch, started: float) -> Report | None:
    """Execute the plan and switch; None if all that came of it is what was there before."""
    folder = run.job.folder
    entry = _begin(run)
    run.lease.working_on = run.target.run
    executed = Executed()
    try:
        execute(run, watch, options, executed)
    except TooManyBad:
        ended = {"state": "paused", "seconds": _since(started), "finished": ledger.now()}
        ledger.write_entry(folder, entry.model_copy(update=ended))
        raise
    finally:
        _draw([receipt for each in executed.fresh for receipt in each], options.profile, watch)
    receipts = executed.receipts
    retry.check_abandoned()
    watch.step("checking, indexing and switching")
    commit.check_complete(run.plan)
    check_readable(run, receipts, options)
    check_encoders(run, receipts)
    # what was tried again because decoders, limits or encoders are others must not be by every run from now on
    judged_alike = run.live is not None and run.live.judges_as(run.target)
    if not options.rebuild and judged_alike and commit.is_as_before(run.plan):
        drop_records(folder, receipts)
        folder.remove([layout.ledger(run.target.run)])
        return None
    report = account(run.counts, receipts, run.target.run)
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
    if not receipts:
        watch.step(f"no timeline: no unit was done, {file} is as it was")
        return
    try:
        write_timeline(receipts, file)
        watch.step(f"timeline of what was done: {file}")
    except OSError as error:
        watch.step(f"warning: the timeline {file} was not written: {error.strerror}")


def _tidy(run: Run, table: VectorTable, options: Options, watch: Watch) -> None:
    """The run is live: what goes wrong from here on is the next run's to do."""
    try:
        if run.lease.superseded() is None:
            table.tidy(options.recipe.index)
    except (BatchprojError, OSError, RuntimeError, ValueError) as error:
        watch.step(f"cleaning up is left to the next run: {error}")


def _begin(run: Run) -> Entry:
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


def _commit(run: Run, table: VectorTable, receipts: list[Receipt], options: Options) -> tuple[Snapshot, int]:
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
