"""Query -> encode -> project -> nearest rows, on the run that readers see."""

from __future__ import annotations

import functools
import math
import operator
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset as pads

from batchproj.balance import Balance, page, read_balance
from batchproj.collection import layout
from batchproj.collection.ledger import numbers, read_entry
from batchproj.decode.item import PIECE, decode_pieces
from batchproj.decode.limits import Limits
from batchproj.decoding import Decoding, Fetched
from batchproj.errors import CollectionError, ItemFault, UsageError
from batchproj.index import open_live
from batchproj.media import Segment
from batchproj.objectstore import Folder, filesystem
from batchproj.schema import Modality, vector_schema
from batchproj.source.metadata import name_patterns, patterns
from batchproj.space import Embedder, Member, ResolvedSpace, SpaceFolder, Split, open_space, resolve, resolve_member
from batchproj.tags import live_run

MAX_K = 1_000
REFINE, REFINE_ROWS = 5, 400
"""IVF_RQ answers with 1-bit vectors: 5 k of them, and no fewer than 400, are ranked again exactly."""

PROBES, PROBES_ROWS = 20, 62_500
"""Partitions that are looked into, at least; with more rows than these they grow as the square root of the rows.
Of 1 million rows between real ones 80 partitions and 400 rows found 0.995 of the ten nearest, 20 and 100 found 0.88
(benchmarks/search_speed.py)."""

GROUP_ROWS = 4
"""Rows asked for, first, for each item of a grouped search."""

_ASKING = (Modality.TEXT, Modality.IMAGE, Modality.AUDIO, Modality.VIDEO)
_FILTERED = [field.name for field in vector_schema(1) if field.name not in ("vector", "metadata")]

_COLUMNS = ["id", "item", "uri", "modality", "segment", "start", "end", "pair", "text", "metadata"]


@dataclass(frozen=True)
class Hit:
    """One found segment; `score` is the cosine to the query, best first, `metadata` JSON of its row's other columns."""

    id: str
    item: str
    uri: str
    modality: str
    score: float
    segment: int
    start: float | None
    end: float | None
    pair: str | None
    text: str | None
    metadata: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """As `search --json` and the service print it; other programs rely on these keys, so `metadata` is not one."""
        return {name: value for name, value in asdict(self).items() if name != "metadata"}


class _OfThread(threading.local):
    """What one thread decodes its queries with: a `Decoding` does one at a time."""

    def __init__(self) -> None:
        self.decodings: dict[Modality, Decoding] = {}


