"""Making damaged things of the live run again, from what is left of it.

    ledger entry, tags     written again from the snapshot and the log
    part                   projected again from its cached features; no object is read
    features               read and encoded again, only these items
    table, quarantine      a new run with the table written from the parts; no object is read
    manifest, snapshot     cannot be made again: roll back, or embed into a new collection

Runs before the live one are left as they are: a new run would not make them whole.
"""

from __future__ import annotations

from dataclasses import replace

from pydantic import BaseModel, ConfigDict

from batchproj.collection import layout, ledger
from batchproj.collection.commit import Changes
from batchproj.collection.lease import Lease, acquire
from batchproj.collection.ledger import Entry, Report
from batchproj.collection.snapshot import Snapshot, read_snapshot
from batchproj.embed import Options, Watch, embed
from batchproj.errors import BatchprojError, SpaceError, TryLater
from batchproj.index import VectorTable
from batchproj.lance_store import lance_faults
from batchproj.objectstore import Folder
from batchproj.recipe import Index
from batchproj.space import ResolvedSpace, open_space, resolve
from batchproj.switch import finish
from batchproj.tags import Tags
from batchproj.verify import Damage, Verification, verify

_COMMAND = "verify --repair"


class Repair(BaseModel):
    """What was damaged, the run that made it again, None if none was needed, and what is damaged now."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    found: Verification
    report: Report | None
    now: Verification


def repair(uri: str, options: Options, watch: Watch, space: ResolvedSpace | None = None) -> Repair:
    """Make what is damaged of the live run again, and look again.

    `space` replaces the collection's own copy, should that be what is damaged. The source is not
    listed. Raises BatchprojError if manifest or snapshot of the live run are lost, UsageError if an
    object that has to be read again is not what it was, and whatever `embed` raises.
    """
    found = verify(uri, watch.step)
    ours = found.of(found.live)
    if not ours:
        return Repair(found=found, report=None, now=found)
    folder = Folder(uri)
    _refuse_lost(found)
    live = read_snapshot(folder, found.live)
    _mend_space(folder, live, space, damaged=any(damage.kind == "space" for damage in ours))
    with acquire(folder, _COMMAND, watch.step) as lease:
        if lease.run is None or lease.version is None or lease.run != live.run:
            raise TryLater(f"run {lease.run} became live while the collection was read; run the same command again")
        _mend_entries(folder, lease, found)
        made_anew = _make_readable(folder, lease, lease.version, found, live, options.recipe.index, watch)
    redo = tuple(damage.file for damage in ours if damage.kind in ("part", "features"))
    rebuild = not made_anew and any(_is_row_damage(damage) for damage in ours)
    report = None
    if redo or rebuild:
        # other limits would try other items again
        recipe = options.recipe.model_copy(update={"limits": live.limits})
        options = replace(options, recipe=recipe, redo=redo, rebuild=rebuild)
        report = embed(live.source, uri, _same_space(folder, live, space), options, watch)
    return Repair(found=found, report=report, now=verify(uri, watch.step))


def _is_row_damage(damage: Damage) -> bool:
    """Whether it takes a new table, or a new run, and not just a tag set again."""
    return damage.kind == "quarantine" or (damage.kind == "table" and not damage.file.startswith(layout.TAGS))


def _refuse_lost(found: Verification) -> None:
    """Nothing can be made again from a run whose own lists are damaged."""
    lost = [damage for damage in found.damaged if damage.kind == "log"]
    lost += [damage for damage in found.of(found.live) if damage.kind in ("snapshot", "manifest")]
    if not lost:
        return
    sound = found.sound() if lost[0].kind != "log" else []
    back = f"go back with: batchproj rollback {found.collection} {sound[0]}, or " if sound else ""
    raise BatchprojError(f"{lost[0]}; it cannot be made again; {back}embed into a new collection")


def _same_space(folder: Folder, live: Snapshot, given: ResolvedSpace | None) -> ResolvedSpace:
    """The space the live run was made with: with any other a repair would make everything anew."""
    space = given or resolve(open_space(f"{folder.uri}/{layout.space(live.space)}"))
    if space.fingerprint != live.space:
        raise SpaceError(
            f"the space {space.space.name} makes other vectors than run {live.run} has; to change to it run: "
            f"batchproj embed {live.source} {folder.uri} --space ..."
        )
    return space


def _mend_space(folder: Folder, live: Snapshot, space: ResolvedSpace | None, damaged: bool) -> None:
    if not damaged:
        return
    if space is None or space.fingerprint != live.space:
        raise SpaceError(
            f"the collection's own copy of its space, {layout.space(live.space)}, is damaged; "
            "name the space it was made with by --space"
        )
    space.save(Folder(f"{folder.uri}/{layout.space(live.space)}"))


def _mend_entries(folder: Folder, lease: Lease, found: Verification) -> None:
    """Damaged entries of the ledger, as far as the snapshots tell; who and when is lost."""
    for damage in found.damaged:
        run = damage.runs[0] if damage.kind == "ledger" else ""
        if run in found.runs and not any(other.kind == "snapshot" for other in found.of(run)):
            ledger.write_entry(folder, _entry(read_snapshot(folder, run), lease))


def _entry(snapshot: Snapshot, lease: Lease) -> Entry:
    return Entry(
        run=snapshot.run,
        items=snapshot.listed,
        rows=snapshot.rows,
        state="done",
        parent=snapshot.parent,
        source=snapshot.source,
        space=snapshot.space,
        command=lease.holder.command,
        user=lease.holder.user,
        host=lease.holder.host,
        started=ledger.now(),
        finished=ledger.now(),
        commit=lease.version if snapshot.run == lease.run else None,
    )


def _make_readable(
    folder: Folder, lease: Lease, version: int, found: Verification, live: Snapshot, settings: Index, watch: Watch
) -> bool:
    """Let readers open the live version again; whether the table had to be made anew for that."""
    table = VectorTable(folder)
    try:
        with lance_faults(folder.uri):  # storage that is away is no damage
            _set_tags(folder, table, found, live.run, version)
        return False
    except (RuntimeError, ValueError, OSError) as error:
        _refuse_damaged_parts(found, error)
    watch.step("the table cannot be opened: making it anew from the parts")
    try:
        with lance_faults(folder.uri):
            Tags(folder).runs()
    except (RuntimeError, ValueError, OSError):
        watch.step("earlier runs go with it: their versions cannot be read either")
        folder.remove([name for name, _ in folder.files(f"{layout.TABLE}.lance")])
    changes = Changes(kept=live.parts, added=[], removed_items=0, rebuild=True)
    made = table.apply(None, live, changes, [], settings)
    finish(folder, lease, ledger.read_entry(folder, live.run) or _entry(live, lease), made)
    if made != version:
        table.drop_manifest(version)
    return True


def _set_tags(folder: Folder, table: VectorTable, found: Verification, live: str, version: int) -> None:
    """Set the damaged tags again, from log and ledger; raises what Lance raises if a version is damaged."""
    folder.remove([damage.file for damage in found.damaged if damage.file.startswith(layout.TAGS)])
    table.fragments(version)
    tags = Tags(folder)
    tags.keep(live, version)
    tags.point(version)
    for run in found.runs:
        entry = ledger.read_entry(folder, run)
        if run not in tags.runs() and entry is not None and entry.commit in table.versions():
            tags.keep(run, entry.commit)


def _refuse_damaged_parts(found: Verification, error: Exception) -> None:
    parts = [damage for damage in found.of(found.live) if damage.kind == "part"]
    if parts:
        raise BatchprojError(
            f"the table cannot be opened and {parts[0].file} is damaged too, so neither can be made from the other; "
            "embed into a new collection"
        ) from error
