"""A Ray cluster in processes of their own, as `ray start` makes one, with a token and its own ports and folder."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from runs import descendants

import batchproj

CPUS = 4


@dataclass
class Head:
    """Its API's address, the token that it asks for, and the process that all its others descend from."""

    address: str
    token: str
    api_port: int
    metrics: str
    process: subprocess.Popen[bytes]

    def environment(self, home: Path) -> dict[str, str]:
        """What a client needs, and no more than that of this machine's Ray."""
        return {"RAY_AUTH_TOKEN": self.token, "HOME": str(home)}

    def kill(self) -> None:
        for pid in [self.process.pid, *descendants(self.process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(30)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def head(environment: Mapping[str, str], token: str | None = None, api_port: int | None = None) -> Iterator[Head]:
    """A head that asks for a token, an empty one for none; with its API at a port that another had, if one is given."""
    token = secrets.token_hex(32) if token is None else token
    # sockets lie below it, and their paths have a limit that pytest's folders reach
    with tempfile.TemporaryDirectory(prefix="bp", dir="/tmp", ignore_cleanup_errors=True) as folder:
        gcs, free, metrics, agent, client = free_ports(5)
        api = api_port or free
        line = [
            *("start", "--head", "--block", "--disable-usage-stats", "--include-dashboard=true"),
            *("--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}"),
            *(f"--port={gcs}", f"--dashboard-port={api}", f"--metrics-export-port={metrics}"),
            *(f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"),
            *(f"--num-cpus={CPUS}", "--object-store-memory=200000000"),
        ]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        package, programs = Path(batchproj.__file__).parent.parent, Path(sys.executable).parent
        paths = {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(package), "HOME": folder}
        secured = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {"RAY_AUTH_MODE": "disabled"}
        with (Path(folder) / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", *line],
                env={**inherited, **paths, **secured, **environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started = Head(f"http://127.0.0.1:{api}", token, api, f"http://127.0.0.1:{metrics}/metrics", process)
        try:
            _wait(started, Path(folder) / "log")
            yield started
        finally:
            started.kill()


def _wait(started: Head, log: Path) -> None:
    """Until it takes jobs: it answers some seconds before its agent, which starts them, is there."""
    request = urllib.request.Request(
        f"{started.address}/api/jobs/", headers={"Authorization": f"Bearer {started.token}"}
    )
    deadline = time.monotonic() + 120
    while True:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(request, timeout=5).close()
            return
        assert started.process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.3)
