"""A unit's items, decoded in their order a little ahead of the model.

Texts are read by the threads here; whatever a library parses goes to decoder processes, one a thread.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from queue import LifoQueue
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from batchproj.decode.child import Work
from batchproj.decode.extensions import extension
from batchproj.decode.faults import failures_as_faults
from batchproj.decode.item import PIECE, Piece, PieceSize, decode_pieces
from batchproj.decode.limits import Limits
from batchproj.decode.process import DecoderProcess
from batchproj.decode.sniff import from_outside, misnamed, sound_of
from batchproj.decode.text import knowing, short_text
from batchproj.errors import ItemFault
from batchproj.features import Half, from_column
from batchproj.media import Segment, Spec, TextSpec
from batchproj.schema import Modality, Reason
from batchproj.source.place import is_sound_track, promised_name

TEXTS_AT_ONCE = 32
"""Texts that one call of a thread reads: handing one over takes longer than reading it (measured)."""


@dataclass
class Fetched:
    """An item of a unit with its bytes and their sha256, or with the fault that kept them away.

    `name` is the file name, or URI, that promises what it is; of a sound track the bytes are its film's.
    """

    item: str
    uri: str
    pair: str | None
    source_version: str
    data: bytes
    content_id: str
    name: str
    metadata: str | None = None
    fault: ItemFault | None = None
    is_sound_track: bool = False

    @classmethod
    def of_row(cls, row: Mapping[str, Any], data: bytes, content_id: str, fault: ItemFault | None) -> Fetched:
        """Of a row of a unit, and what reading it gave."""
        name = promised_name(row["uri"], row["place"])
        told = (row["item"], row["uri"], row["pair"], row["source_version"])
        return cls(*told, data, content_id, name, row["metadata"], fault, is_sound_track(row["place"]))


@dataclass
class Item:
    """An item on its way: what came of it so far, or where it stopped; changed by one thread alone."""

    source: Fetched
    modality: Modality | None = None
    note: str | None = None
    encoded: int = 0
    copied: bool = False
    features: list[Half] = field(default_factory=list)
    spans: list[tuple[float | None, float | None, str | None]] = field(default_factory=list)
    fault: ItemFault | None = None

    def add(self, segments: list[Segment], features: list[Half]) -> None:
        """Take features of its next segments."""
        self.encoded += len(segments)
        self.features += features
        self.spans += [(segment.start, segment.end, segment.text) for segment in segments]

    def copy(self, cached: pa.Table) -> None:
        """Take the cached rows of the same bytes."""
        self.copied = True
        self.features = list(from_column(cached["feature"]))
        self.spans = list(zip(*(cached[name].to_pylist() for name in ("start", "end", "text")), strict=True))

    def repeat(self, twin: Item) -> None:
        """What came of an item with the same bytes and the same promise in its name, which is complete: counted like
        it, though the encoder sees it once."""
        self.modality, self.note, self.fault, self.encoded = twin.modality, twin.note, twin.fault, twin.encoded
        self.copied, self.features, self.spans = twin.copied, twin.features, twin.spans

    def stop(self, fault: ItemFault) -> None:
        """Its content is at fault; nothing of what came before is kept."""
        self.fault = fault
        self.features, self.spans = [], []


@dataclass
class Decoded:
    """What was found of an item: its next segments, and the iterator of `pieces` that has more of them unless
    this was the last one; or cached rows of the same bytes, an earlier item that is the `twin` of this one, or a fault;
    or nothing, if it is another worker's."""

    item: Item
    segments: list[Segment] = field(default_factory=list)
    pieces: Iterator[Piece] | None = None
    cached: pa.Table | None = None
    twin: Item | None = None
    fault: ItemFault | None = None


