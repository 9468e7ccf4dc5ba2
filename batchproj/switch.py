"""Who may write to a collection, and the one step by which a run becomes what readers see.

    lease        held by one process; its log of records is the truth about what is committed
    commit       a record in the log: refused to whoever has lost the lease meanwhile (the fence)
    run tag      the run's version of the Lance table is kept
    live tag     follows the record; after a crash in between, the next writer sets both tags

Rollback is a record and the live tag.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

from batchproj.collection import ledger
from batchproj.collection.layout import STORE
from batchproj.collection.lease import Kind, Lease, acquire, head
from batchproj.collection.ledger import Entry
from batchproj.errors import BatchprojError, CollectionError, UsageError
from batchproj.failpoint import failpoint
from batchproj.objectstore import Folder
from batchproj.tags import Tags, live_run

Say = Callable[[str], None]


@contextmanager
def writing(folder: Folder, command: str, say: Say, single_writer: bool = False) -> Iterator[Lease]:
    """Hold the collection's lease; what a dead writer had committed is shown first.

    Raises TryLater if another writer lives, UsageError if the store cannot keep two apart.
    """
    _check_store(folder, single_writer)
    with acquire(folder, command, say) as lease:
        settle(folder, lease)
        yield lease


def _check_store(folder: Folder, single_writer: bool) -> None:
    """Two runs are kept apart by put-if-absent alone: look once whether the store means it, and keep the answer."""
    if folder.exists(STORE):
        return
    keeps_apart = folder.check_create()
    if not keeps_apart and not single_writer:
        raise UsageError(
            f"the store of {folder.uri} ignores put-if-absent (If-None-Match), so two runs could overwrite each other; "
            "use another store, or make sure that only one run writes at a time and say so with embed --single-writer"
        )
    folder.write(STORE, json.dumps({"put_if_absent": keeps_apart}).encode())


def settle(folder: Folder, lease: Lease) -> None:
    """Finish what a writer that died had committed: point readers to it, close its ledger entry."""
    if lease.run is None or lease.version is None:
        return
    if live_run(folder) != lease.run:
        tags = Tags(folder)
        tags.keep(lease.run, lease.version)
        tags.point(lease.version)
    entry = None
    with suppress(BatchprojError):  # damaged, which verify will say: it is only for people to read
        entry = ledger.read_entry(folder, lease.run)
    if entry is not None and entry.state in ledger.UNFINISHED:
        ledger.write_entry(folder, entry.model_copy(update={"state": "done", "finished": ledger.now()}))


def unsettled(folder: Folder, live: str | None) -> bool:
    """Whether the log says that another run is committed than `live`, the one readers see."""
    newest = head(folder)
    return newest is not None and newest.run not in (None, live)


def next_run(folder: Folder, lease: Lease) -> str:
    """The number of a new run, or of the one that was begun last and never finished."""
    begun = ledger.numbers(folder)
    if not begun:
        return f"{1:06d}"
    last = ledger.read_entry(folder, begun[-1])
    finished = last is not None and (last.state not in ledger.UNFINISHED or last.run == lease.run)
    return f"{int(begun[-1]) + finished:06d}"


def finish(folder: Folder, lease: Lease, entry: Entry, version: int) -> None:
    """Make a run whose files and version of the table are complete the live one."""
    _switch(folder, lease, "commit", entry.run, version)
    done = {"state": "done", "finished": ledger.now(), "commit": version}
    ledger.write_entry(folder, entry.model_copy(update=done))


def _switch(folder: Folder, lease: Lease, kind: Kind, run: str, version: int) -> None:
    lease.append(kind, run, version)
    failpoint("commit.recorded")
    tags = Tags(folder)
    tags.keep(run, version)
    failpoint("commit.tagged")
    tags.point(version)
    failpoint("commit.live")
    # frozen right here for so long that another took over? then what he committed stands
    if (newer := lease.superseded()) is not None and newer.version not in (None, version):
        tags.point(newer.version)


def rollback(uri: str, run: str | None, say: Say) -> tuple[str, str]:
    """Make an earlier run the live one again, by default the one before; names of the run left and the run shown.

    Raises CollectionError if there is no such run any more.
    """
    folder = Folder(uri)
    if live_run(folder) is None:
        raise CollectionError(f"no collection at {uri}; expected one made by: batchproj embed SOURCE {uri}")
    with writing(folder, "rollback", say) as lease:
        live = live_run(folder)
        assert live is not None
        kept = Tags(folder).runs()
        target = run or _before(folder, live, kept)
        if target is None or target not in kept:
            asked = f"run {target}" if target else "run before the first"
            others = ", ".join(sorted(set(kept) - {live})) or "none"
            raise CollectionError(f"{uri} keeps no {asked}; kept are, beside the live {live}: {others}")
        if target != live:
            _switch(folder, lease, "rollback", target, kept[target])
        return live, target


def _before(folder: Folder, run: str, kept: Iterable[str]) -> str | None:
    """The run that another one was started from; the newest kept one before it if its ledger entry is damaged."""
    with suppress(BatchprojError):
        if (entry := ledger.read_entry(folder, run)) is not None:
            return entry.parent
    return max((each for each in kept if each < run), default=None)
