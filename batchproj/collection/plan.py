"""The listing against the live manifest: what is new, changed, gone or made by other models.

Both sides are tables of an on-disk DuckDB with a small memory limit, so the planner's memory does
not grow with the corpus. Units are cut where the keys themselves say so (content-defined, as in
rsync) unless they are full before: among small objects one more or less moves few borders.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Self

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from batchproj.collection.snapshot import FeatureFile, Fingerprints, Snapshot
from batchproj.collection.unit import Task, Unit, unit_name
from batchproj.decode.extensions import hint
from batchproj.decode.limits import Limits
from batchproj.errors import TryLater
from batchproj.schema import Modality, Reason
from batchproj.source.place import SOUND, SOUND_TRACK, beginning, promised_name

MEMORY_LIMIT = "256MB"
BATCH_ROWS = 8_192


_TABLES = """
CREATE TABLE listing (item VARCHAR, uri VARCHAR, key VARCHAR, pair VARCHAR, size BIGINT,
    source_version VARCHAR, metadata VARCHAR, place VARCHAR, hint VARCHAR);
CREATE TABLE manifest (item VARCHAR, uri VARCHAR, key VARCHAR, pair VARCHAR, size BIGINT,
    source_version VARCHAR, metadata VARCHAR, place VARCHAR, status VARCHAR, reason VARCHAR,
    detail VARCHAR, stage VARCHAR, modality VARCHAR, content_id VARCHAR, segments INTEGER,
    feature_fp VARCHAR, vector_fp VARCHAR, part VARCHAR, features VARCHAR, attempts INTEGER, run VARCHAR);
CREATE TABLE later (item VARCHAR, size BIGINT, source_version VARCHAR, status VARCHAR, modality VARCHAR,
    content_id VARCHAR, feature_fp VARCHAR, features VARCHAR);
CREATE TABLE outcome (item VARCHAR, status VARCHAR, reason VARCHAR, detail VARCHAR, stage VARCHAR,
    modality VARCHAR, content_id VARCHAR, segments INTEGER, unit VARCHAR, features VARCHAR);
CREATE TABLE space (modality VARCHAR, feature_fp VARCHAR, vector_fp VARCHAR);
CREATE TABLE forgotten (item VARCHAR);
CREATE TABLE damaged (kind VARCHAR, file VARCHAR);
"""

CONTAINER = "left(m.key, length(m.key) - strpos(reverse(m.key), '#'))"
"""The key of the seal of a row's table or a member's shard."""

_FILM = f"left(m.uri, -{len(SOUND)})"
COVERED = f"""(m.item IN (FROM {{markers}}) OR m.place IS NOT NULL
    AND (m.source_version IN (FROM {{markers}}) OR sha256(m.uri)[:32] IN (FROM {{markers}})
        OR (starts_with(m.place, '["{SOUND_TRACK}",')
            AND (m.place->>'$[1][0]' IN (FROM {{markers}}) OR sha256({_FILM})[:32] IN (FROM {{markers}})))))"""
"""Of an item `m` that one of the markers keeps out: rows also by their version, or by the object that they name, and
sound tracks with their film."""

_FORGOTTEN = COVERED.format(markers="forgotten")

_DECIDE = """
CREATE TABLE plan AS
SELECT * EXCLUDE (failed), failed AND action IN ('retry', 'encode') AS again FROM (
SELECT l.item, l.uri, l.key, l.pair, l.size, l.source_version, l.metadata, l.place,
    coalesce(m.modality, l.hint) AS modality, m.features AS cached,
    CASE WHEN m.item IS NULL THEN 'new'
         WHEN m.source_version <> l.source_version OR m.uri <> l.uri THEN 'changed'
         WHEN m.status = 'quarantined' AND ({hopeful}) THEN 'retry'
         WHEN m.feature_fp IS DISTINCT FROM s.feature_fp THEN 'encode'
         WHEN m.features IN (SELECT file FROM damaged WHERE kind = 'features') THEN 'encode'
         WHEN m.status = 'quarantined' THEN 'quarantined'
         WHEN m.vector_fp IS DISTINCT FROM s.vector_fp OR m.pair IS DISTINCT FROM l.pair
             OR m.metadata IS DISTINCT FROM l.metadata THEN 'project'
         WHEN m.part IN (SELECT file FROM damaged WHERE kind = 'parquet') THEN 'project'
         ELSE 'unchanged' END AS action,
    coalesce(m.status = 'quarantined', false) AS failed
FROM listing l LEFT JOIN manifest m USING (item) LEFT JOIN space s ON s.modality = m.modality);
CREATE TABLE gone AS SELECT item, size, source_version, status FROM manifest ANTI JOIN listing USING (item);
"""

LISTED = "m.item, m.uri, m.key, m.pair, m.size, m.source_version, m.metadata, m.place"

_LOST_REASONS = (Reason.MISSING, Reason.OUTSIDE_ROOTS, Reason.BAD_ROW)

_LOST = f"""
SELECT (SELECT count(*) FROM gone),
    (SELECT count(*) FROM gone JOIN manifest m USING (item) WHERE EXISTS (FROM forgotten) AND {_FORGOTTEN}),
    (SELECT count(*) FROM gone JOIN manifest m USING (item) WHERE starts_with(m.place, '["{SOUND_TRACK}",')),
    (SELECT count(*) FROM plan p JOIN manifest m USING (item)
    WHERE p.action = 'changed' AND m.status = 'embedded'
        AND ({" OR ".join(f"starts_with(p.place, '{beginning(reason)}')" for reason in _LOST_REASONS)}))