class Collection:
    """A collection as it was when opened: the run that was live then, whatever happens beside it."""

    def __init__(self, uri: str, threads: int = 2) -> None:
        """Raises CollectionError if no run has been finished there."""
        self._folder = Folder(uri)
        self._threads = threads
        self._embedders: dict[Modality, Embedder] = {}
        self._bridges: dict[str, Embedder] = {}
        self._of_thread = _OfThread()
        found = open_live(self._folder)
        if found is None:
            raise CollectionError(f"no collection at {uri}; expected one made by: batchproj embed SOURCE {uri}")
        self._table, self.snapshot = found

    @property
    def run(self) -> str:
        """The run whose rows are searched."""
        return self.snapshot.run

    @property
    def dim(self) -> int:
        return self.snapshot.dim

    @property
    def uri(self) -> str:
        return self._folder.uri

    @cached_property
    def split(self) -> Split | None:
        """How pairs were divided when the space was trained; needs no model to be at hand."""
        return self._opened.space.split

    @cached_property
    def _opened(self) -> SpaceFolder:
        return open_space(f"{self.uri}/{layout.space(self.snapshot.space)}")

    @cached_property
    def space(self) -> ResolvedSpace:
        """The space the rows were made in; raises WeightsError if its models are not at hand."""
        return resolve(self._opened)

    def search(
        self,
        text: str | None = None,
        *,
        image: str | Path | None = None,
        audio: str | Path | None = None,
        video: str | Path | None = None,
        k: int = 10,
        modality: str | None = None,
        where: Sequence[str] = (),
        group: bool = False,
        balance: bool = False,
        space: str | None = None,
    ) -> list[Hit]:
        """The `k` rows nearest to a text, or to a file with an image, a sound or a video, best first.

        With `group` those of `k` items, the best of each.
        `balance` ranks hits of different modalities by their score's distance from the mean of such
        scores, in standard deviations (`evaluate` measures them), and shares half of the page out evenly among the
        modalities; a hit's `score` stays the cosine.
        `where` holds conditions `column=value` on the columns of the collection, or on fields of its
        `metadata`; `metadata.field=value` is a field's even where a column has its name. `space` is a bridge
        that `train --adapter` made from another text encoder into this collection's text vectors, to
        embed a text with. Raises UsageError for a query that cannot be embedded and CollectionError
        if the models, or the bridge, are not the table's.
        """
        condition = self._condition(k, modality, where)  # what is wrong with these need not wait for a model
        measured = self._balance() if balance else None
        vector = self.embed_query(text, image, audio, video, space)
        if measured is None:
            return self._found(vector, k, condition, group=group)
        asking = next(m for m, given in zip(_ASKING, (text, image, audio, video), strict=True) if given)
        each = [condition] if modality else [_and(condition, _is(kind)) for kind in self.snapshot.fingerprints]
        return self._balanced(measured, asking, vector, k, each, group)

    def _balance(self) -> Balance:
        found = read_balance(self._folder, self.snapshot.space)
        if found is None:
            raise UsageError(self._unmeasured)
        return found

    @property
    def _unmeasured(self) -> str:
        return f"the scores of run {self.run} were not measured yet: batchproj evaluate {self.uri}"

    def _balanced(
        self,
        measured: Balance,
        asking: Modality,
        vector: npt.NDArray[np.float32],
        k: int,
        conditions: list[Any],
        group: bool,
    ) -> list[Hit]:
        """Of the nearest by the condition of each modality a page by standardised score, with a part for each."""
        hits = [hit for each in conditions for hit in self._found(vector, k, each, group=group)]
        if not all(measured.knows(hit.modality) for hit in hits):  # its first items came after the measuring
            raise UsageError(self._unmeasured)
        hits.sort(key=lambda hit: (-measured.standardised(asking, hit.modality, hit.score), hit.id))
        return [hits[place] for place in page([hit.modality for hit in hits], k)]

    def embed_query(
        self,
        text: str | None = None,
        image: str | Path | None = None,
        audio: str | Path | None = None,
        video: str | Path | None = None,
        space: str | None = None,
    ) -> npt.NDArray[np.float32]:
        """The query's vector (K,) float32; several segments of a long query are averaged."""
        queries = dict(zip(_ASKING, (text, image, audio, video), strict=True))
        given = {modality: value for modality, value in queries.items() if value}
        if len(given) != 1:
            raise UsageError("give one query: a text, --image FILE, --audio FILE or --video FILE")
        ((modality, value),) = given.items()
        if space is not None and modality is not Modality.TEXT:
            raise UsageError("--space is for a text query: files are embedded by the collection's own encoders")
        embedder = self.embedder(modality) if space is None else self._bridge(space)
        try:
            pieces = self._decoded(str(value), modality, embedder)
            vectors = [embedder.project(embedder.encode(segments)) for segments in pieces]
        except ItemFault as fault:
            raise UsageError(f"the query cannot be embedded: {fault}") from fault
        mean: npt.NDArray[np.float32] = np.concatenate(vectors).mean(axis=0)
        return mean / np.linalg.norm(mean)

    def _decoded(self, value: str, modality: Modality, embedder: Embedder) -> Iterator[list[Segment]]:
        """A query's segments, piece by piece; a file is decoded as an item of a run is, for it may be anybody's."""
        if modality is Modality.TEXT:
            yield from (piece.segments for piece in decode_pieces(value.encode(), modality, embedder.spec, Limits()))
            return
        decodings = self._of_thread.decodings
        if modality not in decodings:
            told = (modality, embedder.spec, frozenset(Modality), Limits(), 1, PIECE)
            decodings[modality] = Decoding(*told)
        data, name = _read_query(value, modality)
        query = Fetched("query", value, None, "", data, "query", name)
        for decoded in decodings[modality].ahead([query], None):
            if decoded.fault is not None:
                raise decoded.fault
            if (found := decoded.item.modality) is not modality:
                instead = "type its words" if found is Modality.TEXT else f"search with --{found}"
                raise UsageError(f"{value} is {found}, not {modality}; {instead}")
            yield decoded.segments

    def embedder(self, modality: Modality) -> Embedder:
        """Encoder and projector of a modality as queries take them, loaded once; refused unless they made the table."""
        if modality not in self._embedders:
            self._embedders[modality] = self.member(modality).load(self._threads, for_queries=True)
        return self._embedders[modality]

    def member(self, modality: Modality) -> Member:
        """A modality of the collection's space; raises CollectionError unless it is what made the table."""
        if modality not in self._opened.space.members():
            raise UsageError(f"this collection's space has no encoder for {modality}; query it with another kind")
        member = resolve_member(self._opened, modality)
        live = self.snapshot.fingerprints[modality].vector
        if member.vector_fp != live:
            raise CollectionError(
                f"the {modality} encoder at hand has fingerprint {member.vector_fp[:12]}, the table was made with "
                f"{live[:12]}; use the batchproj version that made it, or embed again"
            )
        return member

    def _bridge(self, space: str) -> Embedder:
        """Text encoder and adapter of a bridge, loaded once; refused unless it leads to the table's text vectors."""
        if space not in self._bridges:
            self._bridges[space] = _bridge_member(space, self).load(self._threads, for_queries=True)
        return self._bridges[space]

    def nearest(
        self,
        vector: npt.NDArray[np.float32],
        k: int = 10,
        modality: str | None = None,
        where: Sequence[str] = (),
        exact: bool = False,
        group: bool = False,
    ) -> list[Hit]:
        """Rows nearest to a vector (K,) by cosine; `exact` passes by the index.

        With `group` each item has one row among them, its best segment.
        """
        return self._found(vector, k, self._condition(k, modality, where), exact, group)

    def _found(
        self, vector: npt.NDArray[np.float32], k: int, condition: Any, exact: bool = False, group: bool = False
    ) -> list[Hit]:
        return (self._items if group else self._rows)(vector, k, condition, exact)

    def _items(self, vector: npt.NDArray[np.float32], k: int, condition: Any, exact: bool) -> list[Hit]:
        """The best rows of the `k` nearest items.

        However many segments of one item come first: what is asked next is without the items found,
        whose best rows are known, for rows come best first.
        """
        from lancedb.expr import col

        best: dict[str, Hit] = {}
        rows, terms = GROUP_ROWS * k, condition
        while found := self._rows(vector, rows, terms, exact):
            for hit in found:
                best.setdefault(hit.item, hit)
            if len(best) >= k:
                break
            terms = _and(condition, ~col("item").isin(list(best)))
            rows = min(2 * rows, GROUP_ROWS * MAX_K)
        return _ranked(best.values())[:k]

    def _rows(self, vector: npt.NDArray[np.float32], k: int, condition: Any, exact: bool) -> list[Hit]:
        query = self._table.search(vector).distance_type("cosine").limit(k)
        if exact:
            query = query.bypass_vector_index()
        else:
            probes = math.ceil(PROBES * math.sqrt(max(1, self.snapshot.rows / PROBES_ROWS)))
            query = query.nprobes(probes).refine_factor(max(REFINE, math.ceil(REFINE_ROWS / k)))
        if condition is not None:
            query = query.where(condition, prefilter=True)
        found = query.select([*_COLUMNS, "_distance"]).to_list()
        hits = [Hit(score=1.0 - row["_distance"], **{name: row[name] for name in _COLUMNS}) for row in found]
        return _ranked(hits)

    def _condition(self, k: int, modality: str | None, where: Sequence[str]) -> Any:
        """The conditions as one typed expression: user text never becomes SQL. Checks `k` on the way."""
        if not 1 <= k <= MAX_K:
            raise UsageError(f"k is {k}; expected 1 to {MAX_K:,}")
        present = [str(each) for each in self.snapshot.fingerprints]
        if modality is not None and modality not in present:
            raise UsageError(f"no modality '{modality}' in this collection; expected one of {', '.join(present)}")
        terms = [self._term(condition) for condition in where] + ([_is(modality)] if modality else [])
        return functools.reduce(operator.and_, terms) if terms else None

    def _term(self, condition: str) -> Any:
        name, equals, value = condition.partition("=")
        if not equals:
            raise UsageError(f"--where '{condition}': it is not COLUMN=VALUE; columns are {', '.join(_FILTERED)}")
        if name in _FILTERED:
            return _column_term(condition, name, value)
        name = name.removeprefix("metadata.")
        if not self._table.search().where(_contains_one(name_patterns(name))).limit(1).to_list():
            raise UsageError(
                f"--where '{condition}': there is no column '{name}', and no row has it in its metadata; "
                f"columns are {', '.join(_FILTERED)}"
            )
        return _contains_one(patterns(name, value))

    def table(self) -> pa.Table:
        """All live rows (columns of `schema.vector_schema`), in memory."""
        return self.dataset().to_table()

    def dataset(self) -> pads.Dataset:
        """The live rows as a lazy Arrow dataset over the Parquet parts."""
        fs, _ = filesystem(self._folder.uri)
        paths = [self._folder.path(layout.part(part.name)) for part in self.snapshot.parts]
        return pads.dataset(paths, schema=vector_schema(self.dim), format="parquet", filesystem=fs)

    def runs(self) -> list[dict[str, Any]]:
        """The ledger: one entry per run that was ever begun (`collection.ledger.Entry`), oldest first."""
        return _ledger(self._folder)


