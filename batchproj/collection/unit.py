"""A unit of work: at most a few hundred items of one modality, named by the digest of its inputs.

The name makes a retry harmless: the same inputs give the same files with the same content, on any
worker, in any attempt at a run. The done-record, put if absent, is written last.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from batchproj.collection import layout
from batchproj.collection.snapshot import FeatureFile, Part
from batchproj.errors import BatchprojError
from batchproj.failpoint import failpoint
from batchproj.objectstore import Folder
from batchproj.schema import Modality

Task = Literal["embed", "project"]
Stage = Literal["read", "embed", "measure", "project", "write"]

INPUTS = "inputs.parquet"
OUTCOME = "outcome.parquet"
DONE = "done.json"

UNREADABLE = (pa.ArrowException, OSError, ValueError)
"""What pyarrow raises for a damaged Parquet file: ValueError where a name in it is no UTF-8."""


class Unit(BaseModel):
    """What a worker is told; the items themselves are in the unit's `inputs.parquet`.

    `modality` is what the names of the objects promise, None where they promise nothing.
    `cached` names the file of features that a `project` unit starts from, `cached_sha256` is its digest.
    The items of an `again` unit were in quarantine before.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    run: str
    task: Task
    modality: Modality | None
    items: int
    bytes: int
    cached: str | None = None
    cached_sha256: str | None = None
    again: bool = False


class Span(BaseModel):
    """What a process (`where`, node:pid) did with a unit, from `began` (Unix time) on.

    To `measure` is to see what an encoder does alone, once a worker has done its units.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    stage: Stage
    where: str
    began: float
    seconds: float

    @property
    def node(self) -> str:
        return self.where.rpartition(":")[0]

    @property
    def ended(self) -> float:
        return self.began + self.seconds


class Receipt(BaseModel):
    """The done-record: what came of a unit. `copied` items were read, but had cached features.

    `reasons` counts the quarantined ones by theirs; of those that are `changed`, `gone` were not there any more.
    For measuring alone, no decision rests on a clock: `spans` tell which process did what with it and when, `busy_s`
    are the seconds of the worker that embedded or projected it, `model_s` those inside the encoder, both without what
    is counted for another unit that was under way as well, and `ceiling_per_s` is how many segments a second the
    encoder does alone, if the worker took the time to see.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    unit: Unit
    embedded: int
    copied: int = 0
    quarantined: int
    reasons: dict[str, int] = {}
    gone: int = 0
    deferred: int
    encoded: int
    busy_s: float
    model_s: float = 0
    spans: tuple[Span, ...] = ()
    ceiling_per_s: float | None = None
    part: Part | None
    features: FeatureFile | None = None


@dataclass
class Output:
    """A unit's tables, as they will be written.

    `encoded` segments went through the encoder, in `model_s` seconds; `copied` items had cached features.
    """

    vectors: pa.Table
    features: pa.Table
    outcome: pa.Table
    encoded: int
    copied: int = 0
    model_s: float = 0


def unit_name(context: list[Any], inputs: pa.Table) -> str:
    """Digest of everything that decides a unit's files: its context, which is JSON, and its items."""
    named = hashlib.sha256(json.dumps(context, sort_keys=True).encode())
    for column in ("item", "uri", "source_version", "size", "pair", "metadata", "known"):
        named.update(json.dumps(inputs[column].to_pylist()).encode())
    return named.hexdigest()[:32]


def write_inputs(folder: Folder, unit: Unit, inputs: pa.Table) -> None:
    folder.write(layout.unit_file(unit.run, unit.name, INPUTS), parquet_bytes(inputs))


def read_inputs(folder: Folder, unit: Unit) -> pa.Table:
    return read_parquet(folder.read(layout.unit_file(unit.run, unit.name, INPUTS)))


def write_part(folder: Folder, name: str, rows: pa.Table) -> Part:
    """Write one part under `parquet/`; equal rows give equal bytes."""
    data = parquet_bytes(rows)
    folder.write(layout.part(name), data)
    return Part(name=name, rows=rows.num_rows, bytes=len(data), sha256=digest(data))


def write_features(folder: Folder, fingerprint: str, name: str, rows: pa.Table) -> FeatureFile:
    """Write one file of the feature cache; equal rows give equal bytes."""
    data = parquet_bytes(rows)
    folder.write(layout.features(fingerprint, name), data)
    return FeatureFile(name=name, rows=rows.num_rows, bytes=len(data), sha256=digest(data), fingerprint=fingerprint)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def file_digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def finish(folder: Folder, receipt: Receipt, outcome: pa.Table) -> Receipt:
    """Write the outcome and then the done-record; the receipt of whoever was first."""
    unit = receipt.unit
    folder.write(layout.unit_file(unit.run, unit.name, OUTCOME), parquet_bytes(outcome))
    failpoint("unit.outcome")
    if folder.create(layout.unit_file(unit.run, unit.name, DONE), receipt.model_dump_json().encode()):
        failpoint("unit.done")
        return receipt
    first = read_receipt(folder, unit)
    if first is None:
        raise FileNotFoundError(layout.unit_file(unit.run, unit.name, DONE))
    return first


def read_receipt(folder: Folder, unit: Unit) -> Receipt | None:
    """The done-record of a unit, None if it is not done."""
    try:
        return Receipt.model_validate_json(folder.read(layout.unit_file(unit.run, unit.name, DONE)))
    except FileNotFoundError:
        return None


def read_outcome(folder: Folder, unit: Unit) -> pa.Table:
    return read_parquet(folder.read(layout.unit_file(unit.run, unit.name, OUTCOME)))


def parquet_bytes(table: pa.Table) -> bytes:
    """A Parquet file whose every page carries a checksum; equal tables give equal bytes."""
    sink = pa.BufferOutputStream()
    # numbers that are hardly ever equal become larger by a dictionary, and take several times as long to write; the
    # least and the greatest of them, which nobody asks for, take as long to find as all else of float16 to write
    named = [field.name for field in table.schema if pa.types.is_string(field.type)]
    pq.write_table(
        table, sink, compression="zstd", use_dictionary=named, write_statistics=named, write_page_checksum=True
    )
    return bytes(sink.getvalue())


def read_parquet(data: bytes) -> pa.Table:
    """Raises one of UNREADABLE if the file is damaged."""
    return pq.read_table(pa.BufferReader(data), page_checksum_verification=True)


def read_rows(folder: Folder, name: str, sha256: str | None = None) -> pa.Table:
    """A Parquet file of the collection; raises BatchprojError if it is gone, damaged or not of that digest."""
    try:
        data = folder.read(name)
        if sha256 is None or digest(data) == sha256:
            return read_parquet(data)
        cause = None
    except UNREADABLE as error:
        cause = error
    raise BatchprojError(f"{name} is damaged; run: batchproj verify {folder.uri} --repair") from cause
