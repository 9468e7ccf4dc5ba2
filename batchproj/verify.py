"""Reading everything back: is every byte of every kept run what its snapshot says?

    log, live tag        agree on the run that is live
    snapshot             can be read, and fits its manifest
    manifest, quarantine, parts, features    bytes against their sha256, rows counted
    table                every row of every kept version, the vector's bytes too, against the parts
    space, ledger        can be read; projectors are the ones the snapshot names

Every file and every fragment of the table is read once, however many runs share it. Rows are compared
by digests in a DuckDB on disk, so memory does not grow with the collection. Of the table's indices it
is only seen that their files are there: Lance keeps no digests of them, and a rebuild makes them again.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, Self

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from batchproj import retry
from batchproj.collection import layout, ledger, manifest
from batchproj.collection.lease import Record, head
from batchproj.collection.plan import MEMORY_LIMIT
from batchproj.collection.snapshot import Part, Snapshot, read_snapshot
from batchproj.collection.unit import digest, file_digest
from batchproj.errors import CollectionError, TryLater, UsageError
from batchproj.index import Fragment, VectorTable
from batchproj.lance_store import lance_faults
from batchproj.objectstore import Folder
from batchproj.space import open_space
from batchproj.tags import Tags

Say = Callable[[str], None]
Kind = Literal["log", "ledger", "snapshot", "manifest", "quarantine", "part", "features", "table", "space"]

READ_THREADS = 8
LOOKS = 3
"""Times that log and live tag may differ, a second apart, before it is no switch in progress."""

_TABLES = """
CREATE TABLE parquet_rows (file INTEGER, id VARCHAR, digest UBIGINT);
CREATE TABLE lance_rows (fragment INTEGER, id VARCHAR, digest UBIGINT);
CREATE TABLE part_of (run VARCHAR, file INTEGER);
CREATE TABLE fragment_of (run VARCHAR, fragment INTEGER);
"""

_DIFFERING = """
SELECT l.fragment, count(DISTINCT l.id), min(l.id)
FROM lance_rows l JOIN fragment_of f USING (fragment) JOIN part_of p USING (run)
    JOIN parquet_rows r ON r.file = p.file AND r.id = l.id
WHERE l.digest <> r.digest GROUP BY l.fragment ORDER BY l.fragment
"""

_IN_PARQUET = "(SELECT id FROM parquet_rows JOIN part_of USING (file) WHERE run = $run)"
_IN_LANCE = "(SELECT id FROM lance_rows JOIN fragment_of USING (fragment) WHERE run = $run)"


class Damage(BaseModel):
    """One thing that is not what it has to be; `file` is its name below the collection's folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Kind
    file: str
    runs: list[str]
    what: str

    def __str__(self) -> str:
        return f"{self.file} ({'run' if len(self.runs) == 1 else 'runs'} {', '.join(self.runs)}): {self.what}"


