"""What a request has to pass: host, token, size, time, and how many there are; and what every answer carries."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from in_process import command
from serving import Client, embed_builtin, served, write_corpus

from batchproj.serve import connection, guards, requests

TOKEN = "a-token-of-enough-letters"


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guarded")
    write_corpus(folder / "corpus")
    embed_builtin(folder / "corpus", folder / "c")
    return folder / "c"


@pytest.fixture(scope="module")
def client(collection: Path) -> Iterator[Client]:
    with served(collection, body_bytes=100_000, body_s=2, queries=2, query_threads=1, hosts=("search.example",)) as one:
        yield one


@pytest.mark.parametrize(
    "path", ["/", "/health", "/stats", "/page/index.html", "/openapi.json", "/nothing", "/metrics"]
)
def test_every_answer_has_the_headers(client: Client, path: str) -> None:
    headers = client.get(path).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert "unsafe-inline" not in headers["Content-Security-Policy"]
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "Access-Control-Allow-Origin" not in headers
    assert "Server" not in headers


def test_another_site_is_told_nothing(client: Client) -> None:
    answer = client.get("/stats", method="OPTIONS", Origin="https://evil.example")
    assert answer.status == 405
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "localhost.evil", "[::2]", "0.0.0.0"])
def test_another_name_is_not_served(client: Client, host: str) -> None:
    answer = client.get("/health", Host=host)
    assert (answer.status, "--allow-host" in answer.json()["detail"]) == (421, True)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:99", "127.0.0.1:1", "[::1]:8000", "search.example:443"])
def test_our_own_names_are(client: Client, host: str) -> None:
    assert client.get("/health", Host=host).status == 200


def test_a_large_body_is_refused_by_its_header_and_by_its_count(client: Client) -> None:
    told = client.post({"text": "a" * 200_000})
    assert (told.status, "larger than 100,000 bytes" in told.json()["detail"]) == (413, True)

    def chunks() -> Iterator[bytes]:
        for _ in range(30):
            yield b" " * 10_000

    url, kind = f"http://127.0.0.1:{client.port}/search", {"Content-Type": "application/json"}
    counted = client.pool.request("POST", url, body=chunks(), headers=kind, chunked=True)
    assert counted.status == 413
    form = client.form(image=("a.png", bytes(200_000)))
    assert form.status == 413


def test_a_slow_body_is_given_up_and_stops_no_other(client: Client) -> None:
    opened = []
    for _ in range(40):
        slow = socket.create_connection(("127.0.0.1", client.port))
        slow.sendall(b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
        slow.sendall(b"Content-Length: 5000\r\n\r\n{")
        opened.append(slow)
    over = threading.Event()

    def drip() -> None:
        """A byte now and then, for minutes."""
        with contextlib.suppress(OSError):
            while not over.wait(0.05):
                opened[0].sendall(b" ")

    dripping = threading.Thread(target=drip)
    dripping.start()
    half = socket.create_connection(("127.0.0.1", client.port))
    half.sendall(b"GET /health HTTP/1.1\r\nHo")
    try:
        assert client.post({"text": "meanwhile"}).status == 200
        for slow in opened:
            slow.settimeout(30)
            assert slow.recv(200).startswith(b"HTTP/1.1 408")
    finally:
        over.set()
        dripping.join()
    for each in (*opened, half):
        each.close()


def test_too_many_at_once_are_told_to_come_again(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    live = client.service.live
    ask = type(live).ask

    def slow(*asked: Any) -> object:
        go_on.wait(30)
        return ask(*asked)

    monkeypatch.setattr(type(live), "ask", slow)
    statuses: list[int] = []
    threads = [threading.Thread(target=lambda: statuses.append(client.post({"text": "a"}).status)) for _ in range(2)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    while client.service.queries.admitted < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    turned_away = client.post({"text": "b"})
    assert (turned_away.status, turned_away.headers["Retry-After"]) == (429, "1")
    assert client.get("/health").status == 200
    go_on.set()
    for thread in threads:
        thread.join()
    assert statuses == [200, 200]
    monkeypatch.undo()
    assert client.post({"text": "b"}).status == 200


def test_what_takes_too_long_is_given_up_and_holds_its_place(collection: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    with served(collection, query_s=0.3) as client:
        live = type(client.service.live)
        ask = live.ask
        monkeypatch.setattr(live, "ask", lambda *asked: (go_on.wait(30), ask(*asked))[1])
        answer = client.post({"text": "a"})
        assert (answer.status, "took longer" in answer.json()["detail"]) == (503, True)
        assert client.service.queries.admitted == 1
        go_on.set()
        deadline = time.monotonic() + 20
        while client.service.queries.admitted and time.monotonic() < deadline:
            time.sleep(0.01)
        assert client.service.queries.admitted == 0


def test_what_was_given_up_before_it_began_is_not_done(collection: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, done = threading.Event(), []
    with served(collection, query_s=0.3, query_threads=1) as client:
        live = type(client.service.live)
        ask = live.ask
        monkeypatch.setattr(live, "ask", lambda *asked: (done.append(1), go_on.wait(30), ask(*asked))[2])
        assert [client.post({"text": "a"}).status for _ in range(3)] == [503] * 3
        assert client.service.queries.admitted == 1  # the one that has the thread
        go_on.set()
        deadline = time.monotonic() + 20
        while client.service.queries.admitted and time.monotonic() < deadline:
            time.sleep(0.01)
    assert done == [1]


def test_silent_connections_are_closed(collection: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_S", 0.5)
    with served(collection, token=TOKEN) as client:
        silent, half, refused = (socket.create_connection(("127.0.0.1", client.port), 30) for _ in range(3))
        half.sendall(b"GET /health HTTP/1.1\r\nHo")
        refused.sendall(b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n{")
        assert refused.recv(12) == b"HTTP/1.1 401"
        deadline = time.monotonic() + 30
        for each in (half, refused):
            with contextlib.suppress(OSError):
                while time.monotonic() < deadline:  # a byte now and then is not enough
                    each.sendall(b"x")
                    time.sleep(0.05)
        assert time.monotonic() < deadline
        with contextlib.suppress(ConnectionResetError):
            assert silent.recv(1) == b""
        for each in (silent, half, refused):
            each.close()
        assert client.get("/health").status == 200


def test_all_bodies_together_are_bounded(collection: Path) -> None:
    with served(collection, bodies_bytes=50_000) as client:
        slow = socket.create_connection(("127.0.0.1", client.port), 30)
        slow.sendall(b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
        slow.sendall(b"Content-Length: 60000\r\n\r\n" + b" " * 40_000)
        body, deadline = b" " * 20_000 + b'{"text": "a"}', time.monotonic() + 20
        while (answer := client.post(body)).status == 200 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (answer.status, answer.headers["Retry-After"]) == (429, "1")
        assert client.post({"text": "a"}).status == 200
        slow.close()
        while (answer := client.post(body)).status == 429 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert answer.status == 200


def test_a_large_document_is_parsed_beside_the_others(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    parsing: list[int] = []
    validated = requests._validated
    monkeypatch.setattr(requests, "_validated", lambda each: parsing.append(threading.get_ident()) or validated(each))
    for spaces in (0, 0, 90_000):
        assert client.post(b" " * spaces + b'{"text": "a"}').status == 200
    assert parsing[0] == parsing[1] != parsing[2]


def test_what_nobody_expected_is_told_with_the_headers_too(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(type(client.service.live), "ask", broken)
    answer = client.get("/stats")
    assert (answer.status, answer.json()["detail"]) == (500, "internal error; see the service's log")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
    assert answer.headers["Cache-Control"] == "no-store"


def test_a_token_is_wanted_for_all_that_tells_of_the_collection(collection: Path) -> None:
    with served(collection, token=TOKEN) as client:
        assert [client.get(path).status for path in ("/", "/health", "/page/index.html")] == [200, 200, 200]
        for path in ("/stats", "/metrics", "/openapi.json", "/items/x", "/items/x/media", "/runs", "/map", "/x"):
            assert client.get(path).status == 401, path
        assert client.post({"text": "a"}).status == 401
        for wrong in (f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", "Bearer", TOKEN, "Bearer é"):
            assert client.get("/stats", Authorization=wrong.encode("latin-1").decode("latin-1")).status == 401
        assert client.get("/stats", Cookie=f"{guards.COOKIE}={TOKEN}").status == 401
        assert client.get("/session", method="POST").status == 401
        client.headers = {"Authorization": f"Bearer {TOKEN}"}
        assert client.post({"text": "a"}).status == 200
        given = client.get("/session", method="POST")
        cookie = given.headers["Set-Cookie"]
        assert given.status == 204
        assert {"HttpOnly", "SameSite=strict"} <= set(cookie.split("; "))
        assert TOKEN not in cookie
        client.headers = {}
        assert client.get("/stats", Cookie=cookie.partition(";")[0]).status == 200
        odd = 'a[b]=1; {"c": "d"}; e; f=g h, i; é=1; ' + cookie.partition(";")[0]  # others of the same host's
        assert client.get("/stats", Cookie=odd).status == 200


def test_beyond_this_machine_a_token_is_demanded(collection: Path, tmp_path: Path) -> None:
    refused = command("serve", collection, "--host", "0.0.0.0")
    assert (refused.returncode, "--token-file" in refused.stderr) == (2, True)
    (tmp_path / "short").write_text("short\n")
    for file, said in (("short", "at least 16"), ("none", "cannot be read")):
        refused = command("serve", collection, "--host", "0.0.0.0", "--token-file", tmp_path / file)
        assert (refused.returncode, said in refused.stderr) == (2, True)
    nothing = command("serve", tmp_path / "no-collection")
    assert (nothing.returncode, "no collection at" in nothing.stderr) == (2, True)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "300.1.1.1", "x" * 70 + ".invalid"])
def test_a_name_that_leads_nowhere_is_said_so(collection: Path, tmp_path: Path, host: str) -> None:
    (tmp_path / "token").write_text(TOKEN)
    refused = command("serve", collection, "--host", host, "--token-file", tmp_path / "token")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
    assert refused.stderr.startswith(f"error: --host {host}: no such name or address here")


def test_a_port_that_is_taken_is_said_so(collection: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refused = command("serve", collection, "--port", taken.getsockname()[1])
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
    assert "address already in use; give another --port" in refused.stderr


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.long), signal.SIGTERM])
def test_the_command_serves_until_it_is_told_to_stop(collection: Path, tmp_path: Path, number: int) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    told = [sys.executable, "-m", "batchproj.cli", "serve", str(collection), "--host", "0.0.0.0", "--port", str(port)]
    told += ["--token-file", str(tmp_path / "token")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    with subprocess.Popen(told, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        lines: list[str] = []
        while not lines or "http://" not in lines[-1]:
            lines.append(process.stderr.readline())
            assert lines[-1], lines
        assert f"run 000001 of {collection} at http://0.0.0.0:{port}" in lines[-1]
        deadline = time.monotonic() + 30
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            try:
                body, kind = json.dumps({"text": "frog", "k": 1}), {"Content-Type": "application/json"}
                connection.request("POST", "/search", body, {**kind, "Authorization": f"Bearer {TOKEN}"})
                break
            except ConnectionRefusedError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        assert json.loads(connection.getresponse().read())["run"] == "000001"
        connection.close()
        process.send_signal(number)
        assert process.stderr.readlines()[-1] == "stopped; nothing is served any more\n"
        assert process.wait(30) == 128 + number