"""

TRANSIENT = (Reason.FORBIDDEN, Reason.CHANGED)
"""Reasons that may be gone by the next run, though the object is the same."""

_KNOWN_LIMIT = 8

_USED = "item, size, source_version, status, modality, content_id, feature_fp, features"

# An object may hold bytes that were embedded before: under its own name (touched), under another
# (moved, copied), by a run that was rolled back. Only their digest tells, once they are read; here are
# the contents it could be, found by size. Sizes that many contents share say nothing and are left out.
_KNOWN = f"""
CREATE TABLE known AS
WITH sought AS (SELECT item, size, source_version FROM plan WHERE action IN ('new', 'changed', 'retry', 'encode')),
usable AS (
    SELECT m.item, m.size, m.source_version, m.content_id, m.modality, m.features
    FROM (SELECT {_USED} FROM manifest UNION ALL SELECT {_USED} FROM later) m
        JOIN space s ON s.modality = m.modality AND s.feature_fp = m.feature_fp
    WHERE m.status = 'embedded' AND m.size IN (SELECT size FROM sought)
        AND m.features NOT IN (SELECT file FROM damaged WHERE kind = 'features')),
versions AS (
    SELECT size, source_version, content_id, modality, min(features) AS features
    FROM usable GROUP BY size, source_version, content_id, modality
    QUALIFY count(*) OVER (PARTITION BY size, source_version) <= {_KNOWN_LIMIT}),
contents AS (
    SELECT size, content_id, modality, min(features) AS features
    FROM usable GROUP BY size, content_id, modality
    QUALIFY count(*) OVER (PARTITION BY size) <= {_KNOWN_LIMIT}),
pairs AS (
    SELECT item, u.content_id, u.modality, u.features FROM sought k JOIN usable u USING (item)
    UNION ALL
    SELECT item, v.content_id, v.modality, v.features FROM sought k JOIN versions v USING (size, source_version)
    UNION ALL
    SELECT item, c.content_id, c.modality, c.features FROM sought k JOIN contents c USING (size)),
contents_of AS (SELECT item, content_id, modality, min(features) AS features FROM pairs GROUP BY ALL)
SELECT item, list({{content_id: content_id, modality: modality, features: features}}
    ORDER BY content_id, modality) AS known
FROM contents_of GROUP BY item;
"""

_DIFFERENCES = """
SELECT p.action, coalesce(p.modality, 'unclear') AS modality,
    CASE WHEN g.size IS NOT NULL THEN 'moved'
         WHEN p.action = 'changed' AND p.size = m.size THEN 'touched' END AS likely,
    count(*) AS items, sum(p.size)::BIGINT AS bytes
FROM plan p LEFT JOIN manifest m USING (item)
    LEFT JOIN (SELECT DISTINCT size, source_version FROM gone) g
    ON p.action = 'new' AND g.size = p.size AND g.source_version = p.source_version