def runs_of(uri: str) -> tuple[list[dict[str, Any]], str | None]:
    """The ledger and the live run, None while the first one is not finished.

    Raises CollectionError if no run was ever begun there.
    """
    folder = Folder(uri)
    if not (entries := _ledger(folder)):
        raise CollectionError(f"no collection at {uri}; expected one made by: batchproj embed SOURCE {uri}")
    return entries, live_run(folder)


def _ledger(folder: Folder) -> list[dict[str, Any]]:
    entries = (read_entry(folder, run) for run in numbers(folder))
    return [entry.model_dump(mode="json") for entry in entries if entry is not None]


def _bridge_member(where: str, collection: Collection) -> Member:
    """Text encoder and adapter of a bridge: they are what it was trained with, and lead to the table's vectors."""
    opened = open_space(where)
    adapts, live = opened.space.adapts, collection.snapshot
    if adapts is None or opened.space.text is None:
        raise UsageError(
            f"--space {where} is no bridge: a collection is searched in its own space, and with another one only "
            "through what train --adapter has written; leave --space out"
        )
    own = live.fingerprints.get(Modality.TEXT)
    if own is None or own.vector != adapts.vectors or opened.space.dim != live.dim:
        raise CollectionError(
            f"--space {where} leads to text vectors with fingerprint {adapts.vectors[:12]}, this collection's have "
            f"{own.vector[:12] if own else 'none'}: search without --space, or train a bridge to this collection's "
            f"own space: batchproj train NEW_COLLECTION --adapter {collection.uri}/{layout.space(live.space)} "
            "--out BRIDGE"
        )
    member = resolve(opened).members[Modality.TEXT]
    if member.vector_fp != adapts.query:
        raise CollectionError(
            f"--space {where}: its text encoder and adapter have fingerprint {member.vector_fp[:12]}, the bridge was "
            f"made with {adapts.query[:12]}; train the bridge again: batchproj train NEW_COLLECTION --adapter "
            f"{collection.uri}/{layout.space(live.space)} --out BRIDGE"
        )
    return member


