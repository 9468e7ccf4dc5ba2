"""Query -> encode -> project -> nearest rows, on the run that readers see."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset as pads

from batchproj.asking import search_of
from batchproj.balance import Balance, page, read_balance
from batchproj.collection import layout
from batchproj.collection.ledger import numbers, read_entry
from batchproj.conditions import Conditions, Filter, both, equals, none_of
from batchproj.errors import CollectionError, OtherModels, UsageError
from batchproj.hits import Hit, Hits
from batchproj.hybrid import DEPTH, fused
from batchproj.index import WORDED, open_live, open_run
from batchproj.objectstore import Folder, filesystem
from batchproj.queries import QueryEncoder, Search, combined
from batchproj.schema import Modality, vector_schema
from batchproj.space import Embedder, Member, ResolvedSpace, SpaceFolder, Split, open_space, resolve, resolve_member
from batchproj.tags import live_run

MAX_K = 1_000
MAX_DEPTH = 10_000
"""How far a page may lie from the first hit."""

REFINE, REFINE_ROWS, REFINE_FROM = 5, 400, 250_000
"""IVF_RQ answers with 1-bit vectors: 5 k of them are ranked again exactly, and no fewer than 400; of more rows than
250,000 no fewer than so many as grow as the square root of the rows."""

PROBES, PROBES_FROM = 20, 62_500
"""Partitions that are looked into; of more rows than these more, likewise. Of 1 million rows between real ones 80
partitions and 800 rows found 0.995 of the ten nearest, 80 and 400 found 0.989 (rows as of benchmarks/search_speed.py,
500 sentences sought in one index)."""

GROUP_ROWS = 4
"""Rows asked for, first, for each item of a grouped search."""

_COLUMNS = ["id", "item", "uri", "modality", "segment", "start", "end", "pair", "text", "metadata"]


class Collection:
    """A collection as it was when opened: the run that was live then, or was asked for, whatever happens beside it."""

    def __init__(self, uri: str, threads: int = 2, encoder: QueryEncoder | None = None, run: str | None = None) -> None:
        """`encoder` is shared with other openings of the same collection. `run` is one that is kept, and whose rows
        are searched by the models that made them.

        Raises CollectionError if no run has been finished there, RunMissing if that one is not kept.
        """
        self._folder = Folder(uri)
        self._encoder = encoder or QueryEncoder(threads)
        self._bridges: dict[str, Member] = {}
        self._members: dict[Modality, Member] = {}
        self._refused: dict[Modality, OtherModels] = {}
        found = open_live(self._folder) if run is None else open_run(self._folder, run)
        if found is None:
            raise _nothing_to_search(uri, self._folder)
        self._table, self.snapshot = found
        self._conditions = Conditions(self._table)

    @property
    def run(self) -> str:
        """The run whose rows are searched."""
        return self.snapshot.run

    @property
    def version(self) -> int:
        """The version of the Lance table that is searched."""
        return int(self._table.version)

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
        image: str | Path | bytes | None = None,
        audio: str | Path | bytes | None = None,
        video: str | Path | bytes | None = None,
        like: str | None = None,
        unlike: str | Sequence[str] = (),
        weights: Mapping[str, float] | None = None,
        k: int = 10,
        offset: int = 0,
        modality: str | None = None,
        where: str | Sequence[str] = (),
        filters: Sequence[Filter | Mapping[str, Any]] = (),
        group: bool = False,
        balance: bool = False,
        hybrid: bool = False,
        space: str | None = None,
    ) -> Hits:
        """The `k` rows nearest to a text, or to a file with an image, a sound or a video, or its bytes, best first.

        Of several things to search by the sum is taken, each by its weight in `weights`, 1 if there is none:
        `text`, `image`, `audio`, `video`, `like`, and `not`, 0.5 if there is none, for each text of `unlike`, which is
        subtracted. `like` is the id of a row or an item of the collection, which is not found itself.
        With `group` those of `k` items, the best of each.
        `balance` ranks hits of different modalities by their score's distance from the mean of such
        scores, in standard deviations (`evaluate` measures them), and shares half of the page out evenly among the
        modalities; a hit's `score` stays the cosine.
        `hybrid` also looks for the words of `text` in the rows' texts and metadata, and ranks by the places that rows
        have in both; `score` stays the cosine, and `why` says which of them found the row.
        `where` holds conditions `column=value` on the columns of the collection, or on fields of its
        `metadata`; `metadata.field=value` is a field's even where a column has its name. `filters` are typed ones,
        as HTTP takes them.
        `offset` passes over so many hits; not with `balance`, whose page is made as a whole. `space` is a bridge
        that `train --adapter` made from another text encoder into this collection's text vectors, to
        embed a text with. Raises UsageError for what is not of its type and for a query that cannot be embedded, and
        CollectionError if the models, or the bridge, are not the table's.
        """
        return self.answer(
            search_of(
                text=text,
                image=image,
                audio=audio,
                video=video,
                like=like,
                unlike=unlike,
                weights=weights,
                k=k,
                offset=offset,
                modality=modality,
                where=where,
                filters=filters,
                group=group,
                balance=balance,
                hybrid=hybrid,
                space=space,
            )
        )

    def answer(self, asked: Search) -> Hits:
        """What `search` says, for examples that are at hand."""
        if not 1 <= asked.k <= MAX_K:
            raise UsageError(f"k is {asked.k}; expected 1 to {MAX_K:,}")
        most = (DEPTH if asked.hybrid else MAX_DEPTH) - asked.k
        if not 0 <= asked.offset <= most:
            raise UsageError(f"offset is {asked.offset}; expected 0 to {most:,} for k {asked.k}")
        if asked.balance and asked.offset:
            raise UsageError(
                "a balanced page gives each kind its part: ask for more with a larger k, not with an offset"
            )
        if asked.hybrid and not asked.words:
            raise UsageError("hybrid looks for words: give a text, or leave it out")
        # what is wrong with these need not wait for a model
        condition = self._condition(asked.modality, asked.where, asked.filters)
        measured = self._balance() if asked.balance else None
        vector, asking, found = self._asked(asked)
        if found:
            condition = both(condition, none_of("item", found))
        hits = self._ranked_hits(asked, vector, asking, condition, measured)
        return Hits(hits[asked.offset : asked.offset + asked.k], self.run, self._html)

    def _ranked_hits(
        self,
        asked: Search,
        vector: npt.NDArray[np.float32],
        asking: Modality,
        condition: Any,
        measured: Balance | None,
    ) -> list[Hit]:
        rows = DEPTH if asked.hybrid else asked.k + asked.offset
        if measured is None:
            near = self._found(vector, rows, condition, group=asked.group)
        else:
            each = [condition] if asked.modality else [both(condition, equals("modality", kind)) for kind in self.kinds]
            near = self._standardised(measured, asking, vector, rows, each, asked.group)
        if asked.hybrid:
            worded = self._worded(asked.words, vector, rows, condition, asked.group)
            near = fused(near, worded, (lambda hit: hit.item) if asked.group else (lambda hit: hit.id))
        if measured is None:
            return near
        return [near[place] for place in page([hit.modality for hit in near], asked.k)]

    @property
    def kinds(self) -> list[Modality]:
        """The modalities that the collection has an encoder for."""
        return list(self.snapshot.fingerprints)

    def _html(self, hits: Hits) -> str:
        from batchproj.notebook import html_of

        return html_of(hits, self._folder, self.snapshot)

    def _asked(self, asked: Search) -> tuple[npt.NDArray[np.float32], Modality, list[str]]:
        """The vector (K,) of a search, the modality that asks, and the items of the collection that ask."""
        if not any(example.weight > 0 for example in asked.examples):
            raise UsageError("give a query: a text, a file with an image, a sound or a video, or the id of an item")
        if asked.space is not None and not all(example.text for example in asked.examples):
            raise UsageError("--space is for a text query: files are embedded by the collection's own encoders")
        vectors, asking, items = [], [], []
        for example in asked.examples:
            if example.id is not None:
                rows = self.rows_of(example.id)
                vectors.append(combined(*_evenly(rows)))
                asking.append(Modality(rows[0]["modality"]))
                items.append(rows[0]["item"])
            else:
                modality = self._encoder.modality_of(example)
                member = self.member(modality) if asked.space is None else self._bridge(asked.space)
                vectors.append(self._encoder.vector(member, example))
                asking.append(modality)
        weights = [example.weight for example in asked.examples]
        heaviest = max(range(len(weights)), key=weights.__getitem__)
        return combined(vectors, weights), asking[heaviest], items

    def rows_of(self, name: str) -> list[dict[str, Any]]:
        """The row of an id, or all rows of an item, with their vectors; raises UsageError if there is none."""
        from lancedb.expr import col, lit

        query = self._table.search().where((col("item") == lit(name)) | (col("id") == lit(name))).limit(MAX_DEPTH)
        rows = query.to_list()
        if not rows:
            raise UsageError(f"run {self.run} has no item '{name[:100]}'; expected the id of a hit")
        exact = [row for row in rows if row["id"] == name]
        return exact or sorted(rows, key=lambda row: int(row["segment"]))

    def sample(self, most: int) -> list[dict[str, Any]]:
        """Rows from all over the table, `most` of them if it has so many; the same each time."""
        rows = self._table.count_rows()
        chosen = np.sort(np.random.default_rng(0).choice(rows, min(rows, most), replace=False))
        columns = [*_COLUMNS, "vector"]
        sampled: list[dict[str, Any]] = self._table.to_lance().take(chosen.tolist(), columns=columns).to_pylist()
        return sampled

    def _balance(self) -> Balance:
        found = read_balance(self._folder, self.snapshot.space)
        if found is None:
            raise UsageError(self._unmeasured)
        return found

    @property
    def _unmeasured(self) -> str:
        return f"the scores of run {self.run} were not measured yet: batchproj evaluate {self.uri}"

    def _standardised(
        self,
        measured: Balance,
        asking: Modality,
        vector: npt.NDArray[np.float32],
        k: int,
        conditions: list[Any],
        group: bool,
    ) -> list[Hit]:
        """The `k` nearest by the condition of each modality, by standardised score."""
        hits = [hit for each in conditions for hit in self._found(vector, k, each, group=group)]
        if not all(measured.knows(hit.modality) for hit in hits):  # its first items came after the measuring
            raise UsageError(self._unmeasured)
        return sorted(hits, key=lambda hit: (-measured.standardised(asking, hit.modality, hit.score), hit.id))

    def embed_query(self, text: str, space: str | None = None) -> npt.NDArray[np.float32]:
        """The vector (K,) float32 of a text."""
        return self._asked(search_of(text=text, space=space))[0]

    def embedder(self, modality: Modality) -> Embedder:
        """Encoder and projector of a modality as queries take them, loaded once; refused unless they made the table."""
        return self._encoder.embedder(self.member(modality))

    def member(self, modality: Modality) -> Member:
        """A modality of the collection's space; raises CollectionError unless it is what made the table.

        Found out once: to say what a model is all of its weights are digested, which takes longer than most queries.
        """
        if (known := self._members.get(modality)) is not None:
            return known
        if (refused := self._refused.get(modality)) is not None:
            raise refused
        if modality not in self._opened.space.members():
            raise UsageError(f"this collection's space has no encoder for {modality}; query it with another kind")
        member = resolve_member(self._opened, modality)
        live = self.snapshot.fingerprints[modality].vector
        if member.vector_fp != live:
            self._refused[modality] = OtherModels(
                f"the {modality} encoder at hand has fingerprint {member.vector_fp[:12]}, the table was made with "
                f"{live[:12]}; use the batchproj version that made it, or embed again"
            )
            raise self._refused[modality]
        self._members[modality] = member
        return member

    def _bridge(self, space: str) -> Member:
        """Text encoder and adapter of a bridge; refused unless it leads to the table's text vectors."""
        if space not in self._bridges:
            self._bridges[space] = _bridge_member(space, self)
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
        if not 1 <= k <= MAX_K:
            raise UsageError(f"k is {k}; expected 1 to {MAX_K:,}")
        return self._found(vector, k, self._condition(modality, where), exact, group)

    def _found(
        self, vector: npt.NDArray[np.float32], k: int, condition: Any, exact: bool = False, group: bool = False
    ) -> list[Hit]:
        if not group:
            return self._rows(vector, k, condition, exact)
        return _ranked(_items(lambda rows, terms: self._rows(vector, rows, terms, exact), k, condition))[:k]

    def _rows(self, vector: npt.NDArray[np.float32], k: int, condition: Any, exact: bool) -> list[Hit]:
        query = self._table.search(vector).distance_type("cosine").limit(k)
        if exact:
            query = query.bypass_vector_index()
        else:
            rows = self.snapshot.rows
            refined = max(REFINE, math.ceil(_grown(REFINE_ROWS, rows, REFINE_FROM) / k))
            query = query.nprobes(_grown(PROBES, rows, PROBES_FROM)).refine_factor(refined)
        if condition is not None:
            query = query.where(condition, prefilter=True)
        found = query.select([*_COLUMNS, "_distance"]).to_list()
        return _ranked(_hit(row, 1.0 - row["_distance"]) for row in found)

    def _worded(self, words: str, vector: npt.NDArray[np.float32], k: int, condition: Any, group: bool) -> list[Hit]:
        """The `k` rows that have most of the words, by BM25, best first; `score` is the cosine all the same.

        With `group` the best rows of `k` items.
        """
        if not group:
            return self._worded_rows(words, vector, k, condition)
        return _items(lambda rows, terms: self._worded_rows(words, vector, rows, terms), k, condition)[:k]

    def _worded_rows(self, words: str, vector: npt.NDArray[np.float32], k: int, condition: Any) -> list[Hit]:
        query = self._table.search(words, query_type="fts", fts_columns=list(WORDED)).limit(k)
        if condition is not None:
            query = query.where(condition, prefilter=True)
        found = query.select([*_COLUMNS, "vector", "_score"]).to_list()
        found.sort(key=lambda row: (-row["_score"], row["id"]))
        return [_hit(row, float(np.dot(row["vector"], vector))) for row in found]

    def _condition(self, modality: str | None, where: Sequence[str], filters: Sequence[Filter] = ()) -> Any:
        """The conditions as one typed expression: user text never becomes SQL."""
        present = [str(each) for each in self.snapshot.fingerprints]
        if modality is not None and modality not in present:
            raise UsageError(f"no modality '{modality}' in this collection; expected one of {', '.join(present)}")
        return self._conditions.of(modality, where, filters)

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


