"""A small HTTP proxy between batchproj and the store of the tests: it counts requests and makes trouble."""

from __future__ import annotations

import http.client
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from s3fs import S3FileSystem


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]

    def reads_object(self, bucket: str, prefix: str = "") -> bool:
        """A GET of an object below `prefix`, not a listing."""
        name = f"/{bucket}/{prefix}"
        return self.method == "GET" and self.path.startswith(name) and len(self.path) > len(f"/{bucket}/")


Predicate = Callable[[Request], bool]


@dataclass
class _Answer:
    """What is answered in place of the store, so many times."""

    predicate: Predicate
    times: int
    status: int
    body: bytes


@dataclass(frozen=True)
class _Drop:
    """Whose answer is lost: all of it, or the second half of its body."""

    predicate: Predicate
    half: bool


class Proxy:
    """Forwards to `upstream` (`http://host:port`); use as a context, with `endpoint` as AWS_ENDPOINT_URL.

    While `down` is set every connection is closed at once. `ignore_conditions` takes If-Match and
    If-None-Match off, as a gateway does that knows no conditional put. `delay_s` is waited before each
    request is forwarded.
    """

    def __init__(self, upstream: str) -> None:
        self._upstream = urlsplit(upstream)
        self._lock = threading.Lock()
        self._log: list[Request] = []
        self._share, self._share_status, self._random = 0.0, 503, random.Random(0)
        self._answers: list[_Answer] = []
        self._drops: list[_Drop] = []
        self.down = threading.Event()
        self.ignore_conditions = False
        self.delay_s = 0.0
        self._at_once = 0
        self.most_at_once = 0
        self._server = _Server(self)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def requests(self) -> list[Request]:
        with self._lock:
            return list(self._log)

    def clear(self) -> None:
        """Forget the requests so far."""
        with self._lock:
            self._log.clear()
            self.most_at_once = 0

    def count(self, predicate: Predicate) -> int:
        return sum(map(predicate, self.requests))

    def object_reads(self, bucket: str, prefix: str = "") -> Counter[str]:
        """How often each object was read, by path."""
        return Counter(request.path for request in self.requests if request.reads_object(bucket, prefix))

    def fail(self, share: float, status: int = 503, seed: int = 0) -> None:
        """Answer this share of the requests with an error; 0 ends it."""
        with self._lock:
            self._share, self._share_status, self._random = share, status, random.Random(seed)

    def fail_next(self, predicate: Predicate, times: int = 1, status: int = 503, code: str = "") -> None:
        body = _error_body(code or _CODES.get(status, str(status)))
        self.answer_next(predicate, status, body, times)

    def answer_next(self, predicate: Predicate, status: int, body: bytes, times: int = 1) -> None:
        """Answer so many matching requests in the store's place."""
        with self._lock:
            self._answers.append(_Answer(predicate, times, status, body))

    def drop_answer(self, predicate: Predicate, half: bool = False) -> None:
        """Forward the next matching request, then close the connection without an answer, or in its middle."""
        with self._lock:
            self._drops.append(_Drop(predicate, half))

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _enter(self, request: Request) -> tuple[int, bytes] | None:
        """Log a request; the trouble that is due for it, if any."""
        with self._lock:
            self._log.append(request)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            for answer in self._answers:
                if answer.times and answer.predicate(request):
                    answer.times -= 1
                    return answer.status, answer.body
            if self._random.random() < self._share:
                return self._share_status, _error_body(_CODES.get(self._share_status, str(self._share_status)))
            return None

    def _leave(self) -> None:
        with self._lock:
            self._at_once -= 1

    def _drop(self, request: Request) -> _Drop | None:
        with self._lock:
            for drop in self._drops:
                if drop.predicate(request):
                    self._drops.remove(drop)
                    return drop
            return None


@contextmanager
def proxied(upstream: str) -> Iterator[Proxy]:
    """A proxy that this process's S3 calls go through, by way of AWS_ENDPOINT_URL."""
    with Proxy(upstream) as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        S3FileSystem.clear_instance_cache()  # they know the endpoint of before
        try:
            yield proxy
        finally:
            S3FileSystem.clear_instance_cache()


_CODES = {500: "InternalError", 503: "SlowDown"}
_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


def _error_body(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>made by the tests</Message></Error>".encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        super().__init__(("127.0.0.1", 0), _Handler)

    def verify_request(self, *_: Any) -> bool:
        return not self.proxy.down.is_set()

    def handle_error(self, *_: Any) -> None:
        """Quiet: clients that go away in the middle are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        upstream = self.server.proxy._upstream
        self._store = http.client.HTTPConnection(upstream.hostname or "", upstream.port or 80, timeout=60)

    def finish(self) -> None:
        self._store.close()
        super().finish()

    def do_GET(self) -> None:
        proxy = self.server.proxy
        body = self._body()
        if proxy.down.is_set():
            self.close_connection = True
            return
        where = urlsplit(self.path)
        query = parse_qs(where.query, keep_blank_values=True)
        request = Request(self.command, unquote(where.path), query, dict(self.headers.items()))
        trouble = proxy._enter(request)
        try:
            if trouble is None:
                self._forward(request, body)
            else:
                self._answer(trouble[0], {"Content-Type": "application/xml"}, trouble[1])
        finally:
            proxy._leave()

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers
        return body

    def _forward(self, request: Request, body: bytes) -> None:
        proxy = self.server.proxy
        if proxy.delay_s:
            time.sleep(proxy.delay_s)
        conditions = {"if-match", "if-none-match"} if proxy.ignore_conditions else set()
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP | conditions}
        self._store.request(self.command, self.path, body, {**headers, "Content-Length": str(len(body))})
        answer = self._store.getresponse()
        data = answer.read()
        drop = proxy._drop(request)
        if proxy.down.is_set() or (drop and not drop.half):
            self.close_connection = True
            return
        kept = {name: value for name, value in answer.getheaders() if name.lower() not in _HOP}
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
        if drop:
            self.close_connection = True
            data = data[: len(data) // 2]
        self._answer(answer.status, kept, data, length)

    def _answer(self, status: int, headers: dict[str, str], data: bytes, length: str | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def handle(self) -> None:
        try:
            super().handle()
        except (OSError, http.client.HTTPException):
            self.close_connection = True
