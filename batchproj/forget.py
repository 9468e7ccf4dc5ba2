"""Erasing one item for good: from every part, feature file, manifest, quarantine, unit and table version.

    forgotten/<item>    from here on no run lists it again; holds ids of items and no URI
    a run of its own    the live one without the item: its files written again, its rows deleted
    gc, keeping that    earlier runs, units and versions of the table held the item
    proof               every remaining Parquet file and every version of the table is searched; the
                        ledger and the log are not, they name the source as it was given

Killed anywhere, the same command does the rest.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from batchproj.changes import compare_with_itself
from batchproj.collection import commit, layout, ledger, lookup, manifest
from batchproj.collection.lease import Lease
from batchproj.collection.ledger import Entry
from batchproj.collection.plan import COVERED, Plan
from batchproj.collection.snapshot import FeatureFile, Snapshot, read_snapshot, write_snapshot
from batchproj.collection.unit import UNREADABLE, read_rows, write_features
from batchproj.errors import BatchprojError, CollectionError, TryLater, UsageError
from batchproj.failpoint import failpoint
from batchproj.gc import FOLDERS, collect
from batchproj.index import VectorTable, live_snapshot
from batchproj.objectstore import Folder, canonical
from batchproj.recipe import Index
from batchproj.source.objects import item_id
from batchproj.source.place import FAULT, OBJECT, SOUND, is_sound_track, parse_place, row_address
from batchproj.switch import finish, next_run, writing
from batchproj.tags import Tags

Say = Callable[[str], None]

READ_THREADS = 8

_NUMBERED = re.compile(r"#row=\d+$")


class Forgotten(BaseModel):
    """What was erased: the item, how many rows of it were live, the files that held it, and the run that is left.

    `searched` files and versions of the table were read afterwards without finding it. `marker` is the
    file in the collection that keeps the item out; without it the next run embeds it again.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    collection: str
    item: str
    rows: int
    held_by: list[str]
    run: str
    searched: int
    marker: str


def forget(uri: str, item_uri: str, say: Say) -> Forgotten:
    """Erase an item, named by its URI, so that no file of the collection holds it and no run embeds it again.

    Earlier runs hold it, so they go too: there is no rollback behind this. Its objects in the source
    are not touched. Of a table's row without an id all rows go that have its content or name its object:
    its number will be another row's. Raises UsageError if the item is not there, BatchprojError if it is still found
    afterwards.
    """
    folder = Folder(uri)
    before = live_snapshot(folder)
    if before is None:
        raise CollectionError(f"no collection at {uri}; expected one made by: batchproj embed SOURCE {uri}")
    target = canonical(item_uri)
    sought = _seek(folder, before, target)
    marker = f"{layout.FORGOTTEN}/{sought.marker}" if sought else ""
    say("searching every file for the item")
    held_by = _traces(folder, sought.items, target, needed=_files(before))[0] if sought else []
    if sought is None or not (held_by or folder.exists(marker)):
        raise UsageError(f"{item_uri} is not in {uri}; expected a URI as search shows it")
    item = sought.item
    with writing(folder, f"forget {item}", say) as lease:
        live = live_snapshot(folder)
        if live is None or live.run != before.run:
            raise TryLater("another run became live while the item was searched; run the same command again")
        folder.write(marker, "\n".join(sought.items).encode())
        failpoint("forget.marked")
        left = _commit_without(folder, lease, live, sought, set(held_by), say) if held_by else live
        say("removing all that held it; earlier runs go with it")
        collect(folder, lease, 1, say)
        failpoint("forget.collected")
        say("searching every file again")
        found, searched = _traces(folder, sought.items, target)
        found += _leftovers(folder)
    if found:
        raise BatchprojError(f"{found[0]} may still hold the item; run the same command again")
    rows = live.rows - left.rows
    return Forgotten(
        collection=folder.uri, item=item, rows=rows, held_by=held_by, run=left.run, searched=searched, marker=marker
    )


@dataclass(frozen=True)
class _Sought:
    """An item by its id, the name of its marker, and all items that the marker covers: it and rows like it."""

    item: str
    marker: str
    items: list[str]


