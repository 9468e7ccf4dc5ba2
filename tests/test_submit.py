"""Jobs on a cluster: `ray start --head` with a token, and the command as a user has it."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
from ray_head import Head, head
from runs import live_rows, start, wait_for

import batchproj
from batchproj import shipping
from batchproj.errors import TryLater, UsageError
from batchproj.failpoint import VARIABLE
from batchproj.job_log import RESULT, Marked, unmarked
from batchproj.job_start import wrong
from batchproj.jobs import JobState, exit_code
from batchproj.shipping import pack

TEXTS = 24


@pytest.fixture(scope="module")
def cluster(s3_endpoint: str) -> Iterator[Head]:
    """A head whose nodes reach the test's store, with credentials that no client needs; a unit takes seconds there."""
    with head({"HF_HUB_OFFLINE": "1", VARIABLE: "unit.begun:2s"}) as started:
        yield started


def batchproj_at(cluster: Head, home: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
    line = [sys.executable, "-m", "batchproj.cli", arguments[0], "--address", cluster.address, *arguments[1:]]
    return subprocess.run(
        [str(each) for each in line],
        capture_output=True,
        text=True,
        timeout=480,
        env={**inherited, **cluster.environment(home), **environment},
    )


def fill(bucket: str) -> str:
    filesystem = fsspec.filesystem("s3")
    for number in range(TEXTS):
        filesystem.pipe_file(f"{bucket}/texts/t{number}.txt", f"w{number % 14}".encode())
    return f"{bucket}/texts"


def one_by_one(folder: Path) -> Path:
    """A recipe by which a job takes a minute: a unit an item, one worker."""
    (file := folder / "small.yaml").write_text("units: {max_items: 1}\npools: {text: {workers: 1}}\n")
    return file


def one_error(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    for word in words:
        assert word in lines[0]


# --- who is let in ------------------------------------------------------------------------------


def test_without_a_token_or_with_another_nothing_is_submitted(cluster: Head, tmp_path: Path) -> None:
    job = ("submit", "--", "embed", "s3://bucket/a", "s3://bucket/c")
    one_error(batchproj_at(cluster, tmp_path, *job, RAY_AUTH_TOKEN=""), 2, "asks for a token", "RAY_AUTH_TOKEN_PATH")
    one_error(batchproj_at(cluster, tmp_path, *job, RAY_AUTH_TOKEN="0" * 64), 2, "refuses the token")
    done = batchproj_at(cluster, tmp_path, "jobs", "--json")
    assert json.loads(done.stdout) == []


def test_the_token_comes_from_a_file_as_well(cluster: Head, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(cluster.token)
    done = batchproj_at(cluster, tmp_path, "jobs", RAY_AUTH_TOKEN="", RAY_AUTH_TOKEN_PATH=str(tmp_path / "token"))
    assert (done.returncode, done.stderr) == (0, "")


def test_variables_of_ray_do_not_send_a_job_elsewhere(cluster: Head, tmp_path: Path) -> None:
    elsewhere = {"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9", "RAY_ADDRESS": "http://127.0.0.1:9"}
    assert batchproj_at(cluster, tmp_path, "jobs", **elsewhere).returncode == 0


@pytest.fixture
def false_head() -> Iterator[ThreadingHTTPServer]:
    """A server that answers as a head of an older Ray does, and counts who came with a token."""

    class Old(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.server.tokens.append(self.headers.get("Authorization"))  # type: ignore[attr-defined]
            is_let_in = self.server.is_open or self.headers.get("Authorization")  # type: ignore[attr-defined]
            self.send_response(200 if is_let_in else 401)
            self.end_headers()
            self.wfile.write(b'{"version": "4", "ray_version": "2.49.2", "ray_commit": "", "session_name": ""}')

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Old) as server:
        server.is_open, server.tokens = False, []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def as_head(server: ThreadingHTTPServer, token: str) -> Head:
    return Head(f"http://127.0.0.1:{server.server_port}", token, server.server_port, "", None)  # type: ignore[arg-type]


def test_another_ray_is_refused(false_head: ThreadingHTTPServer, tmp_path: Path) -> None:
    done = batchproj_at(as_head(false_head, "0" * 64), tmp_path, "jobs")
    one_error(done, 2, "runs Ray 2.49.2", "pip install 'ray==2.49.2'")


def test_a_cluster_that_asks_for_no_token_is_refused_and_not_told_ours(
    false_head: ThreadingHTTPServer, tmp_path: Path
) -> None:
    false_head.is_open = True  # type: ignore[attr-defined]
    done = batchproj_at(as_head(false_head, "0" * 64), tmp_path, "jobs")
    one_error(done, 2, "answers without a token", "--insecure")
    assert false_head.tokens == [None]  # type: ignore[attr-defined]
    one_error(batchproj_at(as_head(false_head, ""), tmp_path, "jobs", "--insecure"), 2, "runs Ray 2.49.2")


def test_no_head_at_all(denied_s3: str, tmp_path: Path) -> None:
    away = Head("http://127.0.0.1:9", "", 9, "", None)  # type: ignore[arg-type]
    one_error(batchproj_at(away, tmp_path, "jobs"), 75, "no Ray head answers at http://127.0.0.1:9")
    away.address = "ray://head:10001"
    one_error(batchproj_at(away, tmp_path, "jobs"), 2, "expected the URL of a Ray head")
    away.address = "http://user:canary@head:8265"
    done = batchproj_at(away, tmp_path, "jobs")
    one_error(done, 2, "has credentials in it")
    assert "canary" not in done.stderr


def test_a_head_that_speaks_no_tls(cluster: Head, tmp_path: Path) -> None:
    away = Head(cluster.address.replace("http:", "https:"), cluster.token, 0, "", None)  # type: ignore[arg-type]
    one_error(batchproj_at(away, tmp_path, "jobs"), 2, "not reached by TLS (wrong version number)", "or http://")


def test_a_job_that_is_not_there(cluster: Head, tmp_path: Path) -> None:
    for flag in ("--logs", "--stop"):
        one_error(batchproj_at(cluster, tmp_path, "jobs", flag, "raysubmit_none"), 2, "no job 'raysubmit_none'")


# --- what travels -------------------------------------------------------------------------------


def test_only_the_named_files_travel(tiny_space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, folder = tmp_path / "here", tmp_path / "job"
    here.mkdir()
    folder.mkdir()
    monkeypatch.chdir(here)
    (here / "secrets.txt").write_text("canary")
    (here / "fast.yaml").write_text("read_threads: 3\n")
    command = ["embed", "s3://b/a", "s3://b/c", "--recipe=fast.yaml", "--space", str(tiny_space)]
    named = {"source": "s3://b/a", "collection": "s3://b/c", "recipe": "fast.yaml", "space": str(tiny_space)}
    shipment = pack(command, named, folder, with_code=False)
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert files == ["job_start.py", "recipe.yaml", "space/tiny/space.yaml"]
    assert shipment.command[3:] == ["--recipe=recipe.yaml", "--space", "space/tiny/space.yaml"]
    assert (folder / "recipe.yaml").read_text() == "read_threads: 3\n"
    assert shipment.runtime_env == {"working_dir": str(folder), "env_vars": shipping.ENVIRONMENT}


def test_projectors_travel_with_their_space(tmp_path: Path) -> None:
    builtin = Path(batchproj.__file__).parent / "spaces/builtin"
    copy = tmp_path / "mine"
    copy.mkdir()
    for file in builtin.iterdir():
        if file.suffix in (".yaml", ".safetensors", ".md"):
            (copy / file.name).write_bytes(file.read_bytes())
    (folder := tmp_path / "job").mkdir()
    pack(["plan", "s3://b/a", "s3://b/c", "--space", str(copy)], {"space": str(copy)}, folder, with_code=False)
    shipped = {path.name for path in (folder / "space").rglob("*") if path.is_file()}
    assert shipped == {"space.yaml"} | {file.name for file in builtin.glob("*.safetensors")}


@pytest.mark.parametrize(
    ("named", "word"),
    [
        ({"source": "photos"}, "source 'photos' is a path on this machine"),
        ({"source": "s3://b/a", "collection": "./c"}, "collection './c'"),
        ({"out": "space"}, "out 'space'"),
    ],
)
def test_paths_of_this_machine_are_refused(named: dict[str, str], word: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=word):
        pack(["embed"], named, tmp_path, with_code=False)


def test_secrets_in_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="credentials") as caught:
        pack(["embed", "s3://key:canary@bucket/a"], {}, tmp_path, with_code=False)
    assert "canary" not in str(caught.value)


def test_a_command_is_checked_before_anything_is_asked(tmp_path: Path) -> None:
    away = Head("http://127.0.0.1:9", "", 9, "", None)  # type: ignore[arg-type]
    done = batchproj_at(away, tmp_path, "submit", "--", "embed", "s3://b/a", "s3://b/c", "--no-such-flag")
    one_error(done, 2, "no such option: --no-such-flag")
    done = batchproj_at(away, tmp_path, "submit", "embed", "s3://b/a", "s3://b/c", "--max-bad", "x")
    one_error(done, 2, "--max-bad")  # the command's own flag, without a `--` before the command as well
    one_error(batchproj_at(away, tmp_path, "submit", "--", "serve", "s3://b/c"), 2, "'serve' is not for a cluster")


def test_result_lines_are_marked() -> None:
    stream = io.StringIO()
    marked = Marked(stream)
    print("a\nb", file=marked)
    marked.write("c")
    marked.write("d\n")
    assert stream.getvalue() == f"{RESULT}a\n{RESULT}b\n{RESULT}cd\n"
    assert [unmarked(line) for line in (f"{RESULT}a\n", "b\n")] == [("a", True), ("b", False)]


def test_another_version_on_the_cluster_is_said() -> None:
    assert wrong(batchproj.__version__) is None
    assert "the job was submitted by 9.9.9" in str(wrong("9.9.9"))


@pytest.mark.parametrize(("state", "code", "expected"), [("FAILED", 3, 3), ("FAILED", -9, 137), ("STOPPED", None, 143)])
def test_the_jobs_exit_code_is_ours(state: str, code: int | None, expected: int) -> None:
    assert exit_code(JobState("j", state, "", None, None, code, "")) == expected


def test_a_job_that_never_ran_may_be_tried_again() -> None:
    with pytest.raises(TryLater, match="no room"):
        exit_code(JobState("j", "FAILED", "", None, None, None, "no room"))


# --- whole jobs ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_job_end_to_end(cluster: Head, s3_bucket: str, tiny_space: Path, tmp_path: Path) -> None:
    source, collection = fill(s3_bucket), f"{s3_bucket}/c"
    (tmp_path / "small.yaml").write_text("units: {max_items: 8}\n")
    canaries = {"AWS_SECRET_ACCESS_KEY": "canary-aws", "HF_TOKEN": "canary-hf"}
    command = ("embed", source, collection, "--space", tiny_space, "--recipe", tmp_path / "small.yaml")
    done = batchproj_at(cluster, tmp_path, "submit", "--", *command, **canaries)
    assert done.returncode == 0, done.stderr
    first, *_, last = done.stdout.splitlines()
    assert first.startswith(f"Run 000001 is live: {TEXTS} embedded")
    assert last == f"Search it: batchproj search {collection} 'what you look for'"
    job, *progress = done.stderr.splitlines()
    assert job.startswith("  job raysubmit_")
    assert "  starting workers" in progress
    assert all(line.startswith("  ") for line in progress)  # nothing of Ray's own
    assert live_rows(collection).num_rows == TEXTS

    done = batchproj_at(cluster, tmp_path, "submit", "--json", "--", "embed", source, collection, **canaries)
    document = json.loads(done.stdout)
    assert (document["exit_code"], document["result"]["unchanged"], document["result"]["commit"]) == (0, TEXTS, None)

    request = urllib.request.Request(
        f"{cluster.address}/api/jobs/", headers={"Authorization": f"Bearer {cluster.token}"}
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        told = answer.read().decode()
    assert collection in told
    for secret in (*canaries.values(), cluster.token, "AWS_"):
        assert secret not in told


@pytest.mark.slow
def test_a_jobs_failure_is_the_commands(cluster: Head, s3_bucket: str, tmp_path: Path) -> None:
    done = batchproj_at(cluster, tmp_path, "submit", "--", "embed", f"{s3_bucket}/none", f"{s3_bucket}/c")
    one_error(done, 2, f"{s3_bucket}/none")


@pytest.mark.long
def test_ctrl_c_leaves_the_job_and_stop_ends_it(
    cluster: Head, s3_bucket: str, tiny_space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = fill(s3_bucket)
    for name, value in cluster.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    at = ("--address", cluster.address)
    command = ("embed", source, f"{s3_bucket}/c", "--space", tiny_space, "--recipe", one_by_one(tmp_path))
    done = batchproj_at(cluster, tmp_path, "submit", "--no-wait", "--json", "--", *command)
    job = json.loads(done.stdout)["job"]
    following = start("jobs", *at, "--logs", job)
    assert following.stderr is not None
    assert any("listing " in line for line in following.stderr)
    following.send_signal(signal.SIGINT)
    said = following.communicate(timeout=60)[1]
    assert following.returncode == 130
    assert f"job {job} goes on: batchproj jobs --address {cluster.address} --logs {job}" in said

    stopped = json.loads(batchproj_at(cluster, tmp_path, "jobs", "--stop", job, "--json").stdout)
    assert stopped == {"job": job, "stopped": True}

    def state() -> str:
        listed = json.loads(batchproj_at(cluster, tmp_path, "jobs", "--json").stdout)
        return next(each["state"] for each in listed if each["job"] == job)

    wait_for(lambda: state() == "STOPPED")
    assert batchproj_at(cluster, tmp_path, "jobs", "--logs", job).returncode == 143


@contextlib.contextmanager
def at_a_terminal(environment: dict[str, str], *arguments: object) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A `batchproj` command that has a terminal of its own for input and errors, and our side of it."""
    ours, its = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "batchproj.cli", *map(str, arguments)],
        stdin=its,
        stdout=subprocess.DEVNULL,
        stderr=its,
        env={**os.environ, **environment},
        preexec_fn=lambda: (os.setsid(), fcntl.ioctl(0, termios.TIOCSCTTY, 0)),  # Ctrl-C goes to whose terminal it is
    )
    os.close(its)
    try:
        yield process, ours
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def shown_until(terminal: int, words: str) -> str:
    """What a terminal shows up to some words."""
    shown = ""
    deadline = time.monotonic() + 120
    while words not in shown:
        assert time.monotonic() < deadline, shown
        if select.select([terminal], [], [], 1)[0]:
            shown += os.read(terminal, 4096).decode()
    return shown


@pytest.mark.long
def test_ctrl_c_at_a_terminal_asks_whether_the_job_goes_on(
    cluster: Head, s3_bucket: str, tiny_space: Path, tmp_path: Path
) -> None:
    command = ("embed", fill(s3_bucket), f"{s3_bucket}/c", "--space", tiny_space, "--recipe", one_by_one(tmp_path))
    done = batchproj_at(cluster, tmp_path, "submit", "--no-wait", "--json", "--", *command)
    job = json.loads(done.stdout)["job"]
    follow = ("jobs", "--address", cluster.address, "--logs", job)
    for answer, said in ((b"d\n", f"job {job} goes on"), (b"c\n", f"job {job} is cancelled")):
        with at_a_terminal(cluster.environment(tmp_path), *follow) as (process, terminal):
            shown_until(terminal, "listing ")
            os.write(terminal, b"\x03")
            shown_until(terminal, "[d]etach, it goes on, or [c]ancel it?")
            assert process.poll() is None
            os.write(terminal, answer)
            shown_until(terminal, said)
            assert process.wait(60) == 130
    listed = json.loads(batchproj_at(cluster, tmp_path, "jobs", "--json").stdout)
    assert [each["state"] for each in listed if each["job"] == job] == ["STOPPED"]


@pytest.mark.long
def test_another_batchproj_on_the_cluster_unless_ours_is_shipped(
    s3_endpoint: str, s3_bucket: str, tiny_space: Path, tmp_path: Path
) -> None:
    (old := tmp_path / "old/batchproj").mkdir(parents=True)
    (old / "__init__.py").write_text('__version__ = "0.0.1"\n')
    source, collection = fill(s3_bucket), f"{s3_bucket}/c"
    command = ("embed", source, collection, "--space", tiny_space)
    with head({"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(old.parent)}) as other:
        done = batchproj_at(other, tmp_path, "submit", "--", *command)
        one_error(done, 2, "the cluster has batchproj 0.0.1", "--ship-code")
        done = batchproj_at(other, tmp_path, "submit", "--ship-code", "--", *command)
        assert done.returncode == 0, done.stderr
    assert live_rows(collection).num_rows == TEXTS
