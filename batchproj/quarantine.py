"""What a run could not embed, the live one or one that is paused: how many items for each reason, and some of them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from batchproj.collection import layout, ledger
from batchproj.collection.unit import DONE, INPUTS, OUTCOME, read_rows
from batchproj.errors import CollectionError
from batchproj.index import live_snapshot
from batchproj.objectstore import Folder
from batchproj.retry import CALLS_AT_ONCE
from batchproj.schema import ABOUT, Modality, Reason, quarantine_schema


class Example(BaseModel):
    """One item in quarantine, as its row has it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    uri: str
    modality: str | None
    reason: str
    detail: str | None
    stage: str | None
    attempts: int
    run: str


class Quarantined(BaseModel):
    """What of the live run is in quarantine; `quarantine --json` prints these fields.

    `items` and `reasons`, which are sorted with the most frequent first, count what was asked for; `examples`
    are some of each reason, in the same order. `paused` is the same of a run that was stopped for too many of them, as
    far as it had come: nothing of it is `committed`. Before the first commit it stands alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    run: str
    items: int
    reasons: dict[str, int]
    examples: list[Example]
    committed: bool = True
    paused: Quarantined | None = None


def quarantined(uri: str, examples: int, reason: Reason | None = None, modality: Modality | None = None) -> Quarantined:
    """Look at the quarantine of the live run, all of it or what has this reason and modality; `examples` of a reason.

    Raises CollectionError if there is no collection, BatchprojError if the table is damaged.
    """
    folder = Folder(uri)
    live = live_snapshot(folder)
    begun = _paused_run(folder)
    paused = None
    if begun is not None:
        found = _summary(begun, _rows_of_units(folder, begun), examples, reason, modality)
        paused = found.model_copy(update={"committed": False})
    if live is not None:
        rows = _table(folder, live.run, live.quarantine.sha256 if live.quarantine else None)
        return _summary(live.run, rows, examples, reason, modality).model_copy(update={"paused": paused})
    if paused is not None:
        return paused
    raise CollectionError(f"no collection at {uri}; expected one made by: batchproj embed SOURCE {uri}")


def _summary(run: str, rows: pa.Table, examples: int, reason: Reason | None, modality: Modality | None) -> Quarantined:
    for column, wanted in (("reason", reason), ("modality", modality)):
        if wanted is not None:
            rows = rows.filter(pc.equal(rows[column], str(wanted)))
    counts = pc.value_counts(rows["reason"]).to_pylist()
    reasons = {each["values"]: each["counts"] for each in sorted(counts, key=lambda each: -each["counts"])}
    shown = [
        Example(**{name: row[name] for name in Example.model_fields})
        for name in reasons
        for row in rows.filter(pc.equal(rows["reason"], name)).slice(0, examples).to_pylist()
    ]
    return Quarantined(run=run, items=rows.num_rows, reasons=reasons, examples=shown)


def _paused_run(folder: Folder) -> str | None:
    """The run that was begun last, if it is paused."""
    begun = ledger.numbers(folder)
    entry = ledger.read_entry(folder, begun[-1]) if begun else None
    return entry.run if entry is not None and entry.state == "paused" else None


def _rows_of_units(folder: Folder, run: str) -> pa.Table:
    """What the units that a run has done put into quarantine, by URI; earlier runs that tried them do not count."""
    with ThreadPoolExecutor(CALLS_AT_ONCE) as pool:
        tables = list(pool.map(partial(_rows_of_unit, folder, run), folder.names(layout.units(run))))
    return pa.concat_tables([quarantine_schema().empty_table(), *tables]).sort_by("uri")


def _rows_of_unit(folder: Folder, run: str, name: str) -> pa.Table:
    columns = quarantine_schema()
    if not folder.exists(layout.unit_file(run, name, DONE)):
        return columns.empty_table()
    outcome = read_rows(folder, layout.unit_file(run, name, OUTCOME))
    bad = outcome.filter(pc.equal(outcome["status"], "quarantined"))
    if not bad.num_rows:
        return columns.empty_table()
    inputs = read_rows(folder, layout.unit_file(run, name, INPUTS)).select(["item", "uri", "source_version"])
    rows = bad.join(inputs, "item", join_type="inner")
    rows = rows.append_column("attempts", pa.array([1] * rows.num_rows, pa.int32()))
    return rows.append_column("run", pa.array([run] * rows.num_rows)).select(columns.names).cast(columns)


def _table(folder: Folder, run: str, sha256: str | None) -> pa.Table:
    """The rows of a run's quarantine; those of an older version do not say how often an item was tried."""
    rows = read_rows(folder, layout.quarantine(run), sha256)
    if "attempts" not in rows.column_names:
        rows = rows.append_column("attempts", pa.array([1] * rows.num_rows, pa.int32()))
    return rows.select(quarantine_schema().names).cast(quarantine_schema())


# --- for the terminal ----------------------------------------------------------------------------


def lines(found: Quarantined) -> list[str]:
    """Counts by reason with what each means and what to do, and below each its examples; at last a paused run's."""
    end = ":" if found.items else "."
    if found.committed:
        told = [f"Run {found.run}: {found.items:,} items in quarantine{end}"]
    else:
        told = [
            f"Run {found.run} is paused, and nothing of it is committed: {found.items:,} items found bad so far{end}"
        ]
    for reason, count in found.reasons.items():
        about = ABOUT[Reason(reason)]
        told.append(f"{count:,} {reason}: {about.meaning}; {about.remedy}")
        told += [f"  {_line(example)}" for example in found.examples if example.reason == reason]
    return told if found.paused is None else [*told, *lines(found.paused)]


def _line(example: Example) -> str:
    tried = "tried once" if example.attempts == 1 else f"tried {example.attempts} times, last by run {example.run}"
    return f"{example.uri}: {example.detail} ({example.stage}, {tried})"
