"""The main job: list, plan, embed what changed, check, and switch readers to the new run."""

from __future__ import annotations

import datetime
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice

import pyarrow as pa
from pydantic import BaseModel

from batchproj.collection import commit, layout
from batchproj.collection.plan import Counts, Plan
from batchproj.collection.snapshot import Fingerprints, Snapshot, write_snapshot
from batchproj.collection.unit import Receipt, Unit, read_receipt, write_inputs
from batchproj.errors import BatchprojError, SourceError, UsageError
from batchproj.index import VectorTable, live_snapshot
from batchproj.objectstore import Folder, canonical, seen_from
from batchproj.pipeline import Job, label, ray_session, run_units
from batchproj.recipe import Recipe
from batchproj.source.objects import list_items
from batchproj.space import Member, ResolvedSpace

MASS_DELETE = 0.2
"""Share of the items that may vanish from a listing before we ask whether that is meant."""

MASS_FORBIDDEN = 0.2
"""Share of forbidden objects from which on we take it for a fault of the credentials."""

ROUNDS = 2
"""First by the names' promise, then, for what was misnamed, by the content: it cannot be wrong twice."""


class Report(BaseModel):
    """What a run did; `embed --json` prints these fields.

    Counts are the run's, over all attempts at it. `items` were listed, `rows` are live,
    `encode_calls` counts the segments that went through an encoder, `items_per_s` is per worker
    while it had work, `commit` the live version of the Lance table, None if nothing had to change.
    """

    run: str
    items: int
    embedded: int = 0
    reprojected: int = 0
    copied: int = 0
    unchanged: int
    deleted: int = 0
    quarantined: int
    rows: int
    seconds: float = 0
    encode_calls: dict[str, int] = {}
    items_per_s: dict[str, float] = {}
    commit: int | None = None


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
    """How a run may go about it; none of it changes a vector."""

    recipe: Recipe = Recipe()  # noqa: RUF009 - frozen
    allow_mass_delete: bool = False
    verbose: bool = False


def embed(source: str, collection: str, space: ResolvedSpace, options: Options, watch: Watch) -> Report:
    """Bring a collection up to date with a source.

    Raises SourceError or UsageError before anything is written, TryLater if storage is away.
    """
    started = time.monotonic()
    folder = Folder(collection)
    _check_places(source, folder)
    live = live_snapshot(folder)
    fingerprints = {m: _fingerprints(member) for m, member in space.members.items()}
    with Plan(fingerprints, options.recipe.limits) as plan:
        counts = _compare(plan, source, folder, live, watch)
        if live is not None and not options.allow_mass_delete:
            _check_deletions(counts, live)
        if live is not None and counts.nothing_to_do:
            report = Report(
                run=live.run,
                items=counts.listed,
                unchanged=counts.unchanged,
                quarantined=counts.quarantined,
                rows=live.rows,
            )
            return report.model_copy(update={"seconds": _since(started)})
        run = _next_run(live)
        space.save(Folder(f"{folder.uri}/{layout.space(space.fingerprint)}"))
        job = Job(folder, space.dim, space.members, options.recipe)
        receipts = _execute(plan, job, run, watch, options.verbose)
        target = Snapshot(
            run=run,
            parent=live.run if live else None,
            source=canonical(source),
            space=space.fingerprint,
            dim=space.dim,
            fingerprints=fingerprints,
            listed=counts.listed,
        )
        watch.step("checking, indexing and switching")
        commit.check_complete(plan)
        _check_readable(plan)
        report = _account(counts, receipts, run)
        table = VectorTable(folder)
        snapshot, version = _commit(plan, folder, table, live, receipts, target, options.recipe.index.min_rows)
        report = report.model_copy(update={"rows": snapshot.rows, "seconds": _since(started), "commit": version})
        _write_ledger(folder, report)
        table.switch(run, version)
        return report


def _fingerprints(member: Member) -> Fingerprints:
    return Fingerprints(
        feature=member.feature_fp,
        vector=member.vector_fp,
        feature_doc=member.feature_doc,
        vector_doc=member.vector_doc,
    )


def _since(started: float) -> float:
    return round(time.monotonic() - started, 3)


def _check_places(source: str, folder: Folder) -> None:
    root = canonical(source)
    if root == folder.uri:
        raise UsageError(f"source and collection are the same folder, {root}; choose another collection")
    if (root + "/").startswith(folder.uri + "/"):
        raise UsageError(f"the source {source} lies inside the collection {folder.uri}; choose another collection")


