"""A local S3 with a corpus in it: moto in a process of its own, reached over HTTP by the standard AWS variables."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from batchproj.errors import TryLater

BUCKET = "bench"
START_S = 60.0
TOGETHER = 256


@contextlib.contextmanager
def store_with(files: Path) -> Iterator[str]:
    """Put every file below `files` into a new store; the s3:// prefix that holds them. Gone afterwards."""
    with _server() as endpoint:
        told = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "bench",
            "AWS_SECRET_ACCESS_KEY": "bench",
            "AWS_REGION": "us-east-1",
        }
        before = {name: os.environ.get(name) for name in told}
        os.environ |= told
        try:
            _upload(files)
            yield f"s3://{BUCKET}/items"
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


@contextlib.contextmanager
def _server() -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    endpoint = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + START_S
    try:
        while True:
            try:
                urllib.request.urlopen(f"{endpoint}/moto-api/data.json", timeout=5).close()
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise TryLater(f"moto did not start in {START_S:.0f} s; run the same command again") from None
                time.sleep(0.1)
        yield endpoint
    finally:
        server.terminate()
        server.wait(10)


def _upload(files: Path) -> None:
    import s3fs

    store = s3fs.S3FileSystem(endpoint_url=os.environ["AWS_ENDPOINT_URL"], skip_instance_cache=True)
    store.mkdir(BUCKET)
    found = sorted(path for path in files.rglob("*") if path.is_file())
    for start in range(0, len(found), TOGETHER):
        some = found[start : start + TOGETHER]
        store.pipe({f"{BUCKET}/items/{path.relative_to(files)}": path.read_bytes() for path in some})