class Verification(BaseModel):
    """What was read of a collection, and what of it is damaged; `rows` counts those compared in the table."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    collection: str
    live: str
    runs: list[str]
    files: int
    bytes: int
    rows: int
    damaged: list[Damage]

    def of(self, run: str) -> list[Damage]:
        """The damage that concerns one run."""
        return [damage for damage in self.damaged if run in damage.runs]

    def sound(self) -> list[str]:
        """Kept runs without damage, newest first."""
        return [run for run in reversed(self.runs) if not self.of(run)]


def verify(uri: str, say: Say) -> Verification:
    """Read every file of every kept run and the whole table; damage is named and never raised.

    Raises CollectionError if there is no collection, TryLater if storage is away.
    """
    folder = Folder(uri)
    if not folder.exists(f"{layout.TABLE}.lance") and not folder.names("log"):
        raise CollectionError(f"no collection at {uri}; expected one made by: batchproj embed SOURCE {uri}")
    with _Check(folder, say) as check:
        return check.everything()


@dataclass(frozen=True)
class _Wanted:
    """A Parquet file as a snapshot promises it."""

    kind: Kind
    name: str
    part: Part


class _Check:
    """One pass over a collection; collects damage."""

    def __init__(self, folder: Folder, say: Say) -> None:
        self._folder = folder
        self._say = say
        self._scratch = tempfile.TemporaryDirectory(prefix="batchproj-verify-")
        settings = {"memory_limit": MEMORY_LIMIT, "threads": 2}
        self._db = duckdb.connect(str(Path(self._scratch.name) / "rows.duckdb"), config=settings)
        self._db.execute("SET enable_progress_bar = false")
        self._db.execute(_TABLES)
        self._damaged: list[Damage] = []
        self._digests: dict[str, str] = {}
        self._files = self._bytes = self._rows = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()
        self._scratch.cleanup()

    def everything(self) -> Verification:
        committed = self._log()
        kept = self._kept(committed)
        if not kept:
            raise CollectionError(f"no run is finished in {self._folder.uri}; run embed again")
        for run in set(kept) - set(ledger.numbers(self._folder)):
            self._damage("ledger", layout.ledger(run), [run], "is missing")
        snapshots = {run: snapshot for run in kept if (snapshot := self._snapshot(run)) is not None}
        self._parquet(snapshots)
        for fingerprint in sorted({snapshot.space for snapshot in snapshots.values()}):
            self._space([snapshot for snapshot in snapshots.values() if snapshot.space == fingerprint])
        self._table({run: version for run, version in kept.items() if version is not None}, snapshots)
        return Verification(
            collection=self._folder.uri,
            live=committed.run if committed and committed.run else max(kept),
            runs=sorted(kept),
            files=self._files,
            bytes=self._bytes,
            rows=self._rows,
            damaged=self._standing(kept),
        )

    def _damage(self, kind: Kind, file: str, runs: Iterable[str], what: str) -> None:
        self._damaged.append(Damage(kind=kind, file=file, runs=sorted(set(runs)), what=what))

    @contextmanager
    def _named(self, kind: Kind, file: str, runs: Iterable[str]) -> Iterator[None]:
        """Whatever goes wrong while a thing is read is its damage; storage that is away is not."""
        try:
            with lance_faults(self._folder.uri):
                yield
        except (TryLater, UsageError):
            raise
        except FileNotFoundError:
            self._damage(kind, file, runs, "is missing")
        except Exception as error:
            retry.check_abandoned()  # DuckDB makes an error of its own of a signal
            self._damage(kind, file, runs, f"cannot be read: {_line(error)}")

    def _standing(self, kept: dict[str, int | None]) -> list[Damage]:
        """The damage, without that of runs which were collected while we looked."""
        if not self._damaged:
            return []
        gone: set[str] = set()
        with suppress(RuntimeError, ValueError):  # damaged itself, and named already
            gone = {run for run, version in kept.items() if version is not None} - set(Tags(self._folder).runs())
        return _merged(damage for damage in self._damaged if not damage.runs or set(damage.runs) - gone)

    # --- which runs ----------------------------------------------------------------------------

    def _log(self) -> Record | None:
        try:
            return head(self._folder)
        except CollectionError as error:
            self._damage("log", "log", [], _line(error))
            return None

    def _kept(self, committed: Record | None) -> dict[str, int | None]:
        """Kept runs and the version of each; None where the table does not tell."""
        states = {run: self._state(run) for run in ledger.numbers(self._folder)}
        if committed and committed.run:
            states[committed.run] = "done"  # whatever its entry says, or if it cannot be read
        unfinished = {run for run, state in states.items() if state in ledger.UNFINISHED}
        done = [run for run, state in states.items() if state == "done"]
        before = len(self._damaged)
        tags: dict[str, int] = {}
        with self._named("table", f"{layout.TABLE}.lance", done):
            tags = Tags(self._folder).runs()
        if len(self._damaged) > before:
            self._tag_files(done)
            return dict.fromkeys(done)
        kept: dict[str, int | None] = {run: version for run, version in tags.items() if run not in unfinished}
        if committed and committed.run:
            kept.setdefault(committed.run, committed.version)
            self._pointer(committed)
        return kept

    def _state(self, run: str) -> str | None:
        with self._named("ledger", layout.ledger(run), [run]):
            entry = ledger.read_entry(self._folder, run)
            return entry.state if entry else None
        return None

    def _tag_files(self, runs: list[str]) -> None:
        """Instead of the table the files of tags, if one of those cannot be read."""
        before = len(self._damaged)
        for name in self._folder.names(layout.TAGS):
            with self._named("table", f"{layout.TAGS}/{name}", runs):
                int(json.loads(self._folder.read(f"{layout.TAGS}/{name}"))["version"])
        if len(self._damaged) > before:
            del self._damaged[before - 1]

    def _pointer(self, committed: Record) -> None:
        """The live tag follows the log: between the two a run may just be switching, or have died."""
        assert committed.run is not None
        for look in range(LOOKS):
            tags = Tags(self._folder)
            runs, live = tags.runs(), tags.live()
            committed = head(self._folder) or committed
            if committed.run is None or (live == committed.version and runs.get(committed.run) == live):
                return
            if look < LOOKS - 1:
                time.sleep(1)
        shown = ", ".join(run for run, version in runs.items() if version == live) or "no run"
        self._damage(
            "table",
            f"{layout.TAGS}/{layout.LIVE}.json",
            [committed.run] if committed.run else [],
            f"readers see version {live} ({shown}), the log says run {committed.run}, version {committed.version}",
        )

    # --- files ---------------------------------------------------------------------------------

    def _snapshot(self, run: str) -> Snapshot | None:
        """A run's snapshot, after it was laid against its manifest."""
        with self._named("snapshot", layout.snapshot(run), [run]):
            snapshot = read_snapshot(self._folder, run)
            self._files += 1
            self._lists(snapshot)
            return snapshot
        return None

    def _lists(self, snapshot: Snapshot) -> None:
        """Its manifest and quarantine, the first against what the snapshot says."""
        run = snapshot.run
        found = [self._list("manifest", layout.manifest(file.name), file, run) for file in snapshot.manifest]
        if snapshot.quarantine is not None:
            self._list("quarantine", layout.quarantine(run), snapshot.quarantine, run)
        files = [file for file in found if file is not None]
        if len(files) == len(found) and (problem := self._misfit(snapshot, manifest.rows(files))):
            self._damage("snapshot", layout.snapshot(run), [run], problem)

    def _list(self, kind: Kind, name: str, promised: Part, run: str) -> Path | None:
        """Download a file once, whatever number of runs share it; None if it is damaged."""
        local = Path(self._scratch.name) / name.replace("/", "-")
        with self._named(kind, name, [run]):
            if name not in self._digests:
                self._folder.download(name, local)
                self._files += 1
                self._bytes += local.stat().st_size
                self._digests[name] = file_digest(local)
            if self._digests[name] == promised.sha256:
                return local
            self._damage(kind, name, [run], _other_bytes(self._digests[name], promised.sha256))
        return None

    def _misfit(self, snapshot: Snapshot, items: str) -> str | None:
        """In what a snapshot and its manifest, whose bytes are right, contradict each other."""
        self._db.execute(f"CREATE OR REPLACE TABLE items AS SELECT status, segments, part, features FROM ({items})")
        query = "SELECT count(*), coalesce(sum(segments) FILTER (status = 'embedded'), 0) FROM items"
        counted = self._db.execute(query).fetchall()[0]
        if counted != (snapshot.listed, snapshot.rows):
            return f"says {snapshot.listed} items and {snapshot.rows} rows, its manifest {counted[0]} and {counted[1]}"
        for column, files in (("part", snapshot.parts), ("features", snapshot.features)):
            query = f"SELECT DISTINCT {column} FROM items WHERE {column} IS NOT NULL"
            named = {name for (name,) in self._db.execute(query).fetchall()}
            if named != {file.name for file in files}:
                return f"does not name the same {column} files as its manifest"
        return None

    def _parquet(self, snapshots: dict[str, Snapshot]) -> None:
        """Parts and features: bytes against digests; the rows of parts are noted for the table."""
        runs: dict[_Wanted, list[str]] = {}
        for run, snapshot in snapshots.items():
            for part in snapshot.parts:
                runs.setdefault(_Wanted("part", layout.part(part.name), part), []).append(run)
            for file in snapshot.features:
                runs.setdefault(_Wanted("features", layout.features(file.fingerprint, file.name), file), []).append(run)
        wanted = iter(runs)
        done = 0
        with ThreadPoolExecutor(READ_THREADS) as pool:
            while chunk := list(islice(wanted, READ_THREADS)):
                for want, data in zip(chunk, pool.map(self._read, [want.name for want in chunk]), strict=True):
                    with self._named(want.kind, want.name, runs[want]):
                        self._check_file(want, runs[want], data)
                    done += 1
                self._say(f"files read: {done:,} of {len(runs):,}")

    def _read(self, name: str) -> bytes | None:
        try:
            return self._folder.read(name)
        except FileNotFoundError:
            return None

    def _check_file(self, want: _Wanted, runs: list[str], data: bytes | None) -> None:
        if data is None:
            raise FileNotFoundError(want.name)
        self._files += 1
        self._bytes += len(data)
        found = digest(data)
        if found != want.part.sha256:
            self._damage(want.kind, want.name, runs, _other_bytes(found, want.part.sha256))
            return
        opened = pq.ParquetFile(pa.BufferReader(data))
        if opened.metadata.num_rows != want.part.rows:
            what = f"has {opened.metadata.num_rows} rows, its snapshot says {want.part.rows}"
            self._damage(want.kind, want.name, runs, what)
        elif want.kind == "part":
            number = self._next("part_of", "file", runs)
            for batch in opened.iter_batches():
                self._note("parquet_rows", number, batch)

    # --- the table -----------------------------------------------------------------------------

    def _table(self, kept: dict[str, int], snapshots: dict[str, Snapshot]) -> None:
        table = VectorTable(self._folder)
        fragments: dict[str, tuple[Fragment, list[str]]] = {}
        read = []
        for run, version in kept.items():
            before = len(self._damaged)
            with self._named("table", _version_name(version), [run]):
                for fragment in table.fragments(version):
                    fragments.setdefault(fragment.key, (fragment, []))[1].append(run)
            if len(self._damaged) == before:
                read.append(run)
        files = []
        unreadable: set[str] = set()
        for done, (fragment, runs) in enumerate(fragments.values(), 1):
            number = self._next("fragment_of", "fragment", runs)
            files.append((fragment.file, runs))
            before = len(self._damaged)
            with self._named("table", fragment.file, runs):
                for batch in fragment.batches():
                    self._note("lance_rows", number, batch)
                    self._rows += batch.num_rows
            if len(self._damaged) > before:
                unreadable.update(runs)
            self._say(f"fragments of the table read: {done:,} of {len(fragments):,}")
        for number, count, first in self._db.execute(_DIFFERING).fetchall():
            name, runs = files[number]
            self._damage("table", name, runs, f"{count} rows differ from the parts, first {first}")
        for run in read:
            if run in snapshots and run not in unreadable:
                self._same_ids(run, kept[run], snapshots[run])
        if len(read) == len(kept):  # one damaged manifest keeps Lance from telling any version's files
            self._indices(table, kept)

    def _same_ids(self, run: str, version: int, snapshot: Snapshot) -> None:
        missing = self._count(f"FROM {_IN_PARQUET} ANTI JOIN {_IN_LANCE} USING (id)", run)
        surplus = self._count(f"FROM {_IN_LANCE} ANTI JOIN {_IN_PARQUET} USING (id)", run)
        double = self._count(f"FROM (FROM {_IN_LANCE} GROUP BY id HAVING count(*) > 1)", run)
        rows = self._count(f"FROM {_IN_LANCE}", run)[0]
        if any(run in damage.runs and damage.kind == "part" for damage in self._damaged):
            surplus = (0, None)  # their rows could not be read
        found = [
            f"{word} {count} rows, first {first}"
            for word, (count, first) in (("misses", missing), ("has too many", surplus), ("has twice", double))
            if count
        ]
        if found or rows != snapshot.rows:
            what = "; ".join(found) or f"has {rows} rows, the snapshot {snapshot.rows}"
            self._damage("table", _version_name(version), [run], what)

    def _indices(self, table: VectorTable, kept: dict[str, int]) -> None:
        """Files of indices are there; what is in them Lance alone knows."""
        there = {name for name, _ in self._folder.files(f"{layout.TABLE}.lance")}
        for run, version in kept.items():
            with self._named("table", _version_name(version), [run]):
                for name in sorted(table.files([version]) - there):
                    if "/_indices/" in name:
                        self._damage("table", name, [run], "is missing")

    def _next(self, table: str, column: str, runs: list[str]) -> int:
        """The next number of a file or fragment, noted for its runs."""
        number: int = self._db.execute(f"SELECT coalesce(max({column}) + 1, 0) FROM {table}").fetchall()[0][0]
        self._db.executemany(f"INSERT INTO {table} VALUES (?, ?)", [[run, number] for run in runs])
        return number

    def _note(self, table: str, number: int, batch: pa.RecordBatch) -> None:
        """Keep each row's id and a digest of all its columns."""
        if not batch.num_rows:
            return
        self._db.register("incoming", pa.Table.from_batches([_exact(batch)]))
        columns = ", ".join(f'"{name}"' for name in sorted(batch.schema.names))
        self._db.execute(f"INSERT INTO {table} SELECT {number}, id, hash({columns}) FROM incoming")
        self._db.unregister("incoming")

    def _count(self, source: str, run: str) -> tuple[int, str | None]:
        count, first = self._db.execute(f"SELECT count(*), min(id) {source}", {"run": run}).fetchall()[0]
        return count, first

    # --- the space -----------------------------------------------------------------------------

    def _space(self, snapshots: list[Snapshot]) -> None:
        name = layout.space(snapshots[0].space)
        runs = [snapshot.run for snapshot in snapshots]
        try:
            opened = open_space(f"{self._folder.uri}/{name}")
        except (UsageError, UnicodeDecodeError) as error:
            self._damage("space", f"{name}/space.yaml", runs, _line(error))
            return
        self._files += 1
        members = opened.space.members()
        expected_by = {m: made.vector_doc.get("projector") for m, made in snapshots[0].fingerprints.items()}
        projected = {m: member.projector is not None for m, member in members.items()}
        if projected != {m: expected is not None for m, expected in expected_by.items()}:
            self._damage("space", f"{name}/space.yaml", runs, "names other modalities or projectors than the snapshot")
            return
        for modality, member in members.items():
            if member.projector is None:
                continue
            file = f"{name}/{member.projector.file}"
            expected = expected_by[modality]
            with self._named("space", file, runs):
                found = digest(self._folder.read(file))
                self._files += 1
                if found != expected:
                    self._damage("space", file, runs, _other_bytes(found, str(expected)))


