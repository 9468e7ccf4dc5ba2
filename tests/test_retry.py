from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from proxy import Proxy, Request, proxied
from tenacity import wait_fixed

from batchproj import objectstore, retry
from batchproj.errors import TryLater
from batchproj.objectstore import Folder, list_objects, read_pinned
from batchproj.retry import Limiter, configure, retrying, watch_pauses

THREADS = 8


@pytest.fixture
def proxy(s3_endpoint: str) -> Iterator[Proxy]:
    with proxied(s3_endpoint) as between:
        yield between


@pytest.fixture(autouse=True)
def _as_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_limiter", Limiter())


@pytest.fixture
def lines() -> Iterator[list[str]]:
    heard: list[str] = []
    with watch_pauses(heard.append):
        yield heard


class Busy(OSError):
    response = {"Error": {"Code": "SlowDown"}, "ResponseMetadata": {"HTTPStatusCode": 503}}  # noqa: RUF012


def is_read(request: Request) -> bool:
    return request.method == "GET"


def key_used(request: Request) -> str:
    return request.headers["Authorization"].partition("Credential=")[2].partition("/")[0]


# --- a store that is away ----------------------------------------------------------------------


def test_an_outage_is_waited_out_and_reported(s3_bucket: str, proxy: Proxy, lines: list[str]) -> None:
    folder = Folder(s3_bucket)
    folder.write("a", b"x")
    proxy.down.set()
    back = threading.Timer(4, proxy.down.clear)
    back.start()
    began = time.monotonic()
    with ThreadPoolExecutor(THREADS) as pool:
        assert list(pool.map(folder.read, ["a"] * THREADS)) == [b"x"] * THREADS
    assert time.monotonic() - began < 4 + retry.LONGEST_WAIT_S + 10
    back.join()
    away = [line for line in lines if line.startswith("storage does not answer: ")]
    assert lines[0].startswith("storage does not answer: waiting since 3 s, up to 180 s (")
    assert s3_bucket in lines[0]
    assert len(away) <= 2, "one line for all threads"
    assert any(line.startswith("storage answers again: after ") for line in lines)


def test_a_fault_that_one_retry_mends_is_not_reported(s3_bucket: str, proxy: Proxy, lines: list[str]) -> None:
    folder = Folder(s3_bucket)
    folder.write("a", b"x")
    proxy.fail_next(lambda _: True)
    proxy.drop_answer(is_read)
    assert folder.read("a") == b"x"
    assert lines == []


def test_a_used_up_budget_is_try_later(s3_bucket: str, proxy: Proxy, lines: list[str]) -> None:
    configure(2)
    folder = Folder(s3_bucket)
    proxy.down.set()
    with pytest.raises(TryLater, match=r"storage is away: s3://\S+ did not answer for 2 s \(\w+\); run the same"):
        folder.read("a")
    assert not any("again" in line for line in lines)


def test_watchers_hear_while_a_call_sleeps(lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_LINE_AFTER_S", 0.3)
    monkeypatch.setattr(retry, "wait_random_exponential", lambda **_: wait_fixed(1.2))
    faults = [ConnectionResetError()]

    def once() -> None:
        if faults:
            raise faults.pop()

    retrying(once, "s3://b/c")
    assert [line.split(": ")[0] for line in lines] == ["storage does not answer", "storage answers again"]


def test_the_last_who_watches_hears_all_and_no_more_when_he_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_LINE_AFTER_S", 0.0)
    monkeypatch.setattr(retry, "LINE_EVERY_S", 0.0)
    first: list[str] = []
    second: list[str] = []
    tries: list[int] = []

    def twice() -> None:
        tries.append(1)
        if len(tries) % 2:
            raise ConnectionRefusedError

    with watch_pauses(first.append):
        with watch_pauses(second.append):
            retrying(twice, "s3://b/c")
        told = len(second)
        retrying(twice, "s3://b/c")
    retrying(twice, "s3://b/c")
    assert sum("again" in line for line in second) == 1
    assert second[0].startswith("storage does not answer: waiting since 0 s")
    assert len(second) == told > 0
    assert sum("again" in line for line in first) == 1


def test_a_missing_object_after_faults_raises_as_it_is(s3_bucket: str, proxy: Proxy) -> None:
    proxy.fail_next(lambda _: True, times=2)
    with pytest.raises(FileNotFoundError):
        Folder(s3_bucket).read("nothing")


def test_a_fifth_of_the_answers_fails_and_all_reads_succeed(s3_bucket: str, proxy: Proxy, lines: list[str]) -> None:
    folder = Folder(s3_bucket)
    names = [f"{number:03}" for number in range(200)]
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda name: folder.write(name, name.encode()), names))
        proxy.fail(0.2)
        rows = [row for page in list_objects(s3_bucket) for row in page]
        read = list(pool.map(lambda row: read_pinned(row.uri, row.size, row.version), rows))
    assert sorted(read) == [name.encode() for name in names]
    assert proxy.object_reads(s3_bucket.removeprefix("s3://")).total() > 200
    assert retry._limiter.limit < retry.CALLS_AT_ONCE


def test_half_an_answer_is_no_answer(s3_bucket: str, proxy: Proxy) -> None:
    folder = Folder(s3_bucket)
    data = b"half" * 100_000
    folder.write("a", data)
    (row,) = [row for page in list_objects(s3_bucket) for row in page]
    proxy.drop_answer(is_read, half=True)
    assert read_pinned(row.uri, row.size, row.version) == data
    proxy.drop_answer(is_read, half=True)
    assert folder.read("a") == data


