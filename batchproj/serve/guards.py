"""What every request has to pass, and what every answer carries; plain ASGI, so that bodies stream through."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import Iterable

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

RETRY_S = 1
"""After so many seconds one that was turned away may come again."""

COOKIE = "batchproj-session"
OPEN_PATHS = ("/", "/health", "/session")
OPEN_FOLDER = "/page/"
"""What is told without a token: the page, which holds nothing of the collection, and that the service lives."""

PAGE_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
FILE_POLICY = "default-src 'none'; sandbox; frame-ancestors 'none'"
"""For the bytes of items: nothing in them runs, whatever a browser takes them for."""

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(self)",
}


class Answers:
    """Security headers on every answer; none is kept by a cache unless it says so itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("Content-Security-Policy", PAGE_POLICY)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, with_headers if scope["type"] == "http" else send)


class Hosts:
    """Only what names this service in its Host header: a page of another site that has got its name to lead here,
    by DNS rebinding, does not."""

    def __init__(self, app: ASGIApp, hosts: Iterable[str]) -> None:
        self._app = app
        self._hosts = {host.lower().strip("[]") for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._is_ours(Headers(scope=scope).get("host", "")):
            refusal = JSONResponse({"detail": "this host is not served; allow it with --allow-host"}, 421)
            return await refusal(scope, receive, send)
        return await self._app(scope, receive, send)

    def _is_ours(self, host: str) -> bool:
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        return name.lower() in self._hosts


class Token:
    """Only who has the token, in `Authorization: Bearer`, or in the cookie that `POST /session` gives for it: a
    browser's players and pictures send no header of a page's choice."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._token = app, token.encode()
        self._cookie = session_of(token).encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._is_open(scope["path"]) or self._is_known(Headers(scope=scope)):
            return await self._app(scope, receive, send)
        refusal = JSONResponse(
            {"detail": "no token; send Authorization: Bearer TOKEN"}, 401, headers={"WWW-Authenticate": "Bearer"}
        )
        return await refusal(scope, receive, send)

    @staticmethod
    def _is_open(path: str) -> bool:
        return path in OPEN_PATHS or path.startswith(OPEN_FOLDER)

    def _is_known(self, headers: Headers) -> bool:
        if is_bearer(headers.get("authorization", ""), self._token):
            return True
        cookie = cookie_parser(headers.get("cookie", "")).get(COOKIE, "")  # whatever other cookies look like
        return hmac.compare_digest(cookie.encode(), self._cookie)


def is_bearer(authorization: str, token: bytes) -> bool:
    """Whether a header carries the token; takes as long for any other."""
    scheme, _, given = authorization.partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token)


def session_of(token: str) -> str:
    """What a browser keeps in the token's place, the same for every replica."""
    return hmac.new(token.encode(), b"batchproj session", hashlib.sha256).hexdigest()


class Bodies:
    """No body is larger or slower than allowed, whatever its header says: it is counted while it comes.

    Nor are all of them together larger than `all_bytes`: they are held before anybody asks whether there is room for
    their searches.
    """

    def __init__(self, app: ASGIApp, most_bytes: int, all_bytes: int, seconds: float) -> None:
        self._app, self._most, self._all, self._seconds = app, most_bytes, all_bytes, seconds
        self.held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        told = Headers(scope=scope).get("content-length", "0")
        if told.isdecimal() and len(told) < 20 and int(told) > self._most:
            return await JSONResponse({"detail": self._too_large}, 413)(scope, receive, send)
        count = [0]
        try:
            await self._app(scope, self._counted(receive, count), send)
        finally:
            self.held -= count[0]

    @property
    def _too_large(self) -> str:
        return f"the body is larger than {self._most:,} bytes"

    def _counted(self, receive: Receive, count: list[int]) -> Receive:
        """Adds to `count[0]`, and to what is held of all."""
        whole, deadline = False, time.monotonic() + self._seconds

        async def counted() -> Message:
            nonlocal whole
            if whole:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                raise HTTPException(408, f"the body took longer than {self._seconds:g} s") from None
            size = len(message.get("body", b""))
            count[0] += size
            self.held += size
            whole = not message.get("more_body", False)
            if count[0] > self._most:
                raise HTTPException(413, self._too_large)
            if self.held > self._all:
                raise HTTPException(429, "too many large requests at once; try again", {"Retry-After": str(RETRY_S)})
            return message

        return counted
