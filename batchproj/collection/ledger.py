"""What is kept about runs for people to read: `runs/<run>.json`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Literal

import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from batchproj.collection import layout
from batchproj.collection.efficiency import Efficiency
from batchproj.collection.snapshot import Fingerprints
from batchproj.collection.unit import read_rows
from batchproj.errors import BatchprojError
from batchproj.objectstore import Folder
from batchproj.schema import Modality


class Report(BaseModel):
    """What a run did; `embed --json` prints these fields.

    Counts are the run's, over all attempts at it. `items` were listed, `copied` were read but had
    cached features, `rows` are live, `encode_calls` counts the segments that went through an
    encoder, `items_per_s` is per worker while it had work, `commit` the live version of the Lance
    table, None if nothing had to change: then `tried`, which is for the console alone, counts what was in
    quarantine and was tried again in vain. `efficiency`, of the last attempt, is for the console and the ledger.
    """

    run: str
    items: int
    embedded: int = 0
    reprojected: int = 0
    copied: int = 0
    unchanged: int = 0
    deleted: int = 0
    quarantined: int = 0
    rows: int = 0
    seconds: float = 0
    encode_calls: dict[str, int] = {}
    items_per_s: dict[str, float] = {}
    commit: int | None = None
    tried: int = Field(default=0, exclude=True)
    efficiency: dict[str, Efficiency] = Field(default={}, exclude=True)


UNFINISHED = ("running", "paused")
"""States of a run that the next one takes up again."""


class Difference(BaseModel):
    """A field of a fingerprint's document that is not what it was; dots lead into nested ones."""

    model_config = ConfigDict(frozen=True)
    modality: Modality
    field: str
    before: Any
    now: Any


class Entry(Report):
    """One run: by whom, when, from what, and what came of it.

    `attempts` counts the starts it took, `restarts` workers that died and were replaced. A run
    that is `running` in the ledger may also have died, one that is `paused` was stopped for too many items of one
    reason; the next one takes either up again. `pauses` of the attempts before ended so. Of a `collected` run nothing
    is left but this.
    """

    state: Literal["running", "paused", "done", "collected"]
    parent: str | None
    source: str
    space: str
    command: str
    user: str
    host: str
    started: str
    finished: str | None = None
    attempts: int = 1
    pauses: int = 0
    restarts: int = 0
    efficiency: dict[str, Efficiency] = {}
    differences: list[Difference] = []


def now() -> str:
    """UTC, to the second, for people: no decision rests on a clock."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_entry(folder: Folder, run: str) -> Entry | None:
    """None if there is none; raises BatchprojError if it is damaged."""
    try:
        return Entry.model_validate_json(folder.read(layout.ledger(run)))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise BatchprojError(f"{layout.ledger(run)} is damaged; run: batchproj verify {folder.uri} --repair") from error


def write_entry(folder: Folder, entry: Entry) -> None:
    folder.write(layout.ledger(entry.run), entry.model_dump_json(indent=1).encode())


def numbers(folder: Folder) -> list[str]:
    """Every run that was ever begun, oldest first."""
    return [name.removesuffix(".json") for name in folder.names("runs")]


def differences(before: dict[Modality, Fingerprints], after: dict[Modality, Fingerprints]) -> list[Difference]:
    """What makes the vectors of two runs different, field by field; empty if nothing does."""
    return [
        Difference(modality=modality, field=field, before=old, now=new)
        for modality in sorted({*before, *after})
        for field, old, new in _differing("", _document(before.get(modality)), _document(after.get(modality)))
    ]


def _document(fingerprints: Fingerprints | None) -> dict[str, Any]:
    if fingerprints is None:
        return {}
    # `feature` is the digest of the other document: it only repeats that one differs
    made = {key: value for key, value in fingerprints.vector_doc.items() if key != "feature"}
    return {"encoder": fingerprints.feature_doc, **made}


def _differing(path: str, before: Any, after: Any) -> Iterator[tuple[str, Any, Any]]:
    if before == after:
        return
    if not (isinstance(before, dict) and isinstance(after, dict)):
        yield path, before, after
        return
    for key in sorted({*before, *after}):
        yield from _differing(f"{path}.{key}" if path else key, before.get(key), after.get(key))


def quarantine_reasons(folder: Folder, run: str) -> dict[str, int]:
    """How many items of a run are in quarantine for each reason, most first."""
    counts = pc.value_counts(read_rows(folder, layout.quarantine(run))["reason"]).to_pylist()
    return {each["values"]: each["counts"] for each in sorted(counts, key=lambda each: -each["counts"])}
