"""Who is told how a run ended, and what a run may cost."""

from __future__ import annotations

import json
import shlex
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from in_process import command

from batchproj.collection.lease import acquire
from batchproj.hooks import call_hook, check_hook
from batchproj.objectstore import Folder


@pytest.fixture
def told(tmp_path: Path) -> str:
    """A command that keeps what it is told in `told.json` beside it."""
    script = tmp_path / "hook.py"
    script.write_text(f"import sys\nopen({str(tmp_path / 'told.json')!r}, 'a').write(sys.stdin.read() + '\\n')\n")
    return shlex.join([sys.executable, str(script)])


def documents(tmp_path: Path) -> list[dict[str, object]]:
    file = tmp_path / "told.json"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_a_run_that_ends_well_tells_its_summary(corpus: Path, tmp_path: Path, tiny_space: Path, told: str) -> None:
    hooks = ("--on-success", told, "--on-failure", "false")
    done = command("embed", corpus, tmp_path / "c", "--space", tiny_space, "--json", *hooks)
    assert done.returncode == 0, done.stderr
    (document,) = documents(tmp_path)
    assert (document["command"], document["outcome"], document["exit_code"]) == ("embed", "success", 0)
    assert document["report"] == json.loads(done.stdout)
    assert (document["source"], document["collection"]) == (str(corpus), str(tmp_path / "c"))


def test_a_run_that_fails_tells_why(corpus: Path, tmp_path: Path, tiny_space: Path, told: str) -> None:
    done = command("embed", tmp_path / "none", tmp_path / "c", "--on-failure", told, "--on-success", "false")
    assert done.returncode == 2
    for number in range(3):
        (corpus / f"bad{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes([number]))
    flags = ("--space", tiny_space, "--max-bad", "1%", "--on-failure", told)
    done = command("embed", corpus, tmp_path / "c", *flags)
    assert done.returncode == 3
    refused, bad = documents(tmp_path)
    assert (refused["outcome"], refused["exit_code"], refused["report"]) == ("failure", 2, None)
    assert str(tmp_path / "none") in str(refused["error"])
    assert (bad["exit_code"], bad["error"]) == (3, "3 of 27 items are in quarantine, more than --max-bad allows")


def test_a_run_that_finds_another_at_work_tells_nobody(
    embedded: tuple[Path, object], corpus: Path, tmp_path: Path, tiny_space: Path, told: str
) -> None:
    with acquire(Folder(str(embedded[0])), "embed of another host"):
        done = command("embed", corpus, embedded[0], "--on-failure", told)
    assert done.returncode == 75, done.stderr
    assert documents(tmp_path) == []


def test_a_hook_that_cannot_be_called_is_said_before_the_run(corpus: Path, tmp_path: Path) -> None:
    done = command("embed", corpus, tmp_path / "c", "--on-success", "no-such-program-at-all --now")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--on-success: no program 'no-such-program-at-all'" in done.stderr
    assert not (tmp_path / "c").exists()


def test_a_hook_that_fails_fails_nothing_else(corpus: Path, tmp_path: Path, tiny_space: Path) -> None:
    done = command("embed", corpus, tmp_path / "c", "--space", tiny_space, "--on-success", "false")
    assert done.returncode == 0
    assert "warning: the hook false ended with 1" in done.stderr


@pytest.fixture
def web_hook() -> Iterator[ThreadingHTTPServer]:
    """A server that answers with the next of `codes`, and keeps what it was sent."""

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.server.told.append((self.path, json.loads(body)))  # type: ignore[attr-defined]
            self.send_response(self.server.codes.pop(0))  # type: ignore[attr-defined]
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Hook) as server:
        server.told, server.codes = [], []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize(
    ("codes", "posts", "said"),
    [([200], 1, None), ([503, 200], 2, None), ([404], 1, "it answers 404"), ([307], 1, "it answers 307")],
)
def test_a_web_hook_is_posted_to(web_hook: ThreadingHTTPServer, codes: list[int], posts: int, said: str | None) -> None:
    web_hook.codes = [*codes]  # type: ignore[attr-defined]
    url = f"http://127.0.0.1:{web_hook.server_port}/hook/canary?token=canary"
    check_hook(url, "--on-failure")
    line = call_hook(url, {"exit_code": 3})
    assert web_hook.told == [("/hook/canary?token=canary", {"exit_code": 3})] * posts  # type: ignore[attr-defined]
    assert (line is None) == (said is None)
    if line is not None:
        assert said in line
        assert "canary" not in line


def test_a_run_that_would_cost_too_much_is_refused(corpus: Path, tmp_path: Path, tiny_space: Path) -> None:
    (tmp_path / "gpu.yaml").write_text("pools: {image: {gpus: 1}, text: {gpus: 1}}\n")
    line = ("embed", corpus, tmp_path / "c", "--space", tiny_space, "--recipe", tmp_path / "gpu.yaml")
    done = command(*line, "--max-cost", "0.5", "--gpu-hour-price", "1000000")
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "--max-cost is 0.50" in done.stderr
    assert not (tmp_path / "c").exists()
    assert command(*line, "--max-cost", "0.5").returncode == 2
    (tmp_path / "cpu.yaml").write_text("{}")
    done = command(*line[:-1], tmp_path / "cpu.yaml", "--max-cost", "0.5", "--gpu-hour-price", "1000000")
    assert done.returncode == 0, done.stderr
