"""Which versions of the Lance table are kept, and which one readers see: its tags `run-<id>` and `live`.

By pylance alone: LanceDB takes most of a second to import, and a rollback is one tag moved.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from batchproj.collection import layout
from batchproj.collection.lease import head
from batchproj.errors import CollectionError
from batchproj.lance_store import lance_faults, storage_options
from batchproj.objectstore import Folder
from batchproj.retry import retrying


class Tags:
    """The tags of a collection's table; every method raises ValueError if there is no table."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    def all(self) -> tuple[int | None, dict[str, int]]:
        """The version readers see, None before the first run, and kept runs with the version of each: at one moment."""
        with lance_faults(self._folder.uri):
            tags = {tag: int(each["version"]) for tag, each in self._table().tags.list().items()}
        prefix = layout.run_tag("")
        runs = {tag.removeprefix(prefix): version for tag, version in tags.items() if tag.startswith(prefix)}
        return tags.get(layout.LIVE), runs

    def runs(self) -> dict[str, int]:
        """Kept runs and the version of each."""
        return self.all()[1]

    def live(self) -> int | None:
        """The version readers see; None before the first run."""
        return self.all()[0]

    def versions(self) -> set[int]:
        """The versions that any tag names."""
        live, runs = self.all()
        return {*runs.values(), *([live] if live is not None else [])}

    def keep(self, run: str, version: int) -> None:
        """Keep a version for good, under its run's name."""
        self._set(layout.run_tag(run), version)

    def point(self, version: int) -> None:
        """Make a version the one that readers see: the single visible step of a run."""
        self._set(layout.LIVE, version)

    def drop(self, runs: Iterable[str]) -> None:
        """Keep the versions of these runs no longer; their files stay until the table is cleaned up."""
        with lance_faults(self._folder.uri):
            tags = self._table().tags
            for tag in sorted({layout.run_tag(run) for run in runs} & set(tags.list())):
                tags.delete(tag)

    def _set(self, tag: str, version: int) -> None:
        with lance_faults(self._folder.uri):
            tags = self._table().tags
            if tag in tags.list():
                tags.update(tag, version)
                return
            try:
                tags.create(tag, version)
            except (OSError, RuntimeError, ValueError):  # made, but the answer was lost: Lance tried again
                if tags.list().get(tag, {}).get("version") != version:
                    raise

    def _table(self) -> Any:
        return lance_table(self._folder)


def lance_table(folder: Folder) -> Any:
    """The newest version of the collection's table, by Lance's own API; ValueError if there is none."""
    import lance

    uri = f"{folder.uri.removeprefix('file://')}/{layout.TABLE}.lance"
    return retrying(lambda: lance.dataset(uri, storage_options=storage_options()), folder.uri)


def live_run(folder: Folder) -> str | None:
    """The run readers see, even if its snapshot is damaged; None before the first run."""
    found = live_version(folder)
    return found[1] if found else None


def live_version(folder: Folder) -> tuple[int, str] | None:
    """The version readers see and the run that made it; None before the first run."""
    if not folder.exists(f"{layout.TABLE}.lance"):
        return None
    try:
        version, runs = Tags(folder).all()
    except ValueError as error:
        if "was not found" not in str(error):
            raise
        if (newest := head(folder)) is None or newest.run is None:
            return None  # a first write that was cut off has left the folder
        raise CollectionError(
            f"the table of {folder.uri} has no versions; run: batchproj verify {folder.uri} --repair"
        ) from error
    if version is None:
        return None
    makers = [run for run, made in runs.items() if made == version]
    if not makers:
        raise CollectionError(
            f"{folder.uri}: no run is tagged for the live version {version}; run: batchproj verify --repair"
        )
    return version, max(makers)
