"""One unit of work on one worker: bytes -> decode -> encode -> project -> rows.

Imports neither Ray nor Lance, so it can be tested, profiled and run on a bare machine. A faulty item
becomes an outcome row, nothing more.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchproj.collection.cache import chosen
from batchproj.collection.unit import Output, Unit
from batchproj.decode.item import PIECE, PieceSize
from batchproj.decode.limits import Limits
from batchproj.decoding import Decoded, Decoding, Fetched, Item
from batchproj.errors import ItemFault, SpaceError
from batchproj.features import Features, Half, fixed_size_list, from_column, gathered, to_column
from batchproj.lanes import UNITS_AT_ONCE
from batchproj.media import Segment
from batchproj.schema import Modality, Reason, feature_schema, outcome_schema, vector_schema
from batchproj.space import Embedder, Member, to_vectors
from batchproj.token_features import TokenFeatures

if TYPE_CHECKING:
    from batchproj.projector import Projector

WINDOW_BYTES = 32 * 2**20
WINDOW_SEGMENTS = 2_048
"""Decoded segments handed to the encoder at once; large enough to sort, small enough to hold."""

APART_BYTES = 4 * WINDOW_BYTES
"""The same for an encoder on an accelerator, whose batches are larger."""

SAMPLE_S = 1.0
"""Segments of about so many seconds of the encoder's work are kept, to see what it can do with nothing beside it."""

NORM_TOLERANCE = 1e-3


class UnitWorker:
    """Embeds units of one modality; without a member (no such encoder) it only finds out what items are."""

    def __init__(
        self,
        member: Member | None,
        dim: int,
        in_space: frozenset[Modality],
        limits: Limits,
        threads: int,
        piece: PieceSize = PIECE,
    ) -> None:
        self._member = member
        self._dim = dim
        self._in_space = in_space
        self._limits = limits
        self._threads = threads
        self._piece = piece
        self._embedder: Embedder | None = None
        self._decoding: Decoding | None = None
        self._is_apart = False
        self._model: ThreadPoolExecutor | None = None
        self._decodes = threading.Lock()
        self._encoded = Disjoint()
        self._sample = _Sample(0, [])

    def load(self, *, rehearses: bool = False) -> None:
        """Load the model and start the decoders; call once, before `embed`.

        With `rehearses` what the first batches would take longer for is done now: worth it for more than one unit.
        """
        if self._member is not None:
            self._embedder = self._member.load(self._threads)
            if rehearses:
                self._embedder.rehearse()
            from batchproj.accelerator import is_apart  # torch is here by now

            self._is_apart = is_apart()
        # an accelerator takes its work from one thread, and one core has none to spare
        self._model = ThreadPoolExecutor(1 if self._is_apart or self._threads == 1 else UNITS_AT_ONCE, "model")
        modality = self._member.modality if self._member else None
        spec = self._embedder.spec if self._embedder else None
        self._decoding = Decoding(modality, spec, self._in_space, self._limits, self._threads, self._piece)
        self._decoding.start()

    def embed(
        self,
        unit: Unit,
        items: Iterable[Fetched],
        known: pa.Table | None,
        report: Callable[[int], None],
    ) -> Output:
        """Decode, encode and project every item; `report` is told how many items are done, also where none is.

        `known` are cached features of contents that some of the items may have: those are not
        encoded, and not even decoded. Another thread may call it for the next unit, whose items are
        not asked for before those of this one are decoded.
        """
        assert self._model is not None, "load() comes first"
        rows = _Rows(unit, self._member, self._dim)
        before: Future[int] | None = None
        with self._decodes, closing(self._windows(items, known)) as windows:
            try:
                for window in windows:
                    if before is not None:
                        report(before.result())
                    before = self._model.submit(self._encode, window, rows)
            except BaseException:
                if before is not None:
                    wait([before])  # it may have streams of decoders that the next unit is to use
                raise
        assert before is not None, "the last window is there, if empty"
        report(before.result())
        return rows.output()

    def _windows(self, items: Iterable[Fetched], known: pa.Table | None) -> Generator[list[Decoded]]:
        """What is encoded together, each decoded while the one before it is encoded."""
        assert self._decoding is not None, "load() comes first"
        window: list[Decoded] = []
        held = count = 0
        most = APART_BYTES if self._is_apart else WINDOW_BYTES
        for decoded in self._decoding.ahead(list(items), known):
            window.append(decoded)
            held += sum(segment.nbytes for segment in decoded.segments)
            count += len(decoded.segments)
            if held >= most or count >= WINDOW_SEGMENTS:
                yield window
                window, held, count = [], 0, 0
        yield window

    def measure(self, seconds: float) -> float | None:
        """Segments a second of the encoder with nothing beside it, on some of a full window; None without any."""
        assert self._model is not None, "load() comes first"
        return self._model.submit(self._measured, seconds).result()

    def _measured(self, seconds: float) -> float | None:
        sample, self._sample = self._sample.segments, _Sample(0, [])
        if self._embedder is None or not sample:
            return None
        begun, done = time.monotonic(), 0
        while not done or time.monotonic() - begun < seconds:
            self._embedder.encode(sample)
            done += len(sample)
        return done / (time.monotonic() - begun)

    def _encode(self, window: list[Decoded], rows: _Rows) -> int:
        """Encode what was decoded, and finish the items that are complete; their number."""
        segments = [segment for decoded in window for segment in decoded.segments]
        begun = time.monotonic()
        with self._encoded.counted() as counted:
            encoded = iter(self._embedder.encode(segments) if segments and self._embedder else ())
        rows.model_s += counted.seconds
        if len(segments) >= self._sample.of:  # few do not fill the encoder's batches, and the first ones are slow
            every = max(1, math.ceil((time.monotonic() - begun) / SAMPLE_S))
            self._sample = _Sample(len(segments), segments[::every])
        for decoded in window:
            decoded.item.add(decoded.segments, [next(encoded) for _ in decoded.segments])
            if decoded.cached is not None:
                decoded.item.copy(decoded.cached)
            if decoded.twin is not None:
                decoded.item.repeat(decoded.twin)
            if decoded.fault is not None:
                decoded.item.stop(decoded.fault)
        complete = [decoded.item for decoded in window if decoded.pieces is None]
        at, vectors, are_sound = 0, *self._project([row for item in complete for row in item.features])
        for item in complete:
            if item.features:
                own = vectors[at : at + len(item.features)]
                rows.add(item, own, None if are_sound else vector_problem(item.features, own))
                at += len(item.features)
            else:
                rows.skip(item)
        return len(complete)

    def _project(self, rows: list[Half]) -> tuple[npt.NDArray[np.float32], bool]:
        """Vectors (n, K), and whether none of the rows or of them has a problem: of all at once it is found fast."""
        if not rows or self._embedder is None or self._member is None:
            return np.empty((0, self._dim), np.float32), True
        features = gathered(rows, self._member.dim, self._member.cache)
        vectors = self._embedder.project(features)
        values = features.values if isinstance(features, TokenFeatures) else features
        return vectors, vector_problem([values], vectors) is None


