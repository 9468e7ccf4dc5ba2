"""How long this machine takes to read and to embed: measured on a few real objects, as a worker would."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from batchproj.collection import layout
from batchproj.collection.unit import Task, Unit, parquet_bytes, read_rows
from batchproj.errors import ItemFault
from batchproj.objectstore import Folder
from batchproj.pools import pool_size
from batchproj.recipe import Pool, Recipe
from batchproj.schema import Modality
from batchproj.source.reading import read_items
from batchproj.space import ResolvedSpace
from batchproj.worker_environment import PATIENT_THREADS

# Imported where it is used: most plans encode nothing and need not wait for models and codecs.
if TYPE_CHECKING:
    import pyarrow as pa

    from batchproj.collection.unit import Output
    from batchproj.decode.process import DecoderProcess
    from batchproj.decoding import Fetched
    from batchproj.embedding import UnitWorker

BOX_S = 10.0
"""No further objects of a modality are sampled once reading and encoding them took this long."""

CHUNK_ITEMS = 8
CHUNK_BYTES = 8 * 2**20
"""Sampled objects are read and encoded in chunks up to this size; the clock is looked at in between."""


@dataclass
class Sample:
    """What sampled objects took. Of the `reads` those in `encodes` were to be encoded, broken ones
    among them; `made_bytes` are the rows of these in the collection, `token_bytes` what of that are tokens."""

    reads: int = 0
    read_s: float = 0
    encodes: int = 0
    encode_bytes: int = 0
    encode_s: float = 0
    made_bytes: int = 0
    token_bytes: int = 0


class Calibrator:
    """Embeds with the threads a worker of the run would have; each model is loaded once, in `load_s` seconds.

    `device` is "cpu" or "cuda" once a model is loaded.
    """

    def __init__(self, space: ResolvedSpace, recipe: Recipe) -> None:
        self.load_s = 0.0
        self.device: str | None = None
        self._space = space
        self._recipe = recipe
        self._workers: dict[Modality, UnitWorker] = {}
        self._looker: DecoderProcess | None = None

    def pool(self, modality: Modality | None) -> tuple[int, int, float]:
        """Workers a run here would have for a modality, threads and GPUs of each; None: for unclear names."""
        pool = self._recipe.pools.get(modality, Pool()) if modality else Pool()
        return *pool_size(pool, len(self._space.members), os.cpu_count() or 1), pool.gpus

    def measure(self, rows: list[dict[str, Any]]) -> Sample:
        """Read the objects, and encode those not `cached`; content decides the modality, as in a run."""
        sample = Sample()
        for chunk in _chunks(rows):
            begun = time.monotonic()
            read = read_items(chunk, self._recipe.limits.item_bytes, self._recipe.read_threads)
            items = [_fetched(row, data) for row, data in zip(chunk, read, strict=True)]
            sample.read_s += time.monotonic() - begun
            sample.reads += len(chunk)
            fresh = [item for item, row in zip(items, chunk, strict=True) if not row["cached"]]
            sample.encodes += len(fresh)
            sample.encode_bytes += sum(row["size"] for row in chunk if not row["cached"])
            for modality, group in self._by_modality(fresh).items():
                seconds, output = self._embed(modality, group)
                sample.encode_s += seconds
                sample.made_bytes += _stored(output)
                if self._space.members[modality].cache == "tokens":
                    sample.token_bytes += _parquet(output.features.select(["feature"]))
            if sample.read_s + sample.encode_s >= BOX_S:
                break
        return sample

    def _by_modality(self, items: list[Fetched]) -> dict[Modality, list[Fetched]]:
        """What can be encoded; the rest was read, and that is all."""
        from batchproj.decode.sniff import from_outside, sound_of

        groups: dict[Modality, list[Fetched]] = {}
        for item in items:
            try:
                modality = from_outside(item.data, item.name) or self._decoder().look(item.data)
                modality = sound_of(modality) if item.is_sound_track else modality
            except ItemFault:
                continue
            if item.fault is None and modality in self._space.members:
                groups.setdefault(modality, []).append(item)
        return groups

    def _decoder(self) -> DecoderProcess:
        """To look into containers: their bytes are as strange here as in a run."""
        from batchproj.decode.child import Work
        from batchproj.decode.item import PIECE
        from batchproj.decode.process import DecoderProcess

        self._looker = self._looker or DecoderProcess(Work(None, None, self._recipe.limits, PIECE))
        return self._looker

    def _embed(self, modality: Modality, items: list[Fetched]) -> tuple[float, Output]:
        """Embed and take the time; a model's first call is slow and, unless very slow, is made twice."""
        if modality in self._workers:
            return self._timed(modality, items)
        self._workers[modality] = self._load(modality)
        seconds, output = self._timed(modality, items)
        return (seconds, output) if seconds >= BOX_S else self._timed(modality, items)

    def _timed(self, modality: Modality, items: list[Fetched]) -> tuple[float, Output]:
        begun = time.monotonic()
        output = self._workers[modality].embed(_unit("embed", modality, len(items)), items, None, lambda _done: None)
        return time.monotonic() - begun, output

    def _load(self, modality: Modality) -> UnitWorker:
        begun = time.monotonic()
        # read once, when torch is first imported. As `ray_session` has it for workers: else threads that wait spin,
        # and on busy cores the calibration takes thrice what the run does
        os.environ.setdefault(*PATIENT_THREADS)
        from batchproj.accelerator import device
        from batchproj.embedding import UnitWorker

        members = self._space.members
        _, threads, _ = self.pool(modality)
        worker = UnitWorker(members[modality], self._space.dim, frozenset(members), self._recipe.limits, threads)
        worker.load()
        self.device = device().type
        self.load_s += time.monotonic() - begun
        return worker

    def project_s_per_item(self, folder: Folder, modality: Modality, file: str) -> float:
        """Seconds an item takes to be projected again, from one file of cached features."""
        from batchproj.embedding import project_unit

        member = self._space.members[modality]
        projector = member.load_projector()
        begun = time.monotonic()
        cached = read_rows(folder, layout.features(member.feature_fp, file))
        items = cached.group_by("item", use_threads=False).aggregate([("pair", "first"), ("metadata", "first")])
        count: int = items.num_rows
        items = items.rename_columns(["item", "pair", "metadata"])
        project_unit(_unit("project", modality, count), member, projector, items, cached)
        return (time.monotonic() - begun) / count


def _chunks(rows: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    chunk: list[dict[str, Any]] = []
    for row in rows:
        if chunk and (len(chunk) >= CHUNK_ITEMS or sum(each["size"] for each in chunk) + row["size"] > CHUNK_BYTES):
            yield chunk
            chunk = []
        chunk.append(row)
    if chunk:
        yield chunk


def _fetched(row: dict[str, Any], read: bytes | ItemFault) -> Fetched:
    from batchproj.decoding import Fetched

    fault = read if isinstance(read, ItemFault) else None
    data = b"" if isinstance(read, ItemFault) else read
    content_id = "" if fault else hashlib.sha256(data).hexdigest()
    return Fetched.of_row(row, data, content_id, fault)


def _unit(task: Task, modality: Modality, items: int) -> Unit:
    return Unit(name="sample", run="", task=task, modality=modality, items=items, bytes=0)


def _stored(output: Output) -> int:
    """Bytes of rows in the collection, without what each file costs by itself; Lance does not compress them."""
    return _parquet(output.vectors) + _parquet(output.features) + int(output.vectors.nbytes)


def _parquet(table: pa.Table) -> int:
    return len(parquet_bytes(table)) - len(parquet_bytes(table.slice(0, 0)))
