"""One run at a time: who holds the collection, and what he committed.

    log/<number>.json   records, put if absent at head + 1: whoever is refused has lost
    lock.json           the holder's heartbeat, written over every HEARTBEAT_S; a hint, never a proof

The holder is who wrote the last `lease` record, until he has released. Whoever takes over appends the
next one, and with it fences the last holder: his next number is taken, so a process that was frozen
and wakes up can commit nothing. Put-if-absent is all that is asked of the store. Clocks of two hosts
are never compared: whoever waits sees by his own clock whether anything changes.
"""

from __future__ import annotations

import getpass
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from batchproj.collection import layout
from batchproj.errors import CollectionError, LeaseHeld, TryLater
from batchproj.objectstore import Folder

HEARTBEAT_S = 5.0
TAKEOVER_S = 45.0
POLL_S = 1.0
RELEASE_S = 5.0
"""How long the end of a run waits for its last beat; without it the next run waits TAKEOVER_S."""

Kind = Literal["lease", "commit", "rollback"]
Say = Callable[[str], None]

_RECORD_NAME = re.compile(r"(\d{8})\.json")


class Holder(BaseModel):
    """A process, known well enough to see from the same machine whether it still runs.

    `boot_id`, `pid_namespace` and `pid_started` are None where there is no /proc.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    user: str
    host: str
    boot_id: str | None
    pid: int
    pid_namespace: str | None
    pid_started: int | None
    command: str


class Record(BaseModel):
    """`log/<number>.json`; `run` and `version` are the commit that stands after it.

    `token` is of the lease under which it was written. `at` is for people.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    number: int
    kind: Kind
    token: str
    holder: Holder
    at: datetime
    run: str | None
    version: int | None


class Beat(BaseModel):
    """`lock.json`; `number` is of the lease record. `working_on` is the run under way."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    number: int
    token: str
    holder: Holder
    beat: int
    working_on: str | None
    released: bool


# --- the log -----------------------------------------------------------------------------------


def records(folder: Folder, last: int) -> list[Record]:
    """The `last` newest records, oldest first."""
    numbers = [int(match[1]) for name in folder.names("log") if (match := _RECORD_NAME.fullmatch(name))]
    return [_read(folder, number) for number in sorted(numbers)[-last:]]


def head(folder: Folder) -> Record | None:
    """The newest record, which tells what is committed; None before the first run."""
    newest = records(folder, 1)
    return newest[0] if newest else None


def _read(folder: Folder, number: int) -> Record:
    """Raises FileNotFoundError if there is none of that number."""
    data = folder.read(layout.log(number))
    try:
        return Record.model_validate_json(data)
    except ValidationError as error:
        raise CollectionError(
            f"{folder.uri}/{layout.log(number)} is no record of this version ({error.errors()[0]['msg']}); "
            "use the batchproj that wrote it, or a newer one"
        ) from error


def _put(folder: Folder, record: Record) -> Record:
    """The record that stands under this number afterwards: this one, or that of somebody quicker."""
    if folder.create(layout.log(record.number), record.model_dump_json().encode()):
        return record
    return _read(folder, record.number)


# --- processes ---------------------------------------------------------------------------------


def this_process(command: str) -> Holder:
    return Holder(
        user=_user(),
        host=socket.gethostname(),
        boot_id=_boot_id(),
        pid=os.getpid(),
        pid_namespace=_pid_namespace(),
        pid_started=_pid_started(os.getpid()),
        command=command,
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # containers run under ids that no passwd file knows
        return str(os.getuid())


def _boot_id() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def _pid_namespace() -> str | None:
    try:
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - a link to nothing that has a path
    except OSError:
        return None


def _pid_started(pid: int) -> int | None:
    """Clock ticks from boot to the start of a process; None if it cannot be seen, 0 if it is a zombie."""
    try:
        # the name before the last bracket may hold blanks and brackets itself
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    state, started = fields[0], int(fields[19])
    return 0 if state in "ZX" else started


def _is_gone(holder: Holder) -> bool:
    """Whether the process has ended for certain; False for one that cannot be seen from here."""
    here = (socket.gethostname(), _boot_id(), _pid_namespace())
    there = (holder.host, holder.boot_id, holder.pid_namespace)
    if None in here or here != there or holder.pid_started is None:
        return False
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # another user's process
    started = _pid_started(holder.pid)
    return started is not None and started != holder.pid_started  # /proc may hide one that lives


# --- is it held, and does the holder live ------------------------------------------------------


@dataclass(frozen=True)
class _Look:
    """What is seen of the lease at one moment."""

    head: Record | None
    lock: bytes | None

    def beat(self) -> Beat | None:
        """The heartbeat of the head's lease; None if there is none, or only one of an older lease."""
        try:
            beat = Beat.model_validate_json(self.lock or b"")
        except ValidationError:
            return None
        return beat if self.head and beat.token == self.head.token else None

    def is_free(self) -> bool:
        """Nobody holds the collection, or for certain a dead process does."""
        beat = self.beat()
        return self.head is None or (beat is not None and beat.released) or _is_gone(self.head.holder)

    def locked(self) -> str:
        assert self.head is not None
        beat = self.beat()
        run = f", run {beat.working_on}" if beat and beat.working_on else ""
        return f"locked by {_name(self.head.holder)}, `{self.head.holder.command}`{run}"


def _name(holder: Holder) -> str:
    return f"{holder.user}@{holder.host}, process {holder.pid}"


def _look(folder: Folder) -> _Look:
    newest = head(folder)
    try:
        return _Look(newest, folder.read(layout.LOCK))
    except FileNotFoundError:
        return _Look(newest, None)


