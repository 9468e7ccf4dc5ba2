"""Removing what no kept run refers to: runs, files, versions of the table.

    tags       of the runs that go: from here on nobody can roll back to them
    ledger     their entries become `collected`; they stay, runs are numbered from them
    files      snapshots first, then what only those referred to
    table      versions without a tag

Whatever is lost half-way is only what nothing refers to any more. Of a run that was begun and not
finished the units stay, and the parts and features they made: the next attempt goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath

from pydantic import BaseModel, ConfigDict

from batchproj.collection import layout, ledger
from batchproj.collection.lease import Lease, head
from batchproj.collection.snapshot import Snapshot, read_snapshot
from batchproj.errors import BatchprojError, CollectionError, DamagedFile, TryLater, UsageError
from batchproj.failpoint import failpoint
from batchproj.index import VectorTable, live_snapshot
from batchproj.objectstore import Folder
from batchproj.switch import writing
from batchproj.tags import Tags

Say = Callable[[str], None]

KEEP = 3

FOLDERS = (
    *("snapshots", "quarantine", "parquet", "features", "units", "spaces", "runs"),
    *(layout.BALANCE, layout.EVALUATIONS),
)
"""Folders we remove from, in this order; log, lease and forgotten items are nobody's to collect."""

_PAGE = 1_000