class Decoding:
    """Decodes units of one modality; `modality` and `spec` are None where there is no encoder: then it only finds out
    what items are. Keeps its processes from unit to unit, of which it does one at a time."""

    def __init__(
        self,
        modality: Modality | None,
        spec: Spec | None,
        in_space: frozenset[Modality],
        limits: Limits,
        threads: int,
        piece: PieceSize,
    ) -> None:
        self._modality, self._spec, self._in_space, self._limits = modality, spec, in_space, limits
        self._threads, self._piece = threads, piece
        is_text = isinstance(spec, TextSpec)
        # reading texts is Python's own work, of which several threads do no more than one does, only slower
        self._reading, self._together = (1, TEXTS_AT_ONCE) if is_text else (threads, 1)
        work = Work(modality, None if isinstance(spec, TextSpec) else spec, limits, piece)
        turns = os.fdopen(os.memfd_create("turns"), "wb")  # a folder of temporary files may be one that takes no locks
        weakref.finalize(self, turns.close)
        self._processes = [DecoderProcess(work, turns) for _ in range(threads)]

    def start(self) -> None:
        """Have all its processes ready before the first unit; of texts few want one, to tell what they are."""
        if not isinstance(self._spec, TextSpec):
            with ThreadPoolExecutor(self._threads) as pool:
                list(pool.map(DecoderProcess.start, self._processes))

    def ahead(self, items: list[Fetched], known: pa.Table | None) -> Iterator[Decoded]:
        """Pieces of items, in order, never more than a few ahead of the one who asks; of twins the first alone.

        `known` are cached features of contents that some of the items may have: those are not decoded.
        """
        cached = _by_content(known)
        wanted = [Item(source) for source in items]
        twins = _twins(wanted)
        queue = _Queue(self._processes)
        ahead: deque[Future[list[Decoded]]] = deque()
        # one more, for the item whose turn it is: all others may be waiting for a process
        with ThreadPoolExecutor(self._reading) as pool, ThreadPoolExecutor(1) as first:
            waiting = enumerate(wanted)
            try:
                while True:
                    while len(ahead) <= 4 * self._reading and (some := list(islice(waiting, self._together))):
                        ahead.append(pool.submit(self._begin_all, queue, some, twins, cached))
                    if not ahead:
                        return
                    for decoded in ahead.popleft().result():
                        yield from _to_its_end(decoded, first)
            finally:
                queue.stop()
                pool.shutdown(cancel_futures=True)
                first.shutdown()
                del ahead  # streams that nobody wants the rest of end their processes

    def _begin_all(
        self, queue: _Queue, some: list[tuple[int, Item]], twins: dict[int, Item], known: dict[str, pa.Table]
    ) -> list[Decoded]:
        spec = self._spec
        if isinstance(spec, TextSpec):
            sources = [item.source for number, item in some if number not in twins]
            with suppress(Exception):  # of one of them: asked for alone, it is that one's fault
                spec = knowing(spec, [each.data for each in sources if not each.fault and each.content_id not in known])
        return [self._begin(queue, number, item, spec, twins.get(number), known) for number, item in some]

    def _begin(
        self,
        queue: _Queue,
        number: int,
        item: Item,
        spec: Spec | None,
        twin: Item | None,
        known: dict[str, pa.Table],
    ) -> Decoded:
        source, process = item.source, None
        try:
            if twin is not None:
                return Decoded(item, twin=twin)
            with failures_as_faults():
                if source.fault is not None:
                    raise source.fault
                item.modality = from_outside(source.data, source.name)
                if item.modality is None:
                    process = queue.take(number)
                    item.modality = process.look(source.data)
                if source.is_sound_track:
                    item.modality = sound_of(item.modality)
                if item.modality not in self._in_space:
                    raise ItemFault(Reason.NO_ENCODER, f"the space has no encoder for {item.modality}")
                if not source.is_sound_track:
                    item.note = misnamed(source.data, source.name, item.modality)
                if spec is None or item.modality is not self._modality:
                    return Decoded(item)
                if (cached := known.get(source.content_id)) is not None:
                    return Decoded(item, cached=cached)
                if isinstance(spec, TextSpec):
                    if (short := short_text(source.data, spec, self._limits)) is not None:
                        return Decoded(item, [short])
                    told = (item.modality, spec, self._limits, self._piece)
                    return _next_piece(item, decode_pieces(source.data, *told))
                lent, process = process or queue.take(number), None
                return _next_piece(item, queue.until_its_end(lent, lent.pieces(source.data)))
        except ItemFault as fault:
            return Decoded(item, fault=fault)
        finally:
            queue.pass_by(number)
            if process is not None:
                queue.give_back(process)


