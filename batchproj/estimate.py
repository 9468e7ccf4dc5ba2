"""What a run would do, and what it would take: time, money, space. Nothing is written.

    compare    as the run itself does: listing against the live manifest
    sample     a few real objects per modality, read and embedded as a worker would
    scale      to all that is to be done, with the pools the run would have on this machine

An estimate is as good as its sample: objects are taken in the order of their ids, which are
digests, so they lie all over the corpus. Work that an interrupted run has left done counts as to do.
"""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pydantic import BaseModel, ConfigDict
from rich.filesize import decimal

from batchproj import retry
from batchproj.calibration import Calibrator, Sample
from batchproj.changes import check_places, check_sound_tracks, compare, fingerprints_of, mass_delete
from batchproj.collection import ledger, manifest
from batchproj.collection.lease import head
from batchproj.collection.plan import Counts, Plan
from batchproj.collection.snapshot import Snapshot, read_snapshot
from batchproj.decode.versions import decoders
from batchproj.index import live_snapshot
from batchproj.objectstore import Folder, canonical
from batchproj.recipe import Recipe
from batchproj.schema import Modality, Reason
from batchproj.small_run import MOST_ITEMS, MOST_PROJECTED, is_ray_asked_for
from batchproj.source.place import FAULT, fault_at, parse_place
from batchproj.space import ResolvedSpace
from batchproj.terminal import nonzero

SAMPLE = 16
"""Objects of each modality that are read, and encoded, to calibrate."""

START_S, HERE_S, COMMIT_S = 20.0, 4.0, 1.0
"""What a run takes however small it is, with Ray, without, and of those the commit alone; round figures, the least
certain part of an estimate."""

ROW_BYTES = 400
"""Names, digests and text of a row, in Parquet and Lance together, beside its vector and feature."""

MANIFEST_BYTES = 150
"""An item's share of a run's manifest and of its unit's records."""

UNCLEAR = "unclear"
"""In the place of a modality, for names that promise none."""

_TO_READ = """
CREATE TEMP VIEW to_read AS
SELECT p.item, p.uri, p.pair, p.size, p.source_version, p.metadata, p.place,
    coalesce(p.modality, '{unclear}') AS modality,
    k.item IS NOT NULL AND (g.size IS NOT NULL OR (p.action = 'changed' AND p.size = m.size)) AS cached
FROM plan p LEFT JOIN manifest m USING (item) LEFT JOIN known k USING (item)
    LEFT JOIN (SELECT DISTINCT size, source_version FROM gone) g
    ON p.action = 'new' AND g.size = p.size AND g.source_version = p.source_version
WHERE p.action IN ('new', 'changed', 'retry', 'encode') AND p.size <= {limit}
"""

# live parts that lose some of their items, but not all, are written again
_REWRITTEN = """
SELECT part FROM (
    SELECT m.part, p.item IS NULL OR p.action IN ('changed', 'retry', 'encode', 'project') AS lost
    FROM manifest m LEFT JOIN plan p USING (item) WHERE m.part IS NOT NULL)
GROUP BY part HAVING bool_or(lost) AND NOT bool_and(lost)
"""

# rows and members of which the listing knows already that there is nothing to embed
_FAULTY = f"""
SELECT uri, place, count(*) OVER () FROM plan
WHERE action IN ('new', 'changed', 'retry', 'encode') AND starts_with(place, '["{FAULT}",') ORDER BY key LIMIT 1
"""

_RENAMED = f"""
SELECT count(*) FROM manifest JOIN ({_REWRITTEN}) USING (part) JOIN plan USING (item) WHERE action = 'unchanged'
"""