@dataclass(frozen=True)
class _Sample:
    """Segments out of a window of so many; one value, for two threads look at it and put another in its place."""

    of: int
    segments: list[Segment]


@dataclass
class Counted:
    seconds: float = 0.0


class Disjoint:
    """Seconds in which anything was under way, each counted once: for what ends first after it."""

    def __init__(self) -> None:
        self._under_way = 0
        self._since = 0.0
        self._counting = threading.Lock()

    @contextmanager
    def counted(self) -> Generator[Counted]:
        """Its seconds, once it has ended."""
        counted = Counted()
        with self._counting:
            if not self._under_way:
                self._since = time.monotonic()
            self._under_way += 1
        try:
            yield counted
        finally:
            with self._counting:
                now = time.monotonic()
                counted.seconds, self._since = now - self._since, now
                self._under_way -= 1


class _Rows:
    """Collects a unit's rows, column by column."""

    def __init__(self, unit: Unit, member: Member | None, dim: int) -> None:
        self._unit = unit
        self._member = member
        self._dim = dim
        self.model_s = 0.0
        self._encoded = 0
        self._copied = 0
        self._outcomes: list[dict[str, Any]] = []
        self._rows: list[dict[str, Any]] = []
        self._features: list[Half] = []
        self._vectors: list[npt.NDArray[np.float32]] = []

    def skip(self, item: Item) -> None:
        """An item without vectors: faulty, or of a modality another worker embeds."""
        self._encoded += item.encoded
        if item.fault is None:
            self._outcome(item, "deferred")
        else:
            self._outcome(item, "quarantined", item.fault, "decode" if item.source.content_id else "read")

    def add(self, item: Item, vectors: npt.NDArray[np.float32], problem: ItemFault | None) -> None:
        self._encoded += item.encoded
        if problem is not None:
            self._outcome(item, "quarantined", problem, "encode")
            return
        self._copied += item.copied
        self._outcome(item, "embedded", segments=len(item.features))
        self._features.extend(item.features)
        self._vectors.append(vectors)
        source = item.source
        for number, (start, end, text) in enumerate(item.spans):
            self._rows.append(
                {
                    "id": source.item if len(item.spans) == 1 else f"{source.item}-{number}",
                    "item": source.item,
                    "segment": number,
                    "uri": source.uri,
                    "modality": item.modality,
                    "pair": source.pair,
                    "start": start,
                    "end": end,
                    "text": text,
                    "metadata": source.metadata,
                    "content_id": source.content_id,
                    "source_version": source.source_version,
                }
            )

    def _outcome(
        self, item: Item, status: str, fault: ItemFault | None = None, stage: str | None = None, segments: int = 0
    ) -> None:
        self._outcomes.append(
            {
                "item": item.source.item,
                "status": status,
                "reason": fault.reason if fault else None,
                "detail": fault.detail if fault else item.note,
                "stage": stage,
                "modality": item.modality,
                "content_id": item.source.content_id or None,
                "segments": segments,
                "features": self._unit.name if status == "embedded" else None,
            }
        )

    def output(self) -> Output:
        member = self._member  # without one no rows, but Arrow wants a width
        features = gathered(self._features, member.dim if member else 1, member.cache if member else "pooled")
        table = feature_table(self._rows, features)
        values = np.concatenate([np.empty((0, self._dim), np.float32), *self._vectors])
        vectors = vector_table(table, values, member.vector_fp if member else "", self._unit.run)
        outcome = pa.Table.from_pylist(self._outcomes, schema=outcome_schema())
        return Output(vectors, table, outcome, self._encoded, self._copied, self.model_s)