def test_a_store_that_hangs_is_asked_again(s3_bucket: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(objectstore.uris._ONE_TRY, "read_timeout", 0.5)
    proxy.delay_s = 2
    written = threading.Event()

    def wake_when_asked_again() -> None:
        while len(proxy.requests) < 2 and not written.wait(0.05):
            pass
        proxy.delay_s = 0

    waker = threading.Thread(target=wake_when_asked_again)
    waker.start()
    Folder(s3_bucket).write("a", b"x")
    written.set()
    waker.join()
    assert len(proxy.requests) >= 2


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_one_try_is_one_request(s3_bucket: str, proxy: Proxy, status: int) -> None:
    """Neither botocore nor s3fs retry beneath the budget."""
    configure(0)
    proxy.fail_next(lambda _: True, status=status, times=100)
    with pytest.raises(TryLater):
        Folder(s3_bucket).write("a", b"x")
    assert len(proxy.requests) == 1


# --- credentials -------------------------------------------------------------------------------


def test_rotated_credentials_are_picked_up_once(s3_bucket: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(s3_bucket)
    folder.write("a", b"x")
    assert {key_used(request) for request in proxy.requests} == {"test"}
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "rotated")
    sessions: list[bool] = []
    connect = folder._fs.connect

    def counted(refresh: bool) -> None:
        sessions.append(refresh)
        connect(refresh=refresh)

    monkeypatch.setattr(folder._fs, "connect", counted)
    proxy.fail_next(lambda request: key_used(request) == "test", times=100, status=400, code="ExpiredToken")
    with ThreadPoolExecutor(THREADS) as pool:
        assert list(pool.map(folder.read, ["a"] * THREADS)) == [b"x"] * THREADS
    assert len(sessions) == 1
    assert key_used(proxy.requests[-1]) == "rotated"


def test_credentials_are_read_again_from_their_file(
    s3_bucket: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    lines = "[default]\naws_access_key_id = {}\naws_secret_access_key = s\n"
    file.write_text(lines.format("old"))
    folder = Folder(s3_bucket)
    folder.write("a", b"x")
    file.write_text(lines.format("new"))
    proxy.fail_next(lambda request: key_used(request) == "old", times=100, status=403, code="InvalidAccessKeyId")
    folder.write("b", b"x")
    assert [key_used(request) for request in proxy.requests] == ["old", "old", "new"]


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidToken", "ExpiredTokenException"])
def test_credentials_refused_twice_are_try_later(s3_bucket: str, proxy: Proxy, code: str) -> None:
    proxy.fail_next(lambda _: True, times=100, status=400, code=code)
    with pytest.raises(TryLater, match=f"credentials refused for {s3_bucket}: {code}; renew"):
        Folder(s3_bucket).write("a", b"x")
    assert len(proxy.requests) == 2


# --- a store that is busy ----------------------------------------------------------------------


def refused(limiter: Limiter) -> None:
    with pytest.raises(Busy), limiter.turn(1):
        raise Busy


def test_a_busy_store_halves_the_calls_at_once_down_to_one() -> None:
    limiter = Limiter(5)
    seen = [limiter.limit]
    for _ in range(4):
        refused(limiter)
        seen.append(limiter.limit)
    assert seen == [5, 2, 1, 1, 1]


def test_successes_bring_the_calls_at_once_back() -> None:
    limiter = Limiter(3)
    refused(limiter)
    seen = []
    for _ in range(4 * retry.CALLS_AT_ONCE):
        with limiter.turn(1):
            pass
        seen.append(limiter.limit)
    assert seen[retry.CALLS_AT_ONCE - 2] == 1
    assert seen[retry.CALLS_AT_ONCE - 1] == 2
    assert seen[-1] == 3


def test_one_burst_of_refusals_counts_once() -> None:
    limiter = Limiter(THREADS)
    together = threading.Barrier(THREADS)

    def busy() -> None:
        with limiter.turn(10):
            together.wait(10)
            raise Busy

    def one() -> None:
        with pytest.raises(Busy):
            busy()

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda _: one(), range(THREADS)))
    assert limiter.limit == THREADS // 2


def test_a_call_inside_a_call_does_not_wait_for_itself() -> None:
    retry._limiter.limit = 1
    assert retrying(lambda: retrying(lambda: "in", "s3://b/in"), "s3://b/out") == "in"


def test_waiting_for_a_turn_ends() -> None:
    limiter = Limiter(1)
    with limiter.turn(1), ThreadPoolExecutor(1) as pool:
        other = pool.submit(limiter.turn(0.1).__enter__)
        with pytest.raises(TimeoutError):
            other.result(10)


def test_no_more_calls_run_at_once_than_the_limit(s3_bucket: str, proxy: Proxy) -> None:
    folder = Folder(s3_bucket)
    folder.write("a", b"x")
    proxy.clear()
    proxy.delay_s = 0.02
    retry._limiter.limit = 2
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(folder.read, ["a"] * THREADS))
    assert proxy.most_at_once == 2


def test_a_call_that_sleeps_between_tries_holds_no_place() -> None:
    retry._limiter.limit = 1
    failed = threading.Event()
    other_done = threading.Event()

    def fails_until_the_other_is_done() -> None:
        failed.set()
        if not other_done.is_set():
            raise ConnectionResetError

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(retrying, fails_until_the_other_is_done, "s3://b/c")
        assert failed.wait(10)
        retrying(other_done.set, "s3://b/d")
        waiting.result(30)