class Calibration(BaseModel):
    """What the sampled objects of a modality took, one worker doing one after another."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    sampled: int
    encode_s_per_item: float
    read_s_per_item: float


class PlanDocument(BaseModel):
    """What a run would do; `plan --json` prints these fields.

    `listed` is the sum of the counts from `new` to `quarantined`. `moved` are new objects with size
    and version of one that vanished, `touched` have another version but the same size: both are
    read, and encoded only if their bytes are not the ones that are embedded already. `deleted`
    objects vanished, those whose bytes moved included.

    `encodes` counts items that may need the encoder, those of unclear name under `unclear`;
    `seconds` is scaled from `calibration`, on this machine and its `device` ("cpu" or "cuda", None
    if nothing was to be encoded), and `gpu_hours` are those that the recipe's pools hold for so
    long. `space_bytes` are added to the collection, `token_bytes` of them, by modality, are tokens
    that a space with `cache: tokens` keeps. `blocked` is why `embed` would refuse. `retry_quarantined` are the reasons
    that the plan was asked to try again. `faulty` rows and members are to be read, and will be quarantined instead, as
    their table tells already: `first_fault` is what is wrong with one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: str
    collection: str
    space: str
    run: str | None
    listed: int
    new: int
    moved: int
    changed: int
    touched: int
    retry: int
    reencode: int
    reproject: int
    unchanged: int
    quarantined: int
    deleted: int
    differences: list[ledger.Difference]
    reads: int
    read_bytes: int
    encodes: dict[str, int]
    projects: int
    calibration: dict[str, Calibration]
    device: str | None
    seconds: float
    gpu_hours: float
    cost: float | None
    space_bytes: int
    token_bytes: dict[str, int]
    blocked: str | None
    nothing_to_do: bool
    retry_quarantined: list[Reason] = []
    faulty: int = 0
    first_fault: str | None = None


@dataclass(frozen=True)
class _Work:
    """What is to be read of one modality, and how much of it to be encoded."""

    modality: str
    reads: int
    read_bytes: int
    encodes: int
    encode_bytes: int


def make_plan(
    source: str,
    collection: str,
    space: ResolvedSpace,
    recipe: Recipe,
    gpu_hour_price: float | None,
    say: Callable[[str], None],
    retry_quarantined: frozenset[Reason] = frozenset(),
) -> PlanDocument:
    """Find out what `embed` would do, without its lease and without writing.

    Raises SourceError or UsageError as `embed` does, TryLater if storage is away.
    """
    space.refuse_if_bridge()
    retry.configure(recipe.retry_s)
    folder = Folder(collection)
    fingerprints = fingerprints_of(space)
    with retry.watch_pauses(say), Plan(fingerprints, recipe.limits, decoders()) as plan:
        check_places(source, folder, recipe)
        check_sound_tracks(recipe, space)
        live = _committed(folder)
        counts = compare(plan, source, folder, live, recipe, say, retry_quarantined)
        plan.db.execute(_TO_READ.format(unclear=UNCLEAR, limit=recipe.limits.item_bytes))
        estimate = _Estimate(plan, folder, live, counts, space, recipe, say)
        gpu_hours = estimate.gpu_hours()
        faulty, first_fault = _faulty(plan)
        return PlanDocument(
            source=canonical(source),
            collection=folder.uri,
            space=space.space.name,
            run=live.run if live else None,
            **_categories(plan, counts),
            differences=ledger.differences(live.fingerprints, fingerprints) if live else [],
            reads=sum(work.reads for work in estimate.works),
            read_bytes=sum(work.read_bytes for work in estimate.works),
            encodes={work.modality: work.encodes for work in estimate.works if work.encodes},
            projects=counts.project,
            calibration=estimate.calibration(),
            device=estimate.device,
            seconds=round(estimate.seconds, 1),
            gpu_hours=round(gpu_hours, 4),
            cost=None if gpu_hour_price is None else round(gpu_hours * gpu_hour_price, 2),
            space_bytes=estimate.space_bytes(),
            token_bytes=estimate.token_bytes(),
            blocked=mass_delete(counts, live),
            nothing_to_do=estimate.nothing_to_do,
            retry_quarantined=sorted(retry_quarantined),
            faulty=faulty,
            first_fault=first_fault,
        )


def _faulty(plan: Plan) -> tuple[int, str | None]:
    """How many of what is to be read cannot be, and what is wrong with the first of them."""
    if not (found := plan.rows(_FAULTY)):
        return 0, None
    uri, place, count = found[0]
    return count, f"{uri}: {fault_at(parse_place(place))}"


