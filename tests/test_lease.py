"""One run at a time, with real processes: raced, killed, frozen."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchproj.collection import layout, lease
from batchproj.collection.lease import Beat, Holder, Lease, Record, acquire, head, records, refuse_if_held
from batchproj.errors import CollectionError, TryLater
from batchproj.objectstore import Folder

pytestmark = pytest.mark.timeout(120)

BEAT_S = 0.1
LONG_S = 100.0
"""An interval that no test outlives: whoever has to wait for it hangs."""

CHILD = """
import json, sys
from batchproj.collection import lease
from batchproj.errors import TryLater
from batchproj.objectstore import Folder

lease.HEARTBEAT_S, lease.POLL_S, lease.TAKEOVER_S = (float(text) for text in sys.argv[2:])
folder = Folder(sys.argv[1])
held = None
for line in sys.stdin:
    answer = ""
    try:
        match line.split():
            case ["acquire"]:
                held = lease.acquire(folder, "batchproj embed pictures")
            case ["commit", run]:
                held.append("commit", run, 1)
            case ["join"]:
                held._thread.join()
            case ["release"]:
                held.release()
            case ["modules"]:
                answer = " ".join(sys.modules)
    except TryLater as error:
        answer = str(error)
    print(json.dumps(answer), flush=True)