def _alive(look: _Look) -> LeaseHeld:
    return LeaseHeld(f"{look.locked()}; wait for it to end, or stop it, and run the same command again")


def _watch(folder: Folder, quiet_s: float, say: Say | None) -> Record | None:
    """The head, when nobody holds it or nothing has changed for `quiet_s`.

    Raises LeaseHeld, naming the holder, as soon as he shows a sign of life.
    """
    first = _look(folder)
    if first.is_free():
        return first.head
    if say:
        say(f"the collection is {first.locked()}; looking whether it is alive, up to {quiet_s:.0f} s")
    quiet = 0.0
    looked = time.monotonic()
    while quiet < quiet_s:
        time.sleep(POLL_S)
        look = _look(folder)
        if look.is_free():
            return look.head
        if look != first:
            raise _alive(look)
        # while the store was away or we were frozen he could not be heard: such a gap counts as one beat
        quiet += min(time.monotonic() - looked, HEARTBEAT_S)
        looked = time.monotonic()
    return first.head


def is_free(folder: Folder) -> bool:
    """Whether nobody works at the collection, as far as one look tells."""
    return _look(folder).is_free()


def refuse_if_held(folder: Folder, say: Say | None = None) -> None:
    """Raises LeaseHeld if a live holder is seen within two beats; `acquire` has the last word. Writes nothing."""
    _watch(folder, 2 * HEARTBEAT_S, say)


# --- the lease ---------------------------------------------------------------------------------


def acquire(folder: Folder, command: str, say: Say | None = None) -> Lease:
    """Become the holder, at once if there is none, or after TAKEOVER_S without a sign of life of the last one.

    `say` is told once if that has to be waited for. Raises LeaseHeld naming the holder if he lives.
    """
    newest = _watch(folder, TAKEOVER_S, say)
    record = Record(
        number=newest.number + 1 if newest else 1,
        kind="lease",
        token=uuid.uuid4().hex,
        holder=this_process(command),
        at=datetime.now(UTC),
        run=newest.run if newest else None,
        version=newest.version if newest else None,
    )
    standing = _put(folder, record)
    if standing.token != record.token:
        raise _alive(_Look(standing, None))
    return Lease(folder, record)


class Lease:
    """The right to commit, kept by a heartbeat in a thread; release it, or use it as a context manager.

    `run` and `version` are what was committed when it was acquired. Set `working_on` to the name of
    the run under way, for the message to whoever is refused.
    """

    def __init__(self, folder: Folder, record: Record) -> None:
        self.holder = record.holder
        self.run = record.run
        self.version = record.version
        self.working_on: str | None = None
        self._folder = folder
        self._lease = record
        self._last = record
        self._successor: Record | None = None
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._beat_to_the_end, name="batchproj-lease", daemon=True)
        self._thread.start()

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def append(self, kind: Kind, run: str, version: int | None) -> None:
        """Append a record, which makes `run` at `version` of the table the commit that stands.

        Raises TryLater if the collection was taken over: then nothing is appended. After TryLater since
        the store is away the record may be there; calling again with the same makes no second one.
        """
        self.check()
        while True:
            record = self._lease.model_copy(
                update={
                    "number": self._last.number + 1,
                    "kind": kind,
                    "at": datetime.now(UTC),
                    "run": run,
                    "version": version,
                }
            )
            standing = _put(self._folder, record)
            if standing.token != record.token:
                self._successor = standing
                self.check()
            self._last = standing
            if (standing.kind, standing.run, standing.version) == (kind, run, version):
                return
            # an earlier record of ours whose answer was lost; this one goes behind it

    def check(self) -> None:
        """Raises TryLater if it is known that the collection was taken over; asks the heartbeat, not the store."""
        if self._successor is not None:
            raise TryLater(
                f"this run was taken over by {_name(self._successor.holder)}; nothing of it was made visible; run again"
            )

    def confirm(self) -> None:
        """Raises TryLater if the log says that the collection was taken over; asks the store."""
        self._successor = self._successor or self._find_successor()
        self.check()

    def superseded(self) -> Record | None:
        """The head, if it is no longer ours: whatever we moved after our last record must follow it."""
        newest = head(self._folder)
        return newest if newest and newest.token != self._lease.token else None

    def release(self) -> None:
        """Let the next run begin without waiting. Never raises: unreleased, it is taken over instead."""
        self._ending.set()
        self._thread.join(RELEASE_S)

    def _beat_to_the_end(self) -> None:
        """The one writer of our beats, the released one last, so that none can come after it."""
        number = 0
        ending = False
        while self._successor is None and not ending:
            ending = self._ending.is_set()
            number += 1
            with suppress(Exception):  # storage is away: go on trying, the log is what protects
                self._beat(number, released=ending)
            if not ending:
                self._ending.wait(HEARTBEAT_S)

    def _beat(self, number: int, released: bool) -> None:
        self._successor = self._successor or self._find_successor()
        if self._successor is not None:
            return
        beat = Beat(
            number=self._lease.number,
            token=self._lease.token,
            holder=self._lease.holder,
            beat=number,
            working_on=self.working_on,
            released=released,
        )
        self._folder.write(layout.LOCK, beat.model_dump_json().encode())

    def _find_successor(self) -> Record | None:
        """The first record behind ours that is not ours."""
        number = self._last.number + 1
        while True:
            try:
                record = _read(self._folder, number)
            except FileNotFoundError:
                return None
            if record.token != self._lease.token:
                return record
            number += 1
