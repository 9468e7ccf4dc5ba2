"""What one run is told, what it knows from the plan to the switch, and who watches it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from batchproj.collection.lease import Lease
from batchproj.collection.plan import Counts, Plan
from batchproj.collection.snapshot import Snapshot
from batchproj.recipe import Recipe
from batchproj.schema import Reason
from batchproj.stages import Job


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
class Run:
    """What stays the same from the plan to the switch of one run."""

    plan: Plan
    counts: Counts
    job: Job
    live: Snapshot | None
    target: Snapshot
    lease: Lease