def _seek(folder: Folder, live: Snapshot, uri: str) -> _Sought | None:
    """What is to go; None if nothing tells by which marker.

    A row's number says nothing of its content. Of one that has left the live run the marker that was written
    for it has the number, unless it was never forgotten: then a run that is kept has the row.
    """
    item = item_id(uri)
    with tempfile.TemporaryDirectory(prefix="batchproj-forget-") as scratch, duckdb.connect() as db:
        here = manifest.rows(manifest.fetch(folder, live, Path(scratch)))
        if (row := lookup.find(db, here, uri)) is not None:
            return _Sought(row["item"], marker := _marked(row), _covered(db, here, marker))
        if not _NUMBERED.search(uri):
            return _Sought(item, item, [item])
        for marker in folder.names(layout.FORGOTTEN):
            if item in (items := folder.read(f"{layout.FORGOTTEN}/{marker}").decode().split()):
                return _Sought(item, marker, _without_others(db, here, items, marker))
        for run in sorted(Tags(folder).runs(), reverse=True):
            there = manifest.rows(manifest.fetch(folder, read_snapshot(folder, run), Path(scratch)))
            if (row := lookup.find(db, there, uri)) is not None:
                marker = _marked(row)
                items = [*_covered(db, there, marker), *_covered(db, here, marker)]
                return _Sought(row["item"], marker, _without_others(db, here, items, marker))
    return None


def _covered(db: duckdb.DuckDBPyConnection, rows: str, marker: str) -> list[str]:
    """The items that a marker keeps out, of a manifest's rows, given as SQL."""
    query = f"SELECT item FROM ({rows}) m WHERE {COVERED.format(markers='(SELECT $marker)')} ORDER BY item"
    return [item for (item,) in db.execute(query, {"marker": marker}).fetchall()]


def _without_others(db: duckdb.DuckDBPyConnection, rows: str, items: list[str], marker: str) -> list[str]:
    """These items but for those that are live and not covered: by now their numbers are other rows'."""
    query = f"SELECT item FROM ({rows}) WHERE item IN (SELECT unnest($items))"
    live = {item for (item,) in db.execute(query, {"items": items}).fetchall()}
    return sorted(set(items) - (live - set(_covered(db, rows, marker))))


def _marked(row: dict[str, Any]) -> str:
    """What keeps an item out: its id, but of a row that is known by its number, and so may move, its content."""
    place = parse_place(row["place"]) if row.get("place") else None
    address = row_address(row["uri"], row.get("place"))
    if is_sound_track(row.get("place")) and _NUMBERED.search(address.removesuffix(SOUND)):
        raise UsageError(
            f"{address} is of a row without an id, whose number may change; forget {address[: -len(SOUND)]}"
        )
    if place is None or place.kind in ("tar", FAULT) or not _NUMBERED.search(address):
        return str(row["item"])
    return item_id(row["uri"]) if place.kind == OBJECT else str(row["source_version"])


# --- the run without it --------------------------------------------------------------------------


def _commit_without(
    folder: Folder, lease: Lease, live: Snapshot, sought: _Sought, held_by: set[str], say: Say
) -> Snapshot:
    """Make a run live that is the live one but for what the marker covers; the source is not looked at."""
    with Plan(live.fingerprints, live.limits) as plan:
        counts = compare_with_itself(plan, folder, live, without=[sought.marker])
        features = _features_without(plan, folder, live, sought.items, held_by)
        entry = Entry(
            run=next_run(folder, lease),
            items=counts.listed,
            unchanged=counts.unchanged,
            deleted=counts.deleted,
            quarantined=counts.quarantined,
            state="running",
            parent=live.run,
            source=live.source,
            space=live.space,
            command=lease.holder.command,
            user=lease.holder.user,
            host=lease.holder.host,
            started=ledger.now(),
        )
        ledger.write_entry(folder, entry)
        lease.working_on = entry.run
        say(f"making run {entry.run} without the item")
        target = live.model_copy(
            update={"run": entry.run, "parent": live.run, "listed": counts.listed, "sealed": plan.sealed}
        )
        snapshot, version = _write(plan, folder, live, target, features)
        entry = entry.model_copy(update={"rows": snapshot.rows, "commit": version})
        ledger.write_entry(folder, entry)
        finish(folder, lease, entry, version)
    return snapshot


def _write(
    plan: Plan, folder: Folder, live: Snapshot, target: Snapshot, features: list[FeatureFile]
) -> tuple[Snapshot, int]:
    """Write what a run consists of, as `embed` does, and leave no deleted row in the table's files."""
    commit.check_complete(plan)
    changes = commit.next_parts(plan, folder, live, [])
    snapshot = target.model_copy(
        update={
            "parts": changes.kept,
            "rows": sum(part.rows for part in changes.kept),
            "features": commit.live_features(plan, live.model_copy(update={"features": features}), []),
            "manifest": manifest.write(plan, folder, target, live=None),  # earlier files hold the item
            "quarantine": manifest.write_quarantine(plan, folder, target),
        }
    )
    failpoint("forget.files")
    table = VectorTable(folder)
    table.apply(live, snapshot, changes, commit.removed_items(plan), Index())
    version = table.drop_deleted()
    commit.check_keys(plan, table.ids(version))
    failpoint("forget.table")
    write_snapshot(folder, snapshot)
    return snapshot, version


