"""What the live run could not embed: how many items for each reason, and some of them."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from batchproj.collection import layout
from batchproj.collection.unit import read_rows
from batchproj.errors import CollectionError
from batchproj.index import live_snapshot
from batchproj.objectstore import Folder
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
    are some of each reason, in the same order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    run: str
    items: int
    reasons: dict[str, int]
    examples: list[Example]


def quarantined(uri: str, examples: int, reason: Reason | None = None, modality: Modality | None = None) -> Quarantined:
    """Look at the quarantine of the live run, all of it or what has this reason and modality; `examples` of a reason.

    Raises CollectionError if there is no collection, BatchprojError if the table is damaged.
    """
    folder = Folder(uri)
    live = live_snapshot(folder)
    if live is None:
        raise CollectionError(f"no collection at {uri}; expected one made by: batchproj embed SOURCE {uri}")
    rows = _table(folder, live.run, live.quarantine.sha256 if live.quarantine else None)
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
    return Quarantined(run=live.run, items=rows.num_rows, reasons=reasons, examples=shown)


def _table(folder: Folder, run: str, sha256: str | None) -> pa.Table:
    """The rows of a run's quarantine; those of an older version do not say how often an item was tried."""
    rows = read_rows(folder, layout.quarantine(run), sha256)
    if "attempts" not in rows.column_names:
        rows = rows.append_column("attempts", pa.array([1] * rows.num_rows, pa.int32()))
    return rows.select(quarantine_schema().names).cast(quarantine_schema())


# --- for the terminal ----------------------------------------------------------------------------


def lines(found: Quarantined) -> list[str]:
    """Counts by reason with what each means and what to do, and below each its examples."""
    told = []
    for reason, count in found.reasons.items():
        about = ABOUT[Reason(reason)]
        told.append(f"{count:,} {reason}: {about.meaning}; {about.remedy}")
        told += [f"  {_line(example)}" for example in found.examples if example.reason == reason]
    return told


def _line(example: Example) -> str:
    tried = "tried once" if example.attempts == 1 else f"tried {example.attempts} times, last by run {example.run}"
    return f"{example.uri}: {example.detail} ({example.stage}, {tried})"
