"""Names that strangers give to objects: whatever they are, they name objects and do nothing else."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from in_process import command, run, vectors, without_ray

from batchproj.objectstore import filesystem
from batchproj.progress import RunProgress
from batchproj.terminal import json_line, printable

ESCAPE = "\x1b]0;owned\x07\x1b[2J\x1b[31m"
ANYWHERE = [
    f"{ESCAPE}.txt",
    "\x9b31m.txt",
    "\u202egnp.txt",
    "\U0001f438\U0001f468\u200d\U0001f469\u200d\U0001f467.txt",
    "=cmd|'x'!A0.txt",
    "+1.txt",
    "@SUM(1).txt",
    "-rf",
    "$(touch x);`touch y`.txt",
    "simplecache::a.txt",
    "https:::a.txt",
    "a?X=1#b.txt",
    "%2e%2e%2fa.txt",
    "..a.txt",
    "...",
    " .txt",
    "[!a]*.txt",
    "a'b\"c.txt",
    "~.txt",
]
IN_A_FOLDER = ["a\nb.txt", "a\r\n.txt", "e" * 251 + ".txt"]
"""Beside them. The store of the tests takes no line breaks; others do."""
IN_A_STORE = ["../x.txt", "a/../../x.txt", "./a.txt", "//a.txt", "nul\0.txt", "d/" + "e" * 1_020]
"""Names that no file can have; the last one makes a key of 1,024 bytes."""


@pytest.fixture(autouse=True)
def _no_ray() -> Iterator[None]:
    with without_ray():
        yield


def check_commands(source: str, collection: str, uris: set[str]) -> None:
    """Every command that shows names shows them without control characters, and as JSON the very names."""
    shown = command("search", collection, "w1 w2", "-k", "100")
    assert shown.returncode == 0, shown.stderr
    told = json.loads(command("search", collection, "w1 w2", "-k", "100", "--json").stdout)
    assert {hit["uri"] for hit in told} == uris
    for done in (
        shown,
        command("search", collection, "w1 w2", "-k", "100", "--json"),
        command("plan", source, collection),
        command("explain", collection, next(uri for uri in uris if "31m" in uri)),
        command("explain", collection, f"{source}/{ESCAPE}"),
        command("runs", collection),
        command("verify", collection),
    ):
        for line in [*done.stdout.split("\n"), *done.stderr.split("\n")]:
            assert line.isprintable(), line


def test_any_name_of_a_file(tmp_path: Path, tiny_space: Path) -> None:
    source = tmp_path / "s"
    source.mkdir()
    names = [*ANYWHERE, *IN_A_FOLDER]
    for name in names:
        (source / name).write_text("w1 w2")
    Path(os.fsdecode(os.fsencode(source) + b"/caf\xe9.txt")).write_text("w1")
    report = run(source, tmp_path / "c", tiny_space)
    assert (report.embedded, report.quarantined) == (len(names), 1)  # what is not UTF-8 cannot be written down
    uris = {f"file://{source}/{name}" for name in names}
    assert vectors(tmp_path / "c").keys() == uris
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "s"]
    check_commands(str(source), str(tmp_path / "c"), uris)
    assert run(source, tmp_path / "c", tiny_space).commit is None


def test_any_name_of_an_object(s3_bucket: str, tmp_path: Path, tiny_space: Path) -> None:
    fs, bucket = filesystem(s3_bucket)
    names = [*ANYWHERE, *IN_A_STORE]
    for name in names:
        fs.call_s3("put_object", Bucket=bucket, Key=f"s/{name}", Body=b"w1 w2")
    fs.call_s3("put_object", Bucket=bucket, Key="x.txt", Body=b"w9 w9")
    report = run(f"{s3_bucket}/s", tmp_path / "c", tiny_space)
    assert (report.items, report.embedded) == (len(names), len(names))
    uris = {f"{s3_bucket}/s/{name}" for name in names}
    found = vectors(tmp_path / "c")
    assert found.keys() == uris
    assert len(set(found.values())) == 1  # none of them led to another object
    check_commands(f"{s3_bucket}/s", str(tmp_path / "c"), uris)


def test_what_a_table_says_of_itself_is_escaped(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({f"{ESCAPE}\x9b": 1}) + "\n")
    done = command("embed", tmp_path / "t.jsonl", tmp_path / "c")
    assert done.returncode == 2
    assert "its columns are \\x1b]0;owned" in done.stderr
    assert done.stderr.strip().isprintable()


def test_progress_lines_are_escaped() -> None:
    stream = io.StringIO()
    with RunProgress(stream) as progress:
        progress.step(f"warning: {ESCAPE} is named as JPEG")
    assert "\x1b" not in stream.getvalue()
    assert "\\x1b]0;owned" in stream.getvalue()


def test_nothing_is_lost_by_escaping() -> None:
    text = "frog \U0001f438 \u202e \ud800 \x9b \U000e0041 \n"
    assert json.loads(json_line([text])) == [text]
    assert json_line([text]).isprintable()
    assert printable(text) == "frog \U0001f438 \\u202e \\ud800 \\x9b \\U000e0041 \\x0a"