def project_unit(unit: Unit, member: Member, projector: Projector | None, items: pa.Table, cached: pa.Table) -> Output:
    """Project a file of cached features again, only the rows of `items` (item, pair, metadata); nothing is encoded."""
    features = chosen(cached, items)
    read = from_column(features["feature"])
    vectors = to_vectors(read, projector)
    values = read.values if isinstance(read, TokenFeatures) else read
    if len(vectors) and (problem := vector_problem([values], vectors)) is not None:
        raise SpaceError(f"the {member.modality} projector is broken: {problem.detail}; train it again")
    table = vector_table(features, vectors, member.vector_fp, unit.run)
    return Output(table, features, _projected_outcome(unit, features), 0)


def _projected_outcome(unit: Unit, features: pa.Table) -> pa.Table:
    counts = features.group_by(["item", "modality", "content_id"], use_threads=False).aggregate([("segment", "count")])
    count = counts.num_rows
    nothing = pa.nulls(count, pa.string())
    return pa.Table.from_arrays(
        [
            counts["item"],
            pa.array(["embedded"] * count, pa.string()),
            nothing,
            nothing,
            nothing,
            counts["modality"],
            counts["content_id"],
            counts["segment_count"].cast(pa.int32()),
            pa.array([unit.cached] * count, pa.string()),
        ],
        schema=outcome_schema(),
    )


def vector_problem(features: Iterable[Half], vectors: npt.NDArray[np.float32]) -> ItemFault | None:
    """Why an item's vectors may not enter the table; Lance would take NaN and hide the row."""
    if not all(np.isfinite(segment).all() for segment in features):
        return ItemFault(Reason.NOT_FINITE, "the encoder returned NaN or infinity")
    norms = np.linalg.norm(vectors, axis=1)
    if not np.isfinite(norms).all() or np.abs(norms - 1).max() > NORM_TOLERANCE:
        return ItemFault(Reason.NOT_FINITE, f"the projected vector has norm {norms.max():.3g}, expected 1")
    return None


def feature_table(rows: list[dict[str, Any]], features: Features) -> pa.Table:
    """Rows as they are cached: everything of a vector row but vector, fingerprint and run."""
    if isinstance(features, TokenFeatures):
        schema = feature_schema(features.dim, "tokens")
    else:
        schema = feature_schema(features.shape[1])
    columns = pa.Table.from_pylist(rows, schema=pa.schema([f for f in schema if f.name != "feature"]))
    return columns.append_column(schema.field("feature"), to_column(features)).cast(schema)


def vector_table(rows: pa.Table, vectors: npt.NDArray[np.float32], fingerprint: str, run: str) -> pa.Table:
    """Rows of the collection from cached rows and their vectors (n, K)."""
    schema = vector_schema(vectors.shape[1])
    count = rows.num_rows
    made = {
        "vector": fixed_size_list(vectors),
        "fingerprint": pa.array([fingerprint] * count, pa.string()),
        "run": pa.array([run] * count, pa.string()),
    }
    columns = [made[f.name] if f.name in made else rows[f.name] for f in schema]
    return pa.Table.from_arrays(columns, schema=schema)