class Collected(BaseModel):
    """What was removed, or would be: files of the collection and of its table."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    collection: str
    applied: bool
    kept: list[str]
    runs: list[str]
    files: int
    bytes: int
    names: list[str]


@dataclass(frozen=True)
class _Kept:
    """What stays: runs, and whatever their snapshots and the units of an unfinished run refer to."""

    versions: dict[str, int]
    manifests: set[str]
    parts: set[str]
    features: set[tuple[str, str]]
    spaces: set[str]
    unfinished: set[str]
    begun: set[str]

    def holds(self, name: str) -> bool:
        """Whether a file below one of `FOLDERS` stays."""
        path = PurePosixPath(name)
        if path.name.startswith("."):  # of a write that was killed
            return False
        match path.parts[0]:
            case "snapshots" if path.suffix == ".parquet":
                return path.name.partition(".")[0] in self.manifests
            case "snapshots" | "quarantine" | layout.EVALUATIONS:
                return path.stem in self.versions
            case "parquet":
                return path.stem in self.parts | self.begun
            case "features":
                return (path.parts[1], path.stem) in self.features or path.stem in self.begun
            case "units":
                return path.parts[1] in self.unfinished
            case "spaces":
                return path.parts[1] in self.spaces
            case layout.BALANCE:
                return path.stem in self.spaces
        return True


def gc(uri: str, say: Say, keep: int = KEEP, apply: bool = False) -> Collected:
    """Remove all but the live run and the newest others, `keep` runs in all; without `apply` only tell what.

    Raises CollectionError if there is no collection, TryLater if another run holds it.
    """
    if keep < 1:
        raise UsageError(f"keep {keep} runs: the live one always stays; expected 1 or more")
    folder = Folder(uri)
    if live_snapshot(folder) is None:
        raise CollectionError(f"no collection at {uri}; expected one made by: batchproj embed SOURCE {uri}")
    if not apply:
        return _Collector(folder, keep).told(applied=False)
    with writing(folder, f"gc {folder.uri}", say) as lease:
        return collect(folder, lease, keep, say)


def collect(folder: Folder, lease: Lease, keep: int, say: Say) -> Collected:
    """The same for whoever holds the lease already."""
    collector = _Collector(folder, keep)
    collector.remove(lease, say)
    return collector.told(applied=True)


class _Collector:
    """Decides once what stays, and removes the rest."""

    def __init__(self, folder: Folder, keep: int) -> None:
        self._folder = folder
        self._table = VectorTable(folder)
        self._tags = Tags(folder)
        live = live_snapshot(folder)
        assert live is not None, "asked before"
        self._kept = self._keep(live, keep)
        self._garbage: dict[str, list[str]] = {top: [] for top in FOLDERS}
        self._bytes = 0
        for top in FOLDERS:
            for name, size in folder.files(top):
                if not self._kept.holds(name):
                    self._garbage[top].append(name)
                    self._bytes += size
        self._table_files = self._unneeded_of_table()
        written = {name.removesuffix(".json") for name in folder.names("snapshots") if name.endswith(".json")}
        self._dropped = sorted((written | set(self._tags.runs())) - set(self._kept.versions) - self._kept.unfinished)

    def told(self, applied: bool) -> Collected:
        names = [name for top in FOLDERS for name in self._garbage[top]] + self._table_files
        return Collected(
            collection=self._folder.uri,
            applied=applied,
            kept=sorted(self._kept.versions),
            runs=self._dropped,
            files=len(names),
            bytes=self._bytes,
            names=names,
        )

    def remove(self, lease: Lease, say: Say) -> None:
        self._tags.drop(set(self._tags.runs()) - set(self._kept.versions))
        failpoint("gc.tags")
        for run in self._dropped:
            entry = ledger.read_entry(self._folder, run)
            if entry is not None:
                ledger.write_entry(self._folder, entry.model_copy(update={"state": "collected"}))
        failpoint("gc.ledger")
        for top in FOLDERS:
            for page in _pages(self._garbage[top]):
                _check_held(lease)
                self._folder.remove(page)
                failpoint(f"gc.{top}")
            say(f"removed from {top}: {len(self._garbage[top]):,} files")
        _check_held(lease)
        self._table.clean_up()
        failpoint("gc.table")

    def _keep(self, live: Snapshot, keep: int) -> _Kept:
        committed = head(self._folder)
        unfinished = set()
        tagged = self._tags.runs()
        for run in {*tagged, *self._folder.names("units")} - {live.run, committed.run if committed else None}:
            entry = ledger.read_entry(self._folder, run)
            if (
                entry is None or entry.state in ledger.UNFINISHED
            ):  # None: begun, found needless, its number is the next run's
                unfinished.add(run)
        others = sorted((run for run in tagged if run not in unfinished | {live.run}), reverse=True)
        kept = [live, *(self._read(run) for run in others[: keep - 1])]
        return _Kept(
            versions={snapshot.run: tagged[snapshot.run] for snapshot in kept},
            manifests={file.name for snapshot in kept for file in snapshot.manifest},
            parts={part.name for snapshot in kept for part in snapshot.parts},
            features={(file.fingerprint, file.name) for snapshot in kept for file in snapshot.features},
            spaces={snapshot.space for snapshot in kept},
            unfinished=unfinished,
            begun={unit for run in unfinished for unit in self._folder.names(layout.units(run))},
        )

    def _read(self, run: str) -> Snapshot:
        try:
            return read_snapshot(self._folder, run)
        except (FileNotFoundError, DamagedFile) as error:
            raise BatchprojError(
                f"{layout.snapshot(run)} is damaged, so what it refers to is not known; nothing was removed; "
                "keep fewer runs, so that it goes too"
            ) from error

    def _unneeded_of_table(self) -> list[str]:
        """Files of the table that no kept version has; the tags' are few and not counted."""
        needed = self._table.files(self._kept.versions.values())
        unneeded = []
        for name, size in self._folder.files(f"{layout.TABLE}.lance"):
            if (
                name not in needed
                and not name.startswith(f"{layout.TABLE}.lance/_refs/")
                and not name.endswith(".json")
            ):
                unneeded.append(name)
                self._bytes += size
        return unneeded


def _pages(names: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(names)
    while page := list(islice(rest, _PAGE)):
        yield page


def _check_held(lease: Lease) -> None:
    """Who took over may write files under the very names that we were about to remove."""
    if lease.superseded() is not None:
        raise TryLater("the collection was taken over by another run; what is left to remove goes with the next gc")
