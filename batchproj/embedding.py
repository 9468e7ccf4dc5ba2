"""One unit of work on one worker: bytes -> decode -> encode -> project -> rows.

Imports neither Ray nor Lance, so it can be tested, profiled and run on a bare machine. Decoding
runs in threads a little ahead of the model, of a long item a part at a time; a faulty item becomes
an outcome row, nothing more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from batchproj.collection.cache import chosen
from batchproj.collection.unit import Output, Unit
from batchproj.decode.item import stream
from batchproj.decode.limits import Limits
from batchproj.decode.sniff import sniff
from batchproj.errors import ItemFault, SpaceError
from batchproj.features import Features, Half, fixed_size_list, from_column, gathered, to_column
from batchproj.media import Segment
from batchproj.schema import Modality, Reason, feature_schema, outcome_schema, vector_schema
from batchproj.space import Embedder, Member, to_vectors
from batchproj.token_features import TokenFeatures

WINDOW_BYTES = 32 * 2**20
WINDOW_SEGMENTS = 2_048
"""Decoded segments handed to the encoder at once; large enough to sort, small enough to hold."""

PART_BYTES = 16 * 2**20
PART_SEGMENTS = 1_024
"""An item of more is long: it goes to the encoder by itself, in parts of this size."""

Span = tuple[float | None, float | None, str | None]
"""Start, end and text of a segment."""

NORM_TOLERANCE = 1e-3


@dataclass
class Fetched:
    """An item of a unit with its bytes and their sha256, or with the fault that kept them away."""

    item: str
    uri: str
    pair: str | None
    source_version: str
    data: bytes
    content_id: str
    fault: ItemFault | None = None


@dataclass
class _Decoded:
    """An item on its way: its segments, or the cached rows of the same bytes, or where it stopped.

    Of a long item `segments` are the first part, and `rest` decodes the others.
    """

    source: Fetched
    modality: Modality | None = None
    segments: list[Segment] = field(default_factory=list)
    rest: Iterator[Segment] | None = None
    cached: pa.Table | None = None
    fault: ItemFault | None = None
    deferred: bool = False


class UnitWorker:
    """Embeds units of one modality; without a member (no such encoder) it only finds out what items are."""

    def __init__(
        self, member: Member | None, dim: int, in_space: frozenset[Modality], limits: Limits, threads: int
    ) -> None:
        self._member = member
        self._dim = dim
        self._in_space = in_space
        self._limits = limits
        self._threads = threads
        self._embedder: Embedder | None = None

    def load(self) -> None:
        """Load the model; call once, before `embed`."""
        if self._member is not None:
            self._embedder = self._member.load(self._threads)

    def embed(self, unit: Unit, items: list[Fetched], known: pa.Table | None, report: Callable[[int], None]) -> Output:
        """Decode, encode and project every item; `report` is told how many items are done.

        `known` are cached features of contents that some of the items may have: those are not
        encoded, and not even decoded.
        """
        rows = _Rows(unit, self._member, self._dim)
        window: list[_Decoded] = []
        held = count = 0
        for decoded in self._decode_ahead(items, _by_content(known)):
            if decoded.rest is None:
                window.append(decoded)
                held += sum(segment.nbytes for segment in decoded.segments)
                count += len(decoded.segments)
            if decoded.rest is not None or held >= WINDOW_BYTES or count >= WINDOW_SEGMENTS:
                self._encode(window, rows)
                report(len(window))
                window, held, count = [], 0, 0
            if decoded.rest is not None:
                self._encode_long(decoded, decoded.rest, rows)
                report(1)
        self._encode(window, rows)
        report(len(window))
        return rows.output()

    def _decode_ahead(self, items: list[Fetched], known: dict[str, pa.Table]) -> Iterator[_Decoded]:
        """Decoded items in order, never more than a few ahead of the model."""
        ahead: deque[Future[_Decoded]] = deque()
        with ThreadPoolExecutor(self._threads) as pool:
            for item in items:
                ahead.append(pool.submit(self._decode, item, known))
                if len(ahead) > 4 * self._threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def _decode(self, source: Fetched, known: dict[str, pa.Table]) -> _Decoded:
        if source.fault is not None:
            return _Decoded(source, fault=source.fault)
        decoded = _Decoded(source)
        try:
            decoded.modality = sniff(source.data, source.uri)
            if decoded.modality not in self._in_space:
                raise ItemFault(Reason.NO_ENCODER, f"the space has no encoder for {decoded.modality}")
            if self._embedder is None or self._member is None or decoded.modality is not self._member.modality:
                decoded.deferred = True
            elif (cached := known.get(source.content_id)) is not None:
                decoded.cached = cached
            else:
                segments = stream(source.data, decoded.modality, self._embedder.spec, self._limits)
                decoded.segments, decoded.rest = _part(segments)
        except ItemFault as fault:
            decoded.fault = fault
        return decoded

    def _encode(self, window: list[_Decoded], rows: _Rows) -> None:
        features = self._features(window)
        at, vectors = 0, self._project([each for each in features if each is not None])
        for decoded, own in zip(window, features, strict=True):
            if own is None:
                rows.skip(decoded)
            else:
                rows.add(decoded, _spans(decoded), own, vectors[at : at + len(own)])
                at += len(own)

    def _encode_long(self, decoded: _Decoded, rest: Iterator[Segment], rows: _Rows) -> None:
        """Encode a long item part by part; its pixels, samples and tokens are never all in memory."""
        assert self._embedder is not None, "only what it wants was decoded"
        features: list[Half] = []
        spans: list[Span] = []
        first, decoded.segments = decoded.segments, []
        try:
            for part in _parts(first, rest):
                features.extend(self._embedder.encode(part))
                spans.extend((segment.start, segment.end, segment.text) for segment in part)
        except ItemFault as fault:
            rows.skip(replace(decoded, fault=fault), len(features))
            return
        rows.add(decoded, spans, features, self._project([features]))

    def _features(self, window: list[_Decoded]) -> list[list[Half] | None]:
        """Features of each item's segments, encoded now or cached; None for an item without any."""
        segments = [segment for decoded in window for segment in decoded.segments]
        encoded = iter(self._embedder.encode(segments) if segments and self._embedder else ())
        return [
            list(from_column(decoded.cached["feature"]))
            if decoded.cached is not None
            else [next(encoded) for _ in decoded.segments] or None
            for decoded in window
        ]

    def _project(self, features: list[list[Half]]) -> npt.NDArray[np.float32]:
        if not features or self._embedder is None or self._member is None:
            return np.empty((0, self._dim), np.float32)
        rows = [row for own in features for row in own]
        return self._embedder.project(gathered(rows, self._member.dim, self._member.cache))