GROUP BY ALL ORDER BY ALL
"""


@dataclass(frozen=True)
class Counts:
    """Items by what a run would do with each.

    `encode` are unchanged ones under a new encoder, `retry` quarantined ones that may have another outcome now, or
    were asked for. Of the `deleted`, `moved` counts those whose size and version a new object has, `forgotten` those
    that a marker keeps out, `sound_tracks` those that are sound tracks. `faulty` are those of the `changed` that are
    embedded and whose row in a table now is bad, or names nothing that is there or may be opened.
    """

    new: int = 0
    changed: int = 0
    retry: int = 0
    encode: int = 0
    project: int = 0
    unchanged: int = 0
    quarantined: int = 0
    deleted: int = 0
    moved: int = 0
    forgotten: int = 0
    sound_tracks: int = 0
    faulty: int = 0

    @property
    def listed(self) -> int:
        return self.new + self.changed + self.retry + self.encode + self.project + self.unchanged + self.quarantined

    @property
    def nothing_to_do(self) -> bool:
        return not (self.new or self.changed or self.retry or self.encode or self.project or self.deleted)


@dataclass(frozen=True)
class Difference:
    """Items and bytes with one action and modality; `likely` is what it looks like before it is read."""

    action: str
    modality: str
    likely: str | None
    items: int
    bytes: int


class Plan:
    """The working tables of one run; use as a context manager, it keeps a file on disk.

    `sealed` are digests of the tables and shards whose rows need not be listed again while these hold.
    """

    def __init__(
        self, members: dict[Modality, Fingerprints], limits: Limits, decoders: dict[str, str] | None = None
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="batchproj-plan-")
        settings = {"memory_limit": MEMORY_LIMIT, "threads": 2}
        self.db = duckdb.connect(str(Path(self._folder.name) / "plan.duckdb"), config=settings)
        self.db.execute("SET enable_progress_bar = false")  # it would write into the command's own output
        self.db.execute(_TABLES)
        # what an outcome depends on beside the item: what is no picture may be another encoder's sound
        self._context = {m: member.vector for m, member in members.items()}, limits.model_dump(), decoders
        self._members, self._limits, self._decoders = members, limits, decoders
        self.sealed: dict[str, str] = {}
        self._digests: dict[str, str] = {}
        for modality, member in members.items():
            self.db.execute("INSERT INTO space VALUES (?, ?, ?)", [modality, member.feature, member.vector])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self.db.close()
        self._folder.cleanup()
        raise_if_full(error, self.scratch.parent)

    @property
    def scratch(self) -> Path:
        """A folder that lives as long as the plan."""
        return Path(self._folder.name)

    def add_listing(self, page: pa.RecordBatch) -> None:
        columns = (page[name].to_pylist() for name in ("key", "uri", "place"))
        names = [key if place is None else promised_name(uri, place) for key, uri, place in zip(*columns, strict=True)]
        hints = pa.array([hint(name) for name in names], pa.string())
        self.insert("listing", pa.Table.from_batches([page]).append_column("hint", hints))

    def insert(self, table: str, rows: pa.Table) -> None:
        """Append Arrow rows, columns by name, to one of our tables."""
        self.db.register("incoming", rows)
        try:
            self.db.execute(f"INSERT INTO {table} BY NAME SELECT * FROM incoming")
        finally:
            self.db.unregister("incoming")

    def load_manifest(self, rows: str, run: str | None = None) -> None:
        """Load the manifest of the live run, given as SQL of its rows.

        Older ones do not say how often and when an item failed: it counts as once, in the run that is live.
        """
        self.db.execute(f"INSERT INTO manifest BY NAME {rows}")
        untold = "status = 'quarantined' AND attempts IS NULL"
        self.db.execute(f"UPDATE manifest SET attempts = 1, run = ? WHERE {untold}", [run])

    def know_features(self, files: Iterable[FeatureFile]) -> None:
        """The digests of the live run's files of features, for the units that start from them."""
        self._digests |= {file.name: file.sha256 for file in files}

    def load_later(self, rows: str) -> None:
        """Load the manifest of a run after the live one, which was rolled back: its features may serve again."""
        self.db.execute(f"INSERT INTO later BY NAME SELECT {_USED} FROM ({rows})")

    def list_manifest(self) -> None:
        """Take the loaded manifest for the listing."""
        self.db.execute(f"INSERT INTO listing BY NAME SELECT {LISTED} FROM manifest m")

    def forget(self, markers: list[str]) -> None:
        """Leave what these markers cover out of the listing: rows known by their number would come back under another.

        Their tables and shards lose their seals: whoever forgets no longer must find the rows there.
        """
        if not markers:
            return
        self.insert("forgotten", pa.table({"item": pa.array(markers, pa.string())}))
        left_out = f"SELECT DISTINCT {CONTAINER} FROM listing m WHERE m.place IS NOT NULL AND {_FORGOTTEN}"
        for (container,) in self.rows(left_out):
            self.sealed.pop(container, None)
        self.db.execute(f"DELETE FROM listing m WHERE {_FORGOTTEN}")

    def redo(self, files: list[str]) -> None:
        """Do the items again whose part or file of features, named as in the collection, is damaged."""
        paths = [PurePosixPath(file) for file in files]
        kinds = pa.array([path.parts[0] for path in paths], pa.string())  # a unit's two files have one name
        self.insert("damaged", pa.table({"kind": kinds, "file": pa.array([path.stem for path in paths], pa.string())}))

    def decide(self, live: Snapshot | None = None, retry: Iterable[Reason] | None = ()) -> Counts:
        """Compare the two sides; call once, after the listing and the manifest are in.

        Of what is in quarantine is tried again: what has one of the reasons `retry` or one that passes by itself;
        what `live`, the run of the manifest, found too large by other limits, could not decode with other decoders,
        or could not even recognise and would hand to another encoder now. If `retry` is None, nothing is.
        """
        hopeful = "false" if retry is None else " OR ".join(self._hopeful(live, retry))
        self.db.execute(_DECIDE.format(hopeful=hopeful))
        self.db.execute(_KNOWN)
        found: dict[str, int] = dict(self.rows("SELECT action, count(*) FROM plan GROUP BY action"))
        moved = self.rows(
            "SELECT coalesce(sum(least(gone_n, new_n)), 0)::BIGINT FROM "
            "(SELECT size, source_version, count(*) AS gone_n FROM gone GROUP BY ALL) JOIN "
            "(SELECT size, source_version, count(*) AS new_n FROM plan WHERE action = 'new' GROUP BY ALL) "
            "USING (size, source_version)"
        )[0][0]
        gone, forgotten, tracks, faulty = self.rows(_LOST)[0]
        return Counts(**found, deleted=gone, moved=moved, forgotten=forgotten, sound_tracks=tracks, faulty=faulty)

    def _hopeful(self, live: Snapshot | None, retry: Iterable[Reason]) -> Iterator[str]:
        """Conditions under which an item in quarantine is tried again."""
        reasons = {*TRANSIENT, *retry}
        if live is not None and live.limits != self._limits:
            reasons.add(Reason.TOO_LARGE)
        yield f"m.reason IN ({_listed(reasons)})"
        if live is not None and live.decoders != (self._decoders or {}):  # older runs do not say: once more
            yield f"m.stage = 'decode' AND m.reason <> '{Reason.NO_ENCODER}'"
        if live is not None and (others := live.other_encoders(self._members)):
            # of any other item the manifest says by which encoder it was judged
            yield f"m.modality IS NULL AND coalesce(l.hint IN ({_listed(others)}), true)"

    def differences(self) -> list[Difference]:
        """The plan in numbers, by action and modality."""
        return [Difference(*row) for row in self.rows(_DIFFERENCES)]

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = self.db.sql(query).fetchall()
        return found

    def batches(self, query: str, rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        """Stream a query's result, so many rows at a time, on a cursor of its own: others may run meanwhile."""
        cursor = self.db.cursor()
        try:
            yield from cursor.sql(query).to_arrow_reader(rows)
        finally:
            cursor.close()

    def to_embed(self) -> Iterator[pa.RecordBatch]:
        """Items whose bytes must be read, by the modality their name promises, then by key."""
        return self._inputs("SELECT * FROM plan WHERE action IN ('new', 'changed', 'retry', 'encode')")

    def to_project(self) -> Iterator[pa.RecordBatch]:
        """Items whose cached features only need another projector, by file of features."""
        return self._inputs("SELECT * FROM plan WHERE action = 'project'")

    def deferred(self) -> Iterator[pa.RecordBatch]:
        """Items whose content turned out to be of another modality than their name promises."""
        return self._inputs(
            "SELECT p.* REPLACE (o.modality AS modality) FROM plan p JOIN outcome o USING (item) "
            "WHERE o.status = 'deferred' AND item NOT IN (SELECT item FROM outcome WHERE status <> 'deferred')"
        )

    def _inputs(self, items: str) -> Iterator[pa.RecordBatch]:
        return self.batches(
            "SELECT item, uri, key, pair, size, source_version, metadata, place, modality, again, "
            f"CASE WHEN action = 'project' THEN cached END AS cached, known "
            f"FROM ({items}) LEFT JOIN known USING (item) "
            "ORDER BY modality NULLS LAST, again, cached, key"
        )

    def cut(
        self, run: str, task: Task, batches: Iterable[pa.RecordBatch], max_items: int, max_bytes: int
    ) -> Iterator[tuple[Unit, pa.Table]]:
        """Cut the rows of `to_embed`, `to_project` or `deferred` into units."""
        for inputs in _groups(batches, max_items, max_bytes, whole=task == "project"):
            modality, again, cached = (inputs[column][0].as_py() for column in _ALIKE)
            inputs = inputs.select(_INPUT_SCHEMA.names).cast(_INPUT_SCHEMA).combine_chunks()
            unit = Unit(
                name=unit_name([task, run, self._context, modality, cached], inputs),
                run=run,
                task=task,
                modality=Modality(modality) if modality else None,
                items=inputs.num_rows,
                bytes=pc.sum(inputs["size"]).as_py(),
                cached=cached,
                cached_sha256=self._digests.get(cached or ""),
                again=again,
            )
            yield unit, inputs


def _listed(names: Iterable[str]) -> str:
    """Names of our own as a list in SQL."""
    return ", ".join(f"'{name}'" for name in sorted(names))


def raise_if_full(error: BaseException | None, folder: Path) -> None:
    """A full disk of DuckDB's or ours as TryLater; anything else is left as it is."""
    if isinstance(error, (duckdb.Error, OSError)) and "no space left" in str(error).lower():
        raise TryLater(
            f"no space left for temporary files under {folder}; make room or set TMPDIR, and run the same command again"
        ) from error


# what an item may turn out to be when it is read: contents that are embedded already, and where
_CONTENT = pa.struct([("content_id", pa.string()), ("modality", pa.string()), ("features", pa.string())])

_INPUT_SCHEMA = pa.schema(
    [
        pa.field("item", pa.string()),
        pa.field("uri", pa.string()),
        pa.field("key", pa.string()),
        pa.field("pair", pa.string()),
        pa.field("size", pa.int64()),
        pa.field("source_version", pa.string()),
        pa.field("metadata", pa.string()),
        pa.field("place", pa.string()),
        pa.field("known", pa.list_(_CONTENT)),
    ]
)


_ALIKE = ("modality", "again", "cached")
"""Columns in which all rows of a unit are alike."""


def _groups(batches: Iterable[pa.RecordBatch], max_items: int, max_bytes: int, whole: bool) -> Iterator[pa.Table]:
    """Runs of rows with equal modality and cache file, new or tried again, closed at a border or when full.

    `whole` groups hold all rows of one cache file: it is read once and was cut to size before.
    """
    waiting: list[pa.RecordBatch] = []  # of the group: rows of earlier batches, then `count` rows in all
    count = size = 0
    group = None
    for batch in batches:
        begin = 0
        rows = zip(*(batch[column].to_pylist() for column in (*_ALIKE, "size", "key")), strict=True)
        for at, (*alike, row_bytes, key) in enumerate(rows):
            full = not whole and _full(count, size, row_bytes, key, max_items, max_bytes)
            if count and (alike != group or full):
                yield pa.Table.from_batches([*waiting, batch.slice(begin, at - begin)])
                waiting, begin, count, size = [], at, 0, 0
            group = alike
            count += 1
            size += row_bytes
        waiting.append(batch.slice(begin))
    if count:
        yield pa.Table.from_batches(waiting)


def _full(count: int, size: int, row_bytes: int, key: str, max_items: int, max_bytes: int) -> bool:
    if count >= max_items or size + row_bytes > max_bytes:
        return True
    # the more texts a unit has, the more of one length there are to encode together
    return count >= max_items * 3 // 4 and _is_border(key, max(2, max_items // 8))


def _is_border(key: str, spacing: int) -> bool:
    """True for about one key in `spacing`, decided by the key alone."""
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:4], "big") % max(spacing, 1) == 0