def _committed(folder: Folder) -> Snapshot | None:
    """What the run would start from: the live run, or the one that died between commit record and tag."""
    live = live_snapshot(folder)
    newest = head(folder)
    if newest is None or newest.run is None or (live is not None and newest.run == live.run):
        return live
    return read_snapshot(folder, newest.run)


def _categories(plan: Plan, counts: Counts) -> dict[str, int]:
    """Every listed object in one category, and the deleted ones."""
    likely = {"moved": 0, "touched": 0}
    for difference in plan.differences():
        if difference.likely is not None:
            likely[difference.likely] += difference.items
    return {
        **likely,
        "listed": counts.listed,
        "new": counts.new - likely["moved"],
        "changed": counts.changed - likely["touched"],
        "retry": counts.retry,
        "reencode": counts.encode,
        "reproject": counts.project,
        "unchanged": counts.unchanged,
        "quarantined": counts.quarantined,
        "deleted": counts.deleted,
    }


class _Estimate:
    """Samples on construction; the rest is arithmetic."""

    def __init__(
        self,
        plan: Plan,
        folder: Folder,
        live: Snapshot | None,
        counts: Counts,
        space: ResolvedSpace,
        recipe: Recipe,
        say: Callable[[str], None],
    ) -> None:
        self._plan, self._live, self._counts, self._space, self._recipe = plan, live, counts, space, recipe
        self._calibrator = Calibrator(space, recipe)
        self.nothing_to_do = live is not None and counts.nothing_to_do
        self.works = _works(plan, space)
        self.samples: dict[str, Sample] = {}
        for work in self.works:
            say(f"calibrating on {min(SAMPLE, work.reads)} objects ({work.modality})")
            self.samples[work.modality] = self._calibrator.measure(_sampled(plan, work.modality))
        self.device = self._calibrator.device
        self.seconds = self._seconds(folder)

    def calibration(self) -> dict[str, Calibration]:
        return {
            work.modality: Calibration(
                sampled=sample.reads,
                encode_s_per_item=round(self._encode_s(work), 6),
                read_s_per_item=round(sample.read_s / max(sample.reads, 1), 6),
            )
            for work, sample in ((work, self.samples[work.modality]) for work in self.works)
        }

    def _encode_s(self, work: _Work) -> float:
        """An item's seconds: by items, but by bytes of what costs by its length, sound and video: it differs widely."""
        sample = self.samples[work.modality]
        if not sample.encodes or not work.encodes:
            return 0.0
        if work.modality in (Modality.AUDIO, Modality.VIDEO) and sample.encode_bytes:
            return sample.encode_s / sample.encode_bytes * work.encode_bytes / work.encodes
        return sample.encode_s / sample.encodes

    def _seconds(self, folder: Folder) -> float:
        """Of the whole run: the slowest pool, or all of them where they share too few cores."""
        if self.nothing_to_do:
            return 0.0
        slowest_s = core_s = read_s = 0.0
        for work in self.works:
            sample = self.samples[work.modality]
            encode_s = work.encodes * self._encode_s(work)
            workers, threads, gpus = self._pool(work)
            slowest_s = max(slowest_s, encode_s / workers)
            core_s += 0.0 if gpus else encode_s * threads
            rounds = 2 if work.modality == UNCLEAR else 1  # once to find out what it is, once to embed it
            read_s += rounds * work.reads * sample.read_s / max(sample.reads, 1)
        busy_s = max(slowest_s, core_s / (os.cpu_count() or 1), read_s)
        return self._start_s() + self._calibrator.load_s + busy_s + self._projecting_s(folder)

    def _start_s(self) -> float:
        """As `small_run.is_small` will have it, which knows the units."""
        items = sum(work.encodes for work in self.works)
        if self._recipe.pools or is_ray_asked_for() or items > MOST_ITEMS or self._counts.project > MOST_PROJECTED:
            return START_S
        return HERE_S if items or self._counts.project else COMMIT_S

    def _pool(self, work: _Work) -> tuple[int, int, float]:
        """Workers there is work for, and threads and GPUs of each."""
        limits = self._recipe.units
        units = math.ceil(max(work.reads / limits.max_items, work.read_bytes / limits.max_bytes, 1))
        workers, threads, gpus = self._calibrator.pool(_modality(work))
        return min(workers, units), threads, gpus

    def _projecting_s(self, folder: Folder) -> float:
        """Of what only needs another projector, measured on one file of cached features per modality."""
        files = self._plan.rows(
            "SELECT modality, count(*), min(cached) FROM plan WHERE action = 'project' GROUP BY modality"
        )
        seconds = 0.0
        for modality, items, file in files:
            seconds += items * self._calibrator.project_s_per_item(folder, Modality(modality), file)
        return seconds

    def gpu_hours(self) -> float:
        """A pool holds its GPUs as long as the run lasts."""
        pools = [self._pool(work) for work in self.works if work.encodes]
        return sum(workers * gpus for workers, _, gpus in pools) * self.seconds / 3600

    def space_bytes(self) -> int:
        """Rows as measured on the sample, parts that are written again, and the manifest."""
        if self.nothing_to_do:
            return 0
        made = sum(work.reads * self._row_bytes(work) for work in self.works)
        projected: int = self._plan.rows(
            "SELECT coalesce(sum(segments), 0)::BIGINT FROM plan JOIN manifest USING (item) WHERE action = 'project'"
        )[0][0]
        rewritten = {name for (name,) in self._plan.rows(_REWRITTEN)}
        again = sum(part.bytes for part in self._live.parts if part.name in rewritten) if self._live else 0
        return round(made + projected * self._vector_bytes() + again + self._manifest_items() * MANIFEST_BYTES)

    def _manifest_items(self) -> int:
        """Items that the run writes into the manifest: those it changes, and those whose part gets another name."""
        counts = self._counts
        renamed = self._plan.rows(_RENAMED)[0][0]
        changed = counts.listed - counts.unchanged - counts.quarantined + counts.deleted + renamed
        return counts.listed if manifest.is_whole(self._live, changed) else changed

    def token_bytes(self) -> dict[str, int]:
        """As measured on the sample; modalities that keep pooled features are left out."""
        sampled = [(work, self.samples[work.modality]) for work in self.works]
        return {
            work.modality: round(work.reads * sample.token_bytes / sample.encodes)
            for work, sample in sampled
            if sample.token_bytes
        }

    def _row_bytes(self, work: _Work) -> float:
        """Bytes that an item adds; one vector and one feature where no sampled item was encoded."""
        sample = self.samples[work.modality]
        if sample.encodes:
            return sample.made_bytes / sample.encodes
        modality = _modality(work)
        member = self._space.members.get(modality) if modality else None
        return self._vector_bytes() + 2 * member.dim if member else 0

    def _vector_bytes(self) -> int:
        """A row's bytes in Parquet and in Lance; vectors do not compress."""
        return 2 * 4 * self._space.dim + ROW_BYTES