"""


class Process:
    """A process that does with a lease what it is told, and answers with the text of TryLater."""

    def __init__(self, folder: Folder, takeover_s: float = LONG_S) -> None:
        command = [sys.executable, "-c", CHILD, folder.uri, str(BEAT_S), "0.05", str(takeover_s)]
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self.child:
            self.child.kill()

    def tell(self, order: str) -> None:
        assert self.child.stdin
        self.child.stdin.write(order + "\n")
        self.child.stdin.flush()

    def answer(self) -> str:
        assert self.child.stdout
        return str(json.loads(self.child.stdout.readline()))

    def ask(self, order: str) -> str:
        self.tell(order)
        return self.answer()

    def stop(self, number: signal.Signals) -> None:
        """Send a signal and wait until it has done its work; a killed process stays a zombie."""
        os.kill(self.child.pid, number)
        os.waitid(os.P_PID, self.child.pid, os.WEXITED | os.WSTOPPED | os.WNOWAIT)


class LosesAnswers(Folder):
    """A store whose answer to a `create` is lost, so that the retry is refused."""

    def create(self, name: str, data: bytes) -> bool:
        super().create(name, data)
        return False


class Outage(Folder):
    """A store that can be switched off; calls wait for `patience_s`, then raise."""

    def __init__(self, url: str, patience_s: float = 0.0) -> None:
        super().__init__(url)
        self.up = threading.Event()
        self.up.set()
        self.failed = 0
        self.patience_s = patience_s

    def _answers(self) -> None:
        if not self.up.wait(self.patience_s):
            self.failed += 1
            raise TryLater("storage is away")

    def read(self, name: str) -> bytes:
        self._answers()
        return super().read(name)

    def write(self, name: str, data: bytes) -> None:
        self._answers()
        super().write(name, data)


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_S", BEAT_S)
    monkeypatch.setattr(lease, "POLL_S", 0.05)
    monkeypatch.setattr(lease, "TAKEOVER_S", LONG_S)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "c"))


@pytest.fixture
def waits() -> Iterator[list[str]]:
    """What `say` was told; told more than once is an error."""
    told: list[str] = []
    yield told
    assert len(told) <= 1


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def lock(folder: Folder) -> Beat | None:
    try:
        return Beat.model_validate_json(folder.read(layout.LOCK))
    except FileNotFoundError:
        return None


def beats(folder: Folder) -> int:
    beat = lock(folder)
    return beat.beat if beat else 0


def elsewhere(year: int = 2026) -> Record:
    """The first record, of a process on a machine that cannot be seen from here."""
    holder = Holder(
        user="ann",
        host="far",
        boot_id="another",
        pid=os.getpid(),
        pid_namespace="pid:[1]",
        pid_started=1,
        command="batchproj embed s3://b/photos c",
    )
    at = datetime(year, 1, 1, tzinfo=UTC)
    return Record(number=1, kind="lease", token="far", holder=holder, at=at, run=None, version=None)


def write_record(folder: Folder, record: Record) -> None:
    assert folder.create(layout.log(record.number), record.model_dump_json().encode())


def write_beat(folder: Folder, record: Record, released: bool = False) -> None:
    beat = Beat(
        number=record.number, token=record.token, holder=record.holder, beat=1, working_on=None, released=released
    )
    folder.write(layout.LOCK, beat.model_dump_json().encode())


def contents(folder: Folder) -> dict[str, bytes]:
    root = Path(folder.path("."))
    return {str(file): file.read_bytes() for file in root.rglob("*") if file.is_file()}


# --- one at a time -----------------------------------------------------------------------------


def test_of_eight_processes_at_once_one_wins(folder: Folder) -> None:
    with ExitStack() as stack:
        runners = [stack.enter_context(Process(folder)) for _ in range(8)]
        modules = set(runners[0].ask("modules").split())
        assert not modules & {"torch", "ray", "lancedb"}, "a lease must not cost their import"
        for runner in runners[1:]:
            runner.ask("modules")  # all have started
        for number in range(1, 21):
            for runner in runners:
                runner.tell("acquire")
            refused = {runner: text for runner in runners if (text := runner.answer())}
            (winner,) = set(runners) - set(refused)
            for text in refused.values():
                assert f"process {winner.child.pid}, `batchproj embed pictures`" in text
            newest = head(folder)
            assert newest is not None
            assert (newest.number, newest.holder.pid) == (number, winner.child.pid)
            assert winner.ask("release") == ""


def test_of_eight_threads_on_s3_one_wins(s3_bucket: str) -> None:
    folder = Folder(f"{s3_bucket}/c")

    def attempt(start: threading.Barrier) -> Lease | TryLater:
        start.wait(30)
        try:
            return acquire(folder, "batchproj embed pictures")
        except TryLater as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        for number in range(1, 6):
            start = threading.Barrier(8)
            results = list(pool.map(attempt, [start] * 8))
            (winner,) = [result for result in results if isinstance(result, Lease)]
            assert [record.number for record in records(folder, 100)] == list(range(1, number + 1))
            assert all(f"process {os.getpid()}, " in str(result) for result in results if result is not winner)
            winner.release()


def test_the_next_one_goes_on_from_what_is_committed(folder: Folder, waits: list[str]) -> None:
    assert head(folder) is None
    with acquire(folder, "first", waits.append) as first:
        assert (first.run, first.version) == (None, None)
        first.append("commit", "r1", 3)
        first.append("commit", "r2", 5)
    with acquire(folder, "second", waits.append) as second:
        assert (second.run, second.version) == ("r2", 5)
        second.append("rollback", "r1", 3)
        assert second.superseded() is None
    assert waits == []
    assert [(record.number, record.kind, record.run) for record in records(folder, 100)] == [
        (1, "lease", None),
        (2, "commit", "r1"),
        (3, "commit", "r2"),
        (4, "lease", "r2"),
        (5, "rollback", "r1"),
    ]
    assert records(folder, 2) == records(folder, 100)[-2:]


def test_an_error_inside_releases(folder: Folder, waits: list[str]) -> None:
    with pytest.raises(RuntimeError, match="inside"), acquire(folder, "first"):
        raise RuntimeError("inside")
    acquire(folder, "second", waits.append).release()
    assert waits == []


def test_the_refused_one_is_told_the_run_that_is_under_way(folder: Folder, waits: list[str]) -> None:
    with acquire(folder, "batchproj embed a b") as held:
        held.working_on = "r7"
        until(lambda: (beat := lock(folder)) is not None and beat.working_on == "r7")
        with pytest.raises(TryLater, match=r"^locked by .+@.+, process \d+, `batchproj embed a b`, run r7; wait"):
            acquire(folder, "second", waits.append)
    assert waits[0].startswith("the collection is locked by ")
    assert "up to 100 s" in waits[0]


# --- dead, frozen and far holders --------------------------------------------------------------


@pytest.mark.parametrize("reaped", [True, False])
def test_a_killed_process_is_taken_over_at_once(folder: Folder, waits: list[str], reaped: bool) -> None:
    with Process(folder) as runner:
        assert runner.ask("acquire") == ""
        assert runner.ask("commit r1") == ""
        runner.stop(signal.SIGKILL)
        if reaped:
            runner.child.wait(30)
        refuse_if_held(folder, waits.append)
        with acquire(folder, "second", waits.append) as second:
            assert (second.run, second.version) == ("r1", 1)
    assert waits == []


def test_another_process_with_the_pid_of_a_dead_one_is_not_the_holder(folder: Folder, waits: list[str]) -> None:
    here = lease.this_process("batchproj embed")
    assert here.pid_started is not None
    write_record(
        folder,
        elsewhere().model_copy(update={"holder": here.model_copy(update={"pid_started": here.pid_started - 1})}),
    )
    acquire(folder, "second", waits.append).release()
    assert waits == []


def test_a_process_killed_before_its_first_beat_is_taken_over(folder: Folder, waits: list[str]) -> None:
    acquire(folder, "first").release()
    with Process(folder) as runner:
        runner.stop(signal.SIGKILL)
        here = lease.this_process("batchproj embed").model_copy(update={"pid": runner.child.pid})
        write_record(folder, elsewhere().model_copy(update={"number": 2, "holder": here}))
        acquire(folder, "second", waits.append).release()
    assert waits == []


@pytest.mark.parametrize("year", [1970, 2100])
@pytest.mark.parametrize("has_beaten", [True, False])
def test_a_silent_host_is_taken_over_after_the_wait_and_not_before(
    folder: Folder, waits: list[str], monkeypatch: pytest.MonkeyPatch, year: int, has_beaten: bool
) -> None:
    monkeypatch.setattr(lease, "TAKEOVER_S", 1.0)
    write_record(folder, elsewhere(year))
    if has_beaten:
        write_beat(folder, elsewhere(year))
    began = time.monotonic()
    with acquire(folder, "second", waits.append) as second:
        assert time.monotonic() - began >= 1.0
        second.append("commit", "r1", 1)
    assert "locked by ann@far, process" in waits[0]


@pytest.mark.parametrize("year", [1970, 2100])
def test_a_released_lease_of_another_host_is_not_waited_for(folder: Folder, waits: list[str], year: int) -> None:
    write_record(folder, elsewhere(year))
    write_beat(folder, elsewhere(year), released=True)
    refuse_if_held(folder, waits.append)
    acquire(folder, "second", waits.append).release()
    assert waits == []


@pytest.mark.parametrize("year", [1970, 2100])
def test_a_host_that_beats_is_not_taken_over(folder: Folder, monkeypatch: pytest.MonkeyPatch, year: int) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.5)  # two of them must outlast a slow disk
    record = elsewhere(year)
    write_record(folder, record)
    far = Lease(folder, record)
    for refused in (lambda: acquire(folder, "second"), lambda: refuse_if_held(folder)):
        with pytest.raises(TryLater, match="locked by ann@far, process"):
            refused()
    far.append("commit", "r1", 1)
    far.release()
    assert len(records(folder, 100)) == 2


def test_a_holder_that_releases_during_the_wait_is_followed(folder: Folder) -> None:
    record = elsewhere()
    write_record(folder, record)
    write_beat(folder, record)
    acquire(folder, "second", lambda _: write_beat(folder, record, released=True)).release()


def test_a_frozen_process_that_wakes_up_commits_nothing(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "TAKEOVER_S", 1.0)
    with Process(folder) as runner:
        assert runner.ask("acquire") == ""
        until(lambda: beats(folder) > 0)
        runner.stop(signal.SIGSTOP)
        with acquire(folder, "second") as second:
            second.append("commit", "r2", 2)
            os.kill(runner.child.pid, signal.SIGCONT)
            taken = f"taken over by .*, process {os.getpid()}; nothing of it was made visible; run again"
            assert_matches(taken, runner.ask("commit r1"))
            assert runner.ask("join") == "", "its heartbeat has ended"
            assert runner.ask("release") == ""
            seen = beats(folder)
            until(lambda: beats(folder) > seen + 1)
            beat = lock(folder)
            assert beat is not None
            assert (beat.holder.pid, beat.released) == (os.getpid(), False)
            assert_matches(taken, runner.ask("commit r1"))
        newest = head(folder)
        assert newest is not None
        assert (newest.number, newest.run) == (3, "r2")


def assert_matches(pattern: str, text: str) -> None:
    assert re.search(pattern, text), text


def test_a_holder_learns_from_its_heartbeat_that_it_was_taken_over(folder: Folder) -> None:
    class Watched(Folder):
        """Sees whether anything is written after the other's record has been read."""

        learned = False
        wrote_later = False

        def read(self, name: str) -> bytes:
            data = super().read(name)
            self.learned |= b'"token":"far"' in data
            return data

        def write(self, name: str, data: bytes) -> None:
            self.wrote_later |= self.learned
            super().write(name, data)

    store = Watched(folder.uri)
    with acquire(store, "first") as first:
        first.append("commit", "r1", 1)
        first.check()
        until(lambda: beats(folder) > 0)
        usurper = elsewhere().model_copy(update={"number": 3, "run": "r1", "version": 1})
        write_record(folder, usurper)

        def lost() -> bool:
            try:
                first.check()
            except TryLater as error:
                return "taken over by ann@far" in str(error)
            return False

        until(lost)
        with pytest.raises(TryLater, match="nothing of it was made visible"):
            first.append("commit", "r2", 2)
        assert first.superseded() == usurper
    assert store.learned
    assert not store.wrote_later
    beat = lock(folder)
    assert beat is not None
    assert not beat.released
    assert head(folder) == usurper