def _compare(plan: Plan, source: str, folder: Folder, live: Snapshot | None, watch: Watch) -> Counts:
    """List the source and lay it against the live manifest."""
    listed = 0
    for page in list_items(source, exclude=seen_from(source, folder.uri)):
        plan.add_listing(page)
        listed += page.num_rows
        watch.step(f"listing {source}: {listed:,} objects")
    if not listed:
        raise SourceError(f"nothing to embed: no objects under {source}; expected files below that folder or prefix")
    if live is not None:
        local = plan.scratch / "live.parquet"
        folder.download(layout.manifest(live.run), local)
        plan.load_manifest(local)
    return plan.decide()


def _check_deletions(counts: Counts, live: Snapshot) -> None:
    if counts.deleted > MASS_DELETE * live.listed:
        raise UsageError(
            f"{counts.deleted:,} of {live.listed:,} items are no longer in the source; "
            "nothing was deleted; if that is meant, run again with --allow-mass-delete"
        )


def _next_run(live: Snapshot | None) -> str:
    """Runs are numbered from the live one; an interrupted run's number is taken up again."""
    return f"{int(live.run) + 1 if live else 1:06d}"


def _check_readable(plan: Plan) -> None:
    """Many forbidden objects are the credentials' fault, not the objects': stop before anything shows."""
    forbidden, read = plan.rows(
        "SELECT count(*) FILTER (reason = 'forbidden'), count(*) FROM final JOIN plan USING (item) "
        "WHERE action <> 'project'"
    )[0]
    if forbidden > MASS_FORBIDDEN * read:
        raise UsageError(
            f"{forbidden:,} of {read:,} objects may be listed but not read; nothing was made visible; "
            "check the rights of these credentials"
        )


def _execute(plan: Plan, job: Job, run: str, watch: Watch, verbose: bool) -> list[Receipt]:
    """Do every unit that is not done yet; receipts of all of them."""
    limits = job.recipe.units
    cut = partial(plan.cut, run, max_items=limits.max_items, max_bytes=limits.max_bytes)
    pending = chain(cut("embed", plan.to_embed()), cut("project", plan.to_project()))
    receipts: list[Receipt] = []
    with ExitStack() as stack:
        for _ in range(ROUNDS):
            done, todo = _divide(job.folder, pending)
            watch.totals(_items_by_modality([receipt.unit for receipt in done]), _items_by_modality(todo))
            if todo:
                watch.step("starting workers")
                stack.enter_context(ray_session(verbose))
                done += run_units(job, todo, watch.progress)
            commit.record(plan, job.folder, done)
            receipts += done
            pending = chain(cut("embed", plan.deferred()))
    return receipts


def _divide(folder: Folder, cut: Iterator[tuple[Unit, pa.Table]]) -> tuple[list[Receipt], list[Unit]]:
    """Which units are done, by an earlier attempt at this run, and which are to do."""
    started = set(folder.names("units"))

    def prepare(pair: tuple[Unit, pa.Table]) -> Receipt | Unit:
        unit, inputs = pair
        receipt = read_receipt(folder, unit.name) if unit.name in started else None
        if receipt is None:
            write_inputs(folder, unit, inputs)
        return receipt or unit

    found: list[Receipt | Unit] = []
    with ThreadPoolExecutor(16) as pool:
        while chunk := list(islice(cut, 64)):
            found += pool.map(prepare, chunk)
    done = [entry for entry in found if isinstance(entry, Receipt)]
    return done, [entry for entry in found if isinstance(entry, Unit)]


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
        unchanged=counts.unchanged,
        deleted=counts.deleted,
        quarantined=counts.quarantined + sum(receipt.quarantined for receipt in receipts),
        rows=0,
        encode_calls=dict(encoded),
        items_per_s={m: round(done[m] / busy_s[m], 2) for m in done if busy_s[m]},
    )
    accounted = report.embedded + report.reprojected + report.unchanged + report.quarantined
    if accounted != report.items:
        raise BatchprojError(f"{report.items} items listed, {accounted} accounted for; nothing was made visible, rerun")
    return report


def _commit(
    plan: Plan,
    folder: Folder,
    table: VectorTable,
    live: Snapshot | None,
    receipts: list[Receipt],
    target: Snapshot,
    min_index_rows: int,
) -> tuple[Snapshot, int]:
    """Write the next snapshot and bring the Lance table to it; readers see neither yet."""
    changes = commit.next_parts(plan, folder, live, receipts)
    commit.write_manifest(plan, folder, target)
    parts = [*changes.kept, *changes.added]
    snapshot = target.model_copy(update={"parts": parts, "rows": sum(part.rows for part in parts)})
    version = table.apply(live, snapshot, changes, commit.removed_items(plan), min_index_rows)
    write_snapshot(folder, snapshot)
    return snapshot, version


def _write_ledger(folder: Folder, report: Report) -> None:
    entry = {**report.model_dump(), "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
    folder.write(layout.ledger(report.run), json.dumps(entry, indent=1).encode())