class _Rows:
    """Collects a unit's rows, column by column."""

    def __init__(self, unit: Unit, member: Member | None, dim: int) -> None:
        self._unit = unit
        self._member = member
        self._dim = dim
        self._encoded = 0
        self._copied = 0
        self._outcomes: list[dict[str, Any]] = []
        self._rows: list[dict[str, Any]] = []
        self._features: list[Half] = []
        self._vectors: list[npt.NDArray[np.float32]] = []

    def skip(self, decoded: _Decoded, encoded: int = 0) -> None:
        """An item without vectors: faulty, a long one after so many `encoded` segments, or for another worker."""
        self._encoded += encoded
        if decoded.fault is None:
            self._outcome(decoded, "deferred")
        else:
            self._outcome(decoded, "quarantined", decoded.fault, "decode" if decoded.source.content_id else "read")

    def add(self, decoded: _Decoded, spans: list[Span], features: list[Half], vectors: npt.NDArray[np.float32]) -> None:
        self._encoded += len(features) if decoded.cached is None else 0
        problem = vector_problem(features, vectors)
        if problem is not None:
            self._outcome(decoded, "quarantined", problem, "encode")
            return
        self._copied += decoded.cached is not None
        self._outcome(decoded, "embedded", segments=len(features))
        self._features.extend(features)
        self._vectors.append(vectors)
        for number, (start, end, text) in enumerate(spans):
            item = decoded.source.item
            self._rows.append(
                {
                    "id": item if len(features) == 1 else f"{item}-{number}",
                    "item": item,
                    "segment": number,
                    "uri": decoded.source.uri,
                    "modality": decoded.modality,
                    "pair": decoded.source.pair,
                    "start": start,
                    "end": end,
                    "text": text,
                    "metadata": None,
                    "content_id": decoded.source.content_id,
                    "source_version": decoded.source.source_version,
                }
            )

    def _outcome(
        self,
        decoded: _Decoded,
        status: str,
        fault: ItemFault | None = None,
        stage: str | None = None,
        segments: int = 0,
    ) -> None:
        self._outcomes.append(
            {
                "item": decoded.source.item,
                "status": status,
                "reason": fault.reason if fault else None,
                "detail": fault.detail if fault else None,
                "stage": stage,
                "modality": decoded.modality,
                "content_id": decoded.source.content_id or None,
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
        return Output(vectors, table, outcome, self._encoded, self._copied)


def _by_content(known: pa.Table | None) -> dict[str, pa.Table]:
    """Rows of cached features, one item's for each content."""
    if known is None:
        return {}
    contents = pc.unique(known["content_id"]).to_pylist()
    return {content: known.filter(pc.equal(known["content_id"], content)) for content in contents}


def _part(segments: Iterator[Segment]) -> tuple[list[Segment], Iterator[Segment] | None]:
    """The next segments, and the same iterator if there may be more."""
    part: list[Segment] = []
    held = 0
    for segment in segments:
        part.append(segment)
        held += segment.nbytes
        if held >= PART_BYTES or len(part) >= PART_SEGMENTS:
            return part, segments
    return part, None


def _parts(first: list[Segment], rest: Iterator[Segment]) -> Iterator[list[Segment]]:
    """The parts of a long item, each decoded while the one before it is encoded."""
    part = first
    with ThreadPoolExecutor(1) as pool:
        while part:
            coming = pool.submit(_part, rest)
            yield part
            part, _ = coming.result()


def _spans(decoded: _Decoded) -> list[Span]:
    """Start, end and text of an item's segments, in order."""
    if decoded.cached is None:
        return [(segment.start, segment.end, segment.text) for segment in decoded.segments]
    columns = (decoded.cached[name].to_pylist() for name in ("start", "end", "text"))
    return list(zip(*columns, strict=True))


def project_unit(unit: Unit, member: Member, pair_of: Mapping[str, str | None], cached: pa.Table) -> Output:
    """Project a file of cached features again, only the rows of the items in `pair_of`; nothing is encoded."""
    features = chosen(cached, pair_of)
    values = from_column(features["feature"])
    vectors = to_vectors(values, member.load_projector())
    if len(vectors) and (problem := vector_problem(values, vectors)) is not None:
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
