"""A real service in this process, on a port of loopback, and who asks it."""

from __future__ import annotations

import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import urllib3
from PIL import Image, ImageDraw

from batchproj.embed import Watch, embed
from batchproj.serve.server import make_server
from batchproj.serve.service import Service
from batchproj.serve.settings import Settings

EVIL_NAME = "<img src=x onerror=alert(1)>.png"
EVIL_TEXT = "<script>alert(1)</script> a caption"
COLOURS = {"frog": (20, 160, 40), "sky": (80, 140, 255), "apple": (220, 30, 30), "banana": (240, 220, 40)}
Answer = urllib3.BaseHTTPResponse


class Client:
    """Asks a service; `headers` are sent with every request."""

    def __init__(self, service: Service, port: int) -> None:
        self.service, self.port = service, port
        self.pool = urllib3.PoolManager(retries=False, timeout=60, maxsize=64)
        self.headers: dict[str, str] = {}

    def get(self, path: str, method: str = "GET", **headers: str) -> Answer:
        return self.pool.request(method, f"http://127.0.0.1:{self.port}{path}", headers={**self.headers, **headers})

    def json(self, path: str) -> Any:
        answer = self.get(path)
        assert answer.status == 200, answer.data
        return answer.json()

    def post(self, document: Any, **headers: str) -> Answer:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        told = {"Content-Type": "application/json", **self.headers, **headers}
        return self.pool.request("POST", f"http://127.0.0.1:{self.port}/search", body=body, headers=told)

    def form(self, **fields: Any) -> Answer:
        return self.pool.request("POST", f"http://127.0.0.1:{self.port}/search", fields=fields, headers=self.headers)

    def search(self, **document: Any) -> list[dict[str, Any]]:
        answer = self.post(document)
        assert answer.status == 200, answer.data
        hits: list[dict[str, Any]] = answer.json()["hits"]
        return hits

    def names(self, **document: Any) -> list[str]:
        return [hit["uri"].rpartition("/")[2] for hit in self.search(**document)]

    def id_of(self, name: str) -> str:
        """Of the row whose URI ends so."""
        return str(next(hit["id"] for hit in self.search(text="x", k=200) if hit["uri"].endswith(name)))


@contextmanager
def served(collection: object, **settings: Any) -> Iterator[Client]:
    service = Service(str(collection), Settings(**{"poll_s": 0.1, **settings}))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(128)
        server = make_server(service, "127.0.0.1", listening.getsockname()[1])
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        deadline = time.monotonic() + 60
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        try:
            yield Client(service, listening.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(60)


def picture(colour: tuple[int, int, int], kind: str = "PNG") -> bytes:
    """A disc on white."""
    image = Image.new("RGB", (320, 240), (250, 250, 250))
    ImageDraw.Draw(image).ellipse((60, 30, 260, 210), fill=colour)
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def write_tone(path: Path, hertz: float, seconds: float) -> None:
    at = np.arange(int(16_000 * seconds)) / 16_000
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * hertz * at), 16_000)


def write_corpus(folder: Path) -> None:
    """Pictures and captions of four things, a sound, names and texts that want to be HTML."""
    folder.mkdir(parents=True)
    for name, colour in COLOURS.items():
        (folder / f"{name}.png").write_bytes(picture(colour))
        (folder / f"{name}.txt").write_text(f"a picture of a {name}")
    (folder / EVIL_NAME).write_bytes(picture((1, 2, 3)))
    (folder / "script.txt").write_text(EVIL_TEXT)
    (folder / "page.txt").write_text("<!doctype html><html><body onload=alert(1)>a page</body></html>")
    write_tone(folder / "tone.flac", 440, 3)


def embed_builtin(source: object, collection: object) -> None:
    """With the shipped space, in this process."""
    from in_process import OPTIONS, without_ray

    from batchproj.space import open_space, resolve

    with without_ray():
        embed(str(source), str(collection), resolve(open_space("builtin")), OPTIONS, Watch())