def _features_without(
    plan: Plan, folder: Folder, live: Snapshot, items: list[str], held_by: set[str]
) -> list[FeatureFile]:
    """The live files of features, those that hold the items written again under names of their own."""
    files = []
    for file in live.features:
        name = layout.features(file.fingerprint, file.name)
        if name not in held_by:
            files.append(file)
            continue
        rows = read_rows(folder, name, file.sha256)
        rows = rows.filter(pc.invert(pc.is_in(rows["item"], pa.array(items))))
        new = hashlib.sha256(json.dumps([file.name, *items]).encode()).hexdigest()[:32]
        files.append(write_features(folder, file.fingerprint, new, rows))
        plan.db.execute("UPDATE manifest SET features = ? WHERE features = ?", [new, file.name])
        plan.db.execute("UPDATE plan SET cached = ? WHERE cached = ?", [new, file.name])
    return files


# --- the proof -----------------------------------------------------------------------------------


def _files(live: Snapshot) -> set[str]:
    """The Parquet files that a run consists of; all others go."""
    features = {layout.features(file.fingerprint, file.name) for file in live.features}
    manifests = {layout.manifest(file.name) for file in live.manifest}
    return {*(layout.part(part.name) for part in live.parts), *features, *manifests, layout.quarantine(live.run)}


def _traces(folder: Folder, items: list[str], uri: str, needed: set[str] | None = None) -> tuple[list[str], int]:
    """The files and versions of the table that hold one of the items, and how many were searched.

    Raises BatchprojError for a file that cannot be read, of those that are `needed`, all without.
    """
    names = [name for name, _ in folder.files() if name.endswith(".parquet") and not name.startswith(layout.TABLE)]
    found = []
    with tempfile.TemporaryDirectory(prefix="batchproj-forget-") as scratch, ThreadPoolExecutor(READ_THREADS) as pool:
        held = pool.map(
            lambda name: _file_holds(folder, name, Path(scratch), [*items, uri], needed is None or name in needed),
            names,
        )
        found += [name for name, holds in zip(names, held, strict=True) if holds]
    in_table, versions = _table_traces(folder, items)
    return found + in_table, len(names) + versions


def _file_holds(folder: Folder, name: str, scratch: Path, sought: list[str], is_needed: bool) -> bool:
    with tempfile.NamedTemporaryFile(dir=scratch, suffix=".parquet") as local:
        try:
            folder.download(name, Path(local.name))
            with pq.ParquetFile(local.name) as opened:
                columns = [column for column in ("item", "uri") if column in opened.schema_arrow.names]
                return any(
                    pc.any(pc.is_in(batch[column], pa.array(sought))).as_py()
                    for batch in opened.iter_batches(columns=columns)
                    for column in columns
                )
        except FileNotFoundError:
            return False  # a run beside us has tidied up
        except UNREADABLE as error:
            if not is_needed:
                return False  # it goes with the run that it is of, and is looked for again then
            raise BatchprojError(f"{name} cannot be read, so not searched; run: batchproj verify --repair") from error


def _table_traces(folder: Folder, items: list[str]) -> tuple[list[str], int]:
    table = VectorTable(folder)
    versions = table.versions()
    fragments = {fragment.key: fragment for version in versions for fragment in table.fragments(version)}
    listed = ", ".join(f"'{item}'" for item in items)
    held = {fragment.file for fragment in fragments.values() if fragment.holds(f"item IN ({listed})")}
    return sorted(held), len(versions)


def _leftovers(folder: Folder) -> list[str]:
    """Files that may hold what nothing shows: of killed writes, of no version of the table, with deleted rows."""
    table = VectorTable(folder)
    known = table.files()
    hidden = [each.file for version in table.versions() for each in table.fragments(version) if each.has_deleted]
    prefix = f"{layout.TABLE}.lance/"
    return hidden + [
        name
        for name, _ in folder.files()
        if (name.startswith(prefix) and name not in known and not name.endswith(".json"))
        or (name.startswith(FOLDERS) and name.rpartition("/")[2].startswith("."))
    ]