def _ranked(hits: Iterable[Hit]) -> list[Hit]:
    return sorted(hits, key=lambda hit: (-hit.score, hit.id))


def _read_query(path: str, modality: Modality) -> tuple[bytes, str]:
    """A file's bytes and name."""
    parent, _, name = path.rpartition("/")
    try:
        return Folder(parent or ("/" if path.startswith("/") else ".")).read(name), name
    except (FileNotFoundError, IsADirectoryError):
        raise UsageError(f"no file at {path}; expected one with {modality} to search by") from None


def _contains_one(texts: list[str]) -> Any:
    """Whether the metadata have one of these texts in them."""
    from lancedb.expr import col

    return functools.reduce(operator.or_, (col("metadata").contains(text) for text in texts))


def _and(condition: Any, term: Any) -> Any:
    return term if condition is None else condition & term


def _is(modality: str) -> Any:
    from lancedb.expr import col, lit

    return col("modality") == lit(str(modality))


def _column_term(condition: str, name: str, value: str) -> Any:
    from lancedb.expr import col, lit

    kind = vector_schema(1).field(name).type
    try:
        typed = int(value) if pa.types.is_integer(kind) else float(value) if pa.types.is_floating(kind) else value
    except ValueError:
        raise UsageError(f"--where '{condition}': {name} is a number ({kind})") from None
    return col(name) == lit(typed)