class Lending:
    """At most so many `Decoding`s of one kind, made when they are wanted: each does one item at a time."""

    def __init__(self, most: int) -> None:
        self._idle: LifoQueue[Decoding | None] = LifoQueue()
        for _ in range(most):
            self._idle.put(None)

    @contextmanager
    def one(
        self, modality: Modality | None, spec: Spec | None, limits: Limits, piece: PieceSize = PIECE
    ) -> Iterator[Decoding]:
        lent = self._idle.get()
        try:
            if lent is None:
                lent = Decoding(modality, spec, frozenset(Modality), limits, 1, piece)
            yield lent
        finally:
            self._idle.put(lent)


class _Queue:
    """Gives out processes in the order of the items.

    In another order, items with more to come could hold all of them until it is their turn, and the item
    whose turn it is would wait for one.
    """

    def __init__(self, idle: list[DecoderProcess]) -> None:
        self._idle = list(idle)
        self._passed: set[int] = set()
        self._turn = 0
        self._stopped = False
        self._changed = threading.Condition()

    def take(self, number: int) -> DecoderProcess:
        """Wait for a process, until every item before this one has taken one or needs none."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or (self._idle and self._turn == number))
            if self._stopped:
                raise CancelledError
            process = self._idle.pop()
        self.pass_by(number)
        return process

    def pass_by(self, number: int) -> None:
        """This item waits no longer."""
        with self._changed:
            if number >= self._turn:
                self._passed.add(number)
            while self._turn in self._passed:
                self._passed.remove(self._turn)
                self._turn += 1
            self._changed.notify_all()

    def give_back(self, process: DecoderProcess) -> None:
        with self._changed:
            self._idle.append(process)
            self._changed.notify_all()

    def until_its_end(self, process: DecoderProcess, pieces: Iterator[Piece]) -> Iterator[Piece]:
        """The pieces; the process is given back after the last one."""
        try:
            yield from pieces
        finally:
            self.give_back(process)

    def stop(self) -> None:
        """Nobody need wait any more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()


def _twins(items: list[Item]) -> dict[int, Item]:
    """By number, of every item but the first of those that nothing tells apart: bytes, what their names promise, and
    whether it is the sound that is asked for."""
    first: dict[tuple[str, str, bool], Item] = {}
    twins = {}
    held = Counter(item.source.content_id for item in items)
    for number, item in enumerate(items):
        source = item.source
        if source.fault is not None or held[source.content_id] == 1:
            continue
        twin = first.setdefault((source.content_id, extension(source.name), source.is_sound_track), item)
        if twin is not item:
            twins[number] = twin
    return twins


def _by_content(known: pa.Table | None) -> dict[str, pa.Table]:
    """Rows of cached features, one item's for each content."""
    if known is None:
        return {}
    contents = pc.unique(known["content_id"]).to_pylist()
    return {content: known.filter(pc.equal(known["content_id"], content)) for content in contents}


def _to_its_end(decoded: Decoded, pool: ThreadPoolExecutor) -> Iterator[Decoded]:
    """Piece after piece of an item, the next one decoded while the model has what comes before it."""
    while decoded.pieces is not None:
        following = pool.submit(_next_piece, decoded.item, decoded.pieces)
        yield decoded
        decoded = following.result()
    yield decoded


def _next_piece(item: Item, pieces: Iterator[Piece]) -> Decoded:
    try:
        with failures_as_faults():
            piece = next(pieces)
    except ItemFault as fault:
        return Decoded(item, fault=fault)
    if piece.last:
        next(pieces, None)  # so that it ends now
    return Decoded(item, piece.segments, None if piece.last else pieces)
