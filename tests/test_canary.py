"""Secrets go nowhere: each is a bird that is looked for wherever a run leaves something."""

from __future__ import annotations

import http.server
import io
import json
import logging
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from in_process import command
from proxy import S3FileSystem
from runs import descendants, start
from table_files import listed, write

from batchproj.collection import layout
from batchproj.credentials import has_credentials, masked
from batchproj.objectstore import Folder
from batchproj.source.reading import read_items

CANARY = "CANARYbird"
SECRETS = {
    "AWS_SECRET_ACCESS_KEY": f"{CANARY}/key+0",
    "AWS_SESSION_TOKEN": f"{CANARY}-token",
    "HF_TOKEN": f"hf_{CANARY}",
}
BIRDS = re.compile(CANARY.encode())


@pytest.fixture
def secrets(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()
    yield
    S3FileSystem.clear_instance_cache()


@pytest.fixture
def debug_log() -> Iterator[io.StringIO]:
    """What a root logger at DEBUG gets."""
    heard, root = io.StringIO(), logging.getLogger()
    handler, level = logging.StreamHandler(heard), root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield heard
    root.removeHandler(handler)
    root.setLevel(level)


def check_folder(uri: str) -> list[str]:
    """Names of the files there; none has a bird in it, as it is stored and, of tables, when it is read."""
    folder = Folder(uri)
    names = [name for name, _ in folder.files()]
    for name in names:
        data = folder.read(name)
        assert not BIRDS.search(data), name
        if name.endswith(".parquet"):
            table = pq.read_table(io.BytesIO(data))
            assert CANARY not in f"{table.schema} {table.schema.metadata} {table.to_pylist()}", name
    return names


def test_secrets_of_the_environment_are_nowhere(
    secrets: None,
    s3_bucket: str,
    tiny_space: Path,
    tmp_path: Path,
    debug_log: io.StringIO,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    source, collection = f"{s3_bucket}/s", f"{s3_bucket}/c"
    for number in range(6):
        Folder(source).write(f"{number}.txt", f"w{number} w3".encode())
    Folder(source).write("bad.txt", b"")
    hub = tmp_path / "hub.yaml"
    hub.write_text("name: s\ndim: 24\ntext: {encoder: {kind: text, model: nobody/no-such-model}}\n")
    runs = [
        ("plan", source, collection, "--space", tiny_space),
        ("embed", source, collection, "--space", tiny_space),
        ("embed", source, collection),
        ("plan", source, collection, "--json"),
        ("search", collection, "w1"),
        ("runs", collection, "--json"),
        ("verify", collection),
        ("explain", collection, f"{source}/1.txt"),
        ("explain", collection, f"{source}/bad.txt", "--json"),
        ("embed", "s3://no-such-bucket-here/s", collection),
        ("embed", source, f"{s3_bucket}/c2", "--space", hub),
        ("embed", source, f"{s3_bucket}/c2", "--space", "s3://no-such-bucket-here/space.yaml"),
    ]
    codes = []
    for number, arguments in enumerate(runs):
        done = command(*arguments, *(["--verbose"] if number % 2 else []))
        codes.append(done.returncode)
        assert CANARY not in done.stdout + done.stderr
    assert codes == [0] * 9 + [2] * 3
    monkeypatch.setattr("batchproj.search.Collection.search", lambda *_, **__: 1 / 0)
    broken = [command("search", collection, "w1"), command("search", collection, "w1", "--verbose")]
    assert [done.returncode for done in broken] == [1, 1]
    assert "ZeroDivisionError" in broken[1].stderr
    kept = [file.read_text() for file in (tmp_path / "tmp").glob("batchproj-*.txt")]
    assert len(kept) == 1
    assert CANARY not in "".join(kept) + "".join(done.stderr for done in broken)
    heard = debug_log.getvalue()
    assert len(heard) > 10_000
    assert CANARY not in heard
    shown = capfd.readouterr()
    assert CANARY not in shown.out + shown.err
    names = check_folder(collection)
    assert {"runs/000001.json", "lock.json"} <= set(names)
    assert any(name.startswith("vectors.lance/") for name in names)
    check_folder(source)


URLS = [
    f"https://user:{CANARY}@127.0.0.1:9/a/t.jsonl",
    f"https://{CANARY}@127.0.0.1:9/a",
    f"s3://key:{CANARY}@bucket/a",
    f"http://127.0.0.1:9/t.jsonl?X-Amz-Algorithm=a&X-Amz-Credential=b&X-Amz-Signature={CANARY}",
    f"https://127.0.0.1:9/t.csv?sv=1&sig={CANARY}",
    f"https://127.0.0.1:9/t.tar?x-goog-signature={CANARY}#a",
    f"https://127.0.0.1:9/t.parquet?access_token={CANARY}",
    f"simplecache::https://user:{CANARY}@127.0.0.1:9/a",
    f"sftp://user:{CANARY}@127.0.0.1/a",
]
MORE_URLS = [
    f"s3://AKIA:se/{CANARY}@bucket/x",  # of the secrets that AWS gives out nearly half hold a slash
    f"gs://me:se/{CANARY}?#@bucket/x@y",
    f"s3://AKIA:{CANARY}",
    f"S3://AKIA:{CANARY}@bucket/x",
    f"HTTPS://h/a?token={CANARY}",
    f" https://h/a?token={CANARY}",
    f"HTTPS://user:{CANARY}@h/a",
    f"zip://a.txt::https://user:{CANARY}@h/a",
    f"https://user:p::{CANARY}@h/a",
    f"https://h/a?from=b?token={CANARY}?{CANARY};{CANARY}",
    f"https://h/a?%74oken={CANARY}",
    f"https://h/a;sig={CANARY}#b",
    f"https://h/a#access_token={CANARY}",
    *(f"https://h/a?b=c&{name}={CANARY}" for name in ("sasToken", "X-Amz-Security-Token", "Signature", "hdnts_token")),
    *(f"https://h/a?{name}={CANARY}" for name in ("api_key", "apikey", "api-key", "client_secret", "db-password")),
]


@pytest.mark.parametrize("url", URLS)
def test_a_url_with_a_secret_in_it_is_refused_and_not_shown(url: str, tmp_path: Path, tiny_space: Path) -> None:
    assert has_credentials(url)
    (tmp_path / "s").mkdir()
    (tmp_path / "s/a.txt").write_text("w1")
    recipe, space = tmp_path / "recipe.yaml", tmp_path / "space.yaml"
    recipe.write_text(json.dumps({"roots": [url]}))
    space.write_text(json.dumps({"name": "s", "dim": 24, "text": {"encoder": {"kind": "text", "model": url}}}))
    table = write(tmp_path / "t.jsonl", [{"uri": "s/a.txt"}])
    here = (tmp_path / "s", tmp_path / "c", "--space")
    for arguments in [
        ("embed", url, tmp_path / "c", "--space", tiny_space),
        ("embed", tmp_path / "s", url, "--space", tiny_space),
        ("plan", url, tmp_path / "c", "--space", tiny_space),
        ("embed", *here, url),
        ("embed", *here, space),
        ("embed", *here, tiny_space, "--recipe", url),
        ("embed", table, tmp_path / "c", "--space", tiny_space, "--recipe", recipe),
        ("search", url, "w1"),
        ("runs", url),
        ("verify", url),
        ("explain", url, "a"),
    ]:
        done = command(*arguments)
        assert done.returncode == 2, arguments
        assert CANARY not in done.stdout + done.stderr
        assert "has credentials in it" in done.stderr, arguments
    assert not (tmp_path / "c").exists()


def test_what_is_no_secret_is_let_pass() -> None:
    for url in (
        "/home/me/a@b?token=c",
        "file:///home/me@work/?sig=1.txt",
        "s3://bucket/a@b:c/d?sig=1",
        "https://host/a@b/c.csv?page=2&keyword=frog",
        "hf://datasets/me/frogs@main/t.parquet",
        "github://org:repo@main/t.csv",
        "abfs://container@account.dfs.core.windows.net/a",
        "sftp://me@host/a",
        "gs://bucket/a",
        "s3://arn:aws:s3:us-west-2:123456789012:accesspoint/name/a@b",
        "s3://bucket/a?token=b",
        "https://h/get?key=frog.jpg",
        "https://h/a?auth=no#key=1",
        "https://h/a?page_token=3&next-token=4&continuation-token=5&nextPageToken=6&next_page_token=7",
        "https://h/a?tokens=1&tokenizer=2&design=3&secretary=4&token=",
    ):
        assert masked(url) == url
    assert masked("https://u:p@host/a?X-Amz-Signature=b&c=d") == "https://***@host/a?X-Amz-Signature=***&c=d"


@pytest.mark.parametrize("url", MORE_URLS)
def test_no_secret_is_shown(url: str) -> None:
    assert has_credentials(url)
    assert CANARY not in masked(url)
    assert not has_credentials(masked(url))


@pytest.mark.parametrize("begun", ["https://h/", "s3://b/", "a"])
@pytest.mark.parametrize("piece", ["?", "&", "?a=", "?token=", "::", "::a", "::s3://a:b/", "@", "a/", "token"])
def test_a_url_is_looked_through_in_time_that_grows_as_it_does(begun: str, piece: str) -> None:
    url = begun + piece * (400_000 // len(piece))
    begun_s = time.process_time()
    masked(url)
    assert time.process_time() - begun_s < 2


def test_a_row_with_a_signed_url_is_quarantined_without_it(tmp_path: Path) -> None:
    write(tmp_path / "t.jsonl", [{"uri": f"x.txt?X-Amz-Signature={CANARY}"}, *({"uri": url} for url in URLS)])
    handler = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *given: handler(*given, directory=tmp_path)
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        rows = listed(f"http://127.0.0.1:{server.server_port}/t.jsonl")
        server.shutdown()
    assert CANARY not in json.dumps(rows)
    reasons = [str(getattr(fault, "reason", "")) for fault in read_items(rows, 1000, 2)]
    assert reasons == ["bad_row" if "simplecache" not in url else "outside_roots" for url in ["", *URLS]]


@pytest.mark.slow
def test_no_process_and_no_log_of_ray_has_a_secret(
    secrets: None, s3_bucket: str, tiny_space: Path, tmp_path: Path
) -> None:
    """One real run: command lines of all its processes, what it prints, and all that Ray writes down."""
    for number in range(4):
        Folder(f"{s3_bucket}/s").write(f"{number}.txt", f"w{number} w3".encode())
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as ray_tmp:  # short: Ray puts sockets there
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text("pools: {text: {workers: 1}}")  # so few texts would be done without Ray
        environment = {"RAY_TMPDIR": ray_tmp, "RAY_BACKEND_LOG_LEVEL": "debug"}
        process = start(
            *("embed", f"{s3_bucket}/s", f"{s3_bucket}/c", "--space", tiny_space, "--recipe", recipe, "--verbose"),
            environment=environment,
        )
        lines: set[str] = set()
        while process.poll() is None:
            lines |= {*descendants(process.pid).values(), Path(f"/proc/{process.pid}/cmdline").read_text()}
            time.sleep(0.5)
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert any("raylet" in line for line in lines)
        assert CANARY not in "".join(lines) + out + err
        logs = [file for file in Path(ray_tmp).rglob("*") if file.is_file() and not file.is_symlink()]
        assert len(logs) > 10
        assert [file for file in logs if BIRDS.search(file.read_bytes())] == []
    assert layout.ledger("000001") in check_folder(f"{s3_bucket}/c")
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == SECRETS["AWS_SECRET_ACCESS_KEY"]