def test_looking_writes_nothing(folder: Folder, waits: list[str]) -> None:
    refuse_if_held(folder, waits.append)
    assert not Path(folder.path(".")).exists()
    assert waits == []
    write_record(folder, elsewhere())
    write_beat(folder, elsewhere())
    before = contents(folder)
    refuse_if_held(folder, waits.append)  # silent for two beats: `acquire` will wait longer
    assert contents(folder) == before
    assert len(waits) == 1


# --- a store that fails ------------------------------------------------------------------------


def test_a_lost_answer_is_no_loss(folder: Folder) -> None:
    with acquire(LosesAnswers(folder.uri), "first") as held:
        held.append("commit", "r1", 1)
        held.append("commit", "r2", 2)
    assert [(record.kind, record.run) for record in records(folder, 100)] == [
        ("lease", None),
        ("commit", "r1"),
        ("commit", "r2"),
    ]


def test_an_append_of_unknown_outcome_can_be_repeated_or_followed(folder: Folder) -> None:
    class Cut(Folder):
        """Takes a record, but the store is away before it has said so."""

        cut = False

        def create(self, name: str, data: bytes) -> bool:
            created = super().create(name, data)
            if self.cut:
                raise TryLater("storage is away")
            return created

    store = Cut(folder.uri)
    with acquire(store, "first") as held:
        for run in ("r1", "r2"):
            store.cut = True
            with pytest.raises(TryLater, match="storage is away"):
                held.append("commit", run, 1)
            store.cut = False
            if run == "r1":
                held.append("commit", "r1", 1)
        seen = beats(folder)
        until(lambda: beats(folder) > seen + 1)  # the heartbeat knows its own record
        held.check()
        held.append("rollback", "r1", 1)
    assert [record.run for record in records(folder, 100)] == [None, "r1", "r2", "r1"]


