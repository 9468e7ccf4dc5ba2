"""Who asks the service from Python, without waiting in a thread.

async with Client("http://127.0.0.1:8000") as client:
    found = await client.search("a red apple", k=5, modality="image")
    data = await client.media(found.hits[0].id)
"""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import aiohttp

from batchproj.errors import TryLater, UsageError
from batchproj.serve.requests import Found

_FILES = ("image", "audio", "video", "file")


class Client:
    """Use it with `async with`; searches may run side by side.

    Raises UsageError for what the service refuses, in its own words, and TryLater where it is busy or away.
    """

    def __init__(self, url: str, token: str | None = None, timeout_s: float = 60) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Client:
        self._session = aiohttp.ClientSession(headers=self._headers, timeout=self._timeout)
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        assert self._session is not None, "not entered"
        await self._session.close()

    async def search(self, text: str | None = None, **asked: Any) -> Found:
        """`asked` are the fields of `POST /search`; `image`, `audio`, `video` and `file` are paths, or bytes."""
        document = {**asked, **({"text": text} if text is not None else {})}
        files = {name: document.pop(name) for name in _FILES if name in document}
        if not files:
            return Found.model_validate_json(await self._asked("POST", "/search", json=document))
        form = aiohttp.FormData()
        for name, value in document.items():
            form.add_field(name, value if isinstance(value, str) else json.dumps(value))
        for name, value in files.items():
            data = value if isinstance(value, bytes) else Path(value).read_bytes()
            form.add_field(name, data, filename=name if isinstance(value, bytes) else Path(value).name)
        return Found.model_validate_json(await self._asked("POST", "/search", data=form))

    async def item(self, id: str) -> dict[str, Any]:
        """All that is known of an item."""
        told: dict[str, Any] = json.loads(await self._asked("GET", f"/items/{quote(id, safe='')}"))
        return told

    async def media(self, id: str) -> bytes:
        """The item's bytes."""
        return await self._asked("GET", f"/items/{quote(id, safe='')}/media")

    async def stats(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(await self._asked("GET", "/stats"))
        return told

    async def _asked(self, method: str, path: str, **body: Any) -> bytes:
        assert self._session is not None, "use it with `async with`"
        try:
            async with self._session.request(method, self._url + path, **body) as answer:
                data = await answer.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise TryLater(f"{self._url} cannot be asked: {type(error).__name__}; see whether it runs") from error
        if answer.status < 400:
            return data
        said = f"{self._url} answered {answer.status}: {_detail(data)}"
        raise TryLater(said) if answer.status in (429, 503) else UsageError(said)


def _detail(data: bytes) -> str:
    try:
        return str(json.loads(data)["detail"])[:300]
    except (ValueError, KeyError, TypeError):
        return "without saying why"