def _modality(work: _Work) -> Modality | None:
    return None if work.modality == UNCLEAR else Modality(work.modality)


def _works(plan: Plan, space: ResolvedSpace) -> list[_Work]:
    known = ", ".join(f"'{modality}'" for modality in [*space.members, UNCLEAR])
    encoded = f"NOT cached AND modality IN ({known})"
    found = plan.rows(
        f"SELECT modality, count(*), sum(size)::BIGINT, count(*) FILTER ({encoded}), "
        f"coalesce(sum(size) FILTER ({encoded}), 0)::BIGINT FROM to_read GROUP BY modality ORDER BY modality"
    )
    return [_Work(*row) for row in found]


def _sampled(plan: Plan, modality: str) -> list[dict[str, Any]]:
    """The objects to sample, those that need the encoder first; ids are digests, so their order is no order."""
    columns = ["item", "uri", "pair", "size", "source_version", "metadata", "place", "cached"]
    found = plan.rows(
        f"SELECT {', '.join(columns)} FROM to_read WHERE modality = '{modality}' ORDER BY cached, item LIMIT {SAMPLE}"
    )
    return [dict(zip(columns, row, strict=True)) for row in found]


# --- for the terminal ----------------------------------------------------------------------------


def lines(document: PlanDocument, space: str | None = None, recipe: str | None = None) -> list[str]:
    """The plan in a few lines: the verdict first, then the command that does it, with the space and recipe given."""
    if document.nothing_to_do:
        aside = f", {document.quarantined:,} in quarantine" if document.quarantined else ""
        return [f"nothing to do: {document.unchanged:,} unchanged{aside}; run {document.run} stays live"]
    last = f"embed will refuse this: {document.blocked}" if document.blocked else _command(document, space, recipe)
    return [_verdict(document), *_faults(document), _work(document), _price(document), last]


