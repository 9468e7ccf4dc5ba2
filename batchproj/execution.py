"""The units of a run: cut, divided into done and to do, done, and their outcomes brought into the plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice

import pyarrow as pa

from batchproj import retry
from batchproj.breaker import Breaker, Trip, paused
from batchproj.collection import commit, layout
from batchproj.collection.plan import TRANSIENT
from batchproj.collection.unit import Receipt, Unit, read_receipt, write_inputs
from batchproj.errors import BatchprojError
from batchproj.news import News
from batchproj.objectstore import Folder
from batchproj.pipeline import ray_session, run_units
from batchproj.run import Options, Run, Watch
from batchproj.run_checks import drop_records, unreadable
from batchproj.schema import Reason
from batchproj.small_run import is_small, run_here
from batchproj.stages import Job, label

ROUNDS = 2
"""First by the names' promise, then, for what was misnamed, by the content: it cannot be wrong twice."""


@dataclass
class Executed:
    """Receipts of all units, `fresh` ones of this attempt round by round, and how many workers were replaced."""

    receipts: list[Receipt] = field(default_factory=list)
    fresh: list[list[Receipt]] = field(default_factory=list)
    replaced: int = 0


def execute(run: Run, watch: Watch, options: Options, executed: Executed) -> None:
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
        for number in range(ROUNDS):
            done, todo = _divide(job.folder, run.target.run, pending, options.retry_quarantined)
            if trip := breaker.add(done):
                raise _stopped(job.folder, trip, receipts + done)
            if number and todo:  # the counts begin anew
                items = sum(unit.items for unit in todo)
                watch.step(f"embedding what names did not tell: {items:,} item{'s' if items > 1 else ''}")
            watch.totals(_items_by_modality([receipt.unit for receipt in done]), _items_by_modality(todo))
            if todo:
                fresh: list[Receipt] = []
                executed.fresh.append(fresh)
                teller = _Teller(watch)
                for receipt in _run(job, todo, teller, stack, watch, options.verbose):
                    run.lease.check()
                    retry.check_abandoned()
                    done.append(receipt)
                    fresh.append(receipt)
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
    drop_records(folder, [each for each in done if each.reasons.keys() & TRANSIENT])
    unless = ", or let them be with a higher --max-bad, 100% for any number"
    return unreadable(trip.reason, f"{trip.count:,} of the last {trip.items:,}", unless)


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
            drop_records(folder, [receipt])
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