def _nothing_to_search(uri: str, folder: Folder) -> CollectionError:
    if numbers(folder):
        return CollectionError(
            f"the first run of {uri} is not finished, so there is nothing to search yet; wait for it, or run the same "
            "embed command again if it ended early"
        )
    return CollectionError(f"no collection at {uri}; expected one made by: batchproj embed SOURCE {uri}")


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


def _items(rows_of: Callable[[int, Any], list[Hit]], k: int, condition: Any) -> list[Hit]:
    """The best rows of the first `k` items, or a few more, as `rows_of` ranks rows by their number and a condition.

    However many segments of one item come first: what is asked next is without the items found,
    whose best rows are known, for rows come best first.
    """
    best: dict[str, Hit] = {}
    rows, terms = GROUP_ROWS * k, condition
    while found := rows_of(rows, terms):
        for hit in found:
            best.setdefault(hit.item, hit)
        if len(best) >= k:
            break
        terms = both(condition, none_of("item", list(best)))
        rows = min(2 * rows, GROUP_ROWS * MAX_K)
    return list(best.values())


def _grown(least: int, rows: int, from_rows: int) -> int:
    return math.ceil(least * math.sqrt(max(1, rows / from_rows)))


def _ranked(hits: Iterable[Hit]) -> list[Hit]:
    return sorted(hits, key=lambda hit: (-hit.score, hit.id))


def _hit(row: Mapping[str, Any], score: float) -> Hit:
    return Hit(score=min(1.0, max(-1.0, score)), **{name: row[name] for name in _COLUMNS})


def _evenly(rows: Sequence[Mapping[str, Any]]) -> tuple[list[npt.NDArray[np.float32]], list[float]]:
    """The vectors of rows, and an equal weight for each."""
    return [np.asarray(row["vector"], np.float32) for row in rows], [1.0] * len(rows)