def _faults(document: PlanDocument) -> list[str]:
    if not document.faulty:
        return []
    first = "the first, " if document.faulty > 1 else ""
    return [f"{document.faulty:,} of them cannot be read and will be quarantined: {first}{document.first_fault}"]


def _verdict(document: PlanDocument) -> str:
    named = {
        "new": document.new,
        "changed": document.changed,
        "touched": document.touched,
        "moved": document.moved,
        "deleted (old names of moved ones too)" if document.moved else "deleted": document.deleted,
        "to try again from quarantine": document.retry,
        "to encode again": document.reencode,
        "to project again": document.reproject,
        "unchanged": document.unchanged,
        "in quarantine": document.quarantined,
    }
    return "; ".join([nonzero(named) or "the source is empty", *map(_difference, document.differences)])


def _difference(difference: ledger.Difference) -> str:
    part = "encoder" if difference.field.startswith("encoder") else "projector"
    if difference.field == "encoder" and None in (difference.before, difference.now):
        return f"the {difference.modality} encoder is {'new' if difference.before is None else 'gone'}"
    before, now = (_short(value) for value in (difference.before, difference.now))
    return f"the {difference.modality} {part} changes: {difference.field} {before} -> {now}"


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 24 else f"{text[:12]}…"


def _work(document: PlanDocument) -> str:
    encodes = ", ".join(f"{count:,} {modality}" for modality, count in document.encodes.items())
    return (
        f"reads {document.reads:,} objects ({decimal(document.read_bytes)}), encodes at most {encodes or 'none'}, "
        f"projects {document.projects:,} again, adds about {decimal(document.space_bytes)} to the collection"
        f"{_tokens(document)}"
    )


def _tokens(document: PlanDocument) -> str:
    sizes = ", ".join(f"{decimal(size)} of {modality}" for modality, size in document.token_bytes.items())
    return f" (of that as tokens: {sizes})" if sizes else ""


def _price(document: PlanDocument) -> str:
    sampled = ", ".join(f"{each.sampled} {modality}" for modality, each in document.calibration.items())
    by = f", estimated from {sampled} objects on {document.device or 'this machine'}" if sampled else ""
    gpus = f"; {document.gpu_hours:,.2f} GPU-hours" if document.gpu_hours else "; no GPU"
    cost = f", cost {document.cost:,.2f}" if document.cost is not None else ""
    return f"takes about {_duration(document.seconds)}{by}{gpus}{cost}"


def _duration(seconds: float) -> str:
    return f"{seconds:,.0f} s" if seconds < 100 else f"{timedelta(seconds=round(seconds))} h"


def _command(document: PlanDocument, space: str | None, recipe: str | None) -> str:
    words = [uri.removeprefix("file://") for uri in (document.source, document.collection)]
    words += ["--space", space] if space else []
    words += ["--recipe", recipe] if recipe else []
    reasons = map(str, document.retry_quarantined) if set(document.retry_quarantined) != set(Reason) else ["all"]
    words += [word for reason in reasons for word in ("--retry-quarantined", reason)]
    return f"do it: batchproj embed {shlex.join(words)}"