def _merged(damaged: Iterable[Damage]) -> list[Damage]:
    """One entry for each file and problem: fragments of several versions may share a file."""
    runs: dict[tuple[Kind, str, str], set[str]] = {}
    for damage in damaged:
        runs.setdefault((damage.kind, damage.file, damage.what), set()).update(damage.runs)
    return [Damage(kind=kind, file=file, runs=sorted(of), what=what) for (kind, file, what), of in runs.items()]


def _exact(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with its vectors as bytes, so that not even 0.0 and -0.0 are equal."""
    column = batch.column("vector")
    size = column.type.list_size
    values = column.flatten()
    width = size * values.type.bit_width // 8
    start = values.offset * values.type.bit_width // 8
    data = values.buffers()[1].slice(start, len(column) * width)
    exact = pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(column), [None, data])
    return batch.set_column(batch.schema.get_field_index("vector"), "vector", exact)


def _version_name(version: int) -> str:
    return f"{layout.TABLE}.lance, version {version}"


def _other_bytes(found: str, expected: str) -> str:
    return f"other bytes: sha256 {found[:16]}, expected {expected[:16]}"


def _line(error: Exception) -> str:
    """The message of an error, without the place in Lance's own source that it ends with."""
    return " ".join(re.sub(r",?\s*/\S+\.rs:\d+:\d+", "", str(error)).split())[:200] or type(error).__name__