def test_the_heartbeat_survives_an_outage(folder: Folder) -> None:
    store = Outage(folder.uri)
    with acquire(store, "first") as held:
        until(lambda: beats(folder) > 0)
        store.up.clear()
        until(lambda: store.failed >= 3)
        seen = beats(folder)
        store.up.set()
        until(lambda: beats(folder) > seen)
        held.append("commit", "r1", 1)


def test_an_outage_is_not_taken_for_silence(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "TAKEOVER_S", 1.0)
    record = elsewhere()
    store = Outage(folder.uri, patience_s=30)
    write_record(folder, record)
    far = Lease(store, record)

    def go_away(_: str) -> None:
        store.up.clear()
        threading.Timer(1.5, store.up.set).start()

    with pytest.raises(TryLater, match="locked by ann@far"):
        acquire(store, "second", go_away)
    far.release()


def test_release_does_not_wait_for_a_store_that_is_away(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RELEASE_S", 0.2)
    store = Outage(folder.uri, patience_s=30)
    with acquire(store, "first"):
        until(lambda: beats(folder) > 0)
        store.up.clear()
    assert store.failed == 0, "the call under way was waited for"
    beat = lock(folder)
    assert beat is not None
    assert not beat.released
    store.up.set()


def test_a_foreign_record_is_an_error_of_one_line(folder: Folder) -> None:
    folder.write(layout.log(1), b'{"number": 1}')
    with pytest.raises(CollectionError, match=r"log/00000001\.json is no record of this version .* or a newer one$"):
        acquire(folder, "first")


# --- any order ---------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["acquire", "append", "release"]), st.integers(0, 2)), max_size=14))
def test_only_the_last_lease_commits(steps: list[tuple[str, int]]) -> None:
    """Three runs that each believe that the others are dead, in any order of steps."""
    held: dict[int, Lease] = {}
    owner: int | None = None
    committed: list[str | None] = [None]
    with (
        tempfile.TemporaryDirectory() as root,
        pytest.MonkeyPatch.context() as patch,
        ExitStack() as leases,
    ):
        patch.setattr(lease, "TAKEOVER_S", 0.0)
        folder = Folder(root)
        for number, (step, actor) in enumerate(steps):
            if step == "acquire":
                held[actor] = leases.enter_context(acquire(folder, f"actor {actor}"))
                assert held[actor].run == committed[-1]
                owner = actor
            elif step == "append" and actor == owner:
                held[actor].append("commit", f"r{number}", number)
                committed.append(f"r{number}")
            elif step == "append" and actor in held:
                with pytest.raises(TryLater, match="taken over by"):
                    held[actor].append("commit", f"r{number}", number)
            elif actor in held:
                held[actor].release()
                owner = None if actor == owner else owner
                del held[actor]
        log = records(folder, 100)
    assert [record.number for record in log] == list(range(1, len(log) + 1))
    assert [record.run for record in log if record.kind == "commit"] == committed[1:]
