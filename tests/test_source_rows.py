"""Single rows of tables: what one may name, what is wrong with one, how it is read and found."""

from __future__ import annotations

import functools
import http.server
import json
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_picture
from in_process import OPTIONS, command, run, without_ray
from runs import live_rows
from table_files import KINDS, Row, encoded, listed, live, quarantined, rows, words, write

import batchproj
from batchproj import objectstore
from batchproj.embed import Options
from batchproj.errors import ItemFault, SourceError, UsageError
from batchproj.explain import explain
from batchproj.objectstore import head
from batchproj.schema import Reason
from batchproj.source import csv, jsonl, pinned, reading
from batchproj.source.listing import Seal, list_items
from batchproj.source.roots import Roots


@pytest.fixture(autouse=True)
def _no_ray() -> Iterator[None]:
    with without_ray():
        yield


def test_objects_that_rows_name_are_looked_up_at_once_and_again_when_the_store_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(8, timeout=20)
    head, failed = objectstore.reading._head, set()

    def slow(fs: object, path: str) -> tuple[int, str]:
        if path not in failed:
            failed.add(path)
            together.wait()
            raise ConnectionResetError("cut")
        return head(fs, path)

    for number in range(8):
        write_picture(tmp_path / f"{number}.png", number)
    source = write(tmp_path / "t.csv", [{"uri": f"{number}.png"} for number in range(8)])
    monkeypatch.setattr(objectstore.reading, "_head", slow)
    sizes = [row["size"] for row in listed(source)]
    assert sizes == [(tmp_path / f"{number}.png").stat().st_size for number in range(8)]
    assert len(failed) == 8


HOSTILE = [
    "file:///etc/passwd",
    "/etc/passwd",
    "../outside.txt",
    "a/../../outside.txt",
    "simplecache::file:///etc/passwd",
    "filecache::s3://bucket/key",
    "http://127.0.0.1:9/latest/meta-data",
    "s3://elsewhere/key",
    "file://../etc/passwd",
    "",
    "a\0b",
    "link.txt",
    "c/units/x",
]


def test_a_row_opens_nothing_outside_its_roots(tmp_path: Path, tiny_space: Path, reads: Counter[str]) -> None:
    (tmp_path / "outside.txt").write_text("w1 w2")
    (tmp_path / "s/c").mkdir(parents=True)
    (tmp_path / "s/link.txt").symlink_to("/etc/passwd")
    (tmp_path / "s/fine.txt").write_text("w3 w4")
    source = write(tmp_path / "s/t.jsonl", [{"uri": uri} for uri in [*HOSTILE, "fine.txt", "missing.txt"]])
    report = run(source, tmp_path / "s/c", tiny_space)
    assert (report.embedded, report.quarantined) == (1, len(HOSTILE) + 1)
    reasons = {uri: text.partition(":")[0] for uri, text in quarantined(tmp_path / "s/c", report).items()}
    assert set(reasons.values()) == {"outside_roots", "missing"}
    assert reasons[f"row={len(HOSTILE) + 2}"] == "missing"
    assert set(reads) == {f"file://{tmp_path}/s/fine.txt"}
    assert run(source, tmp_path / "s/c", tiny_space).commit is None


@pytest.mark.parametrize("swapped", ["a/o.txt", "a"])
def test_a_link_that_is_put_in_the_way_after_the_listing_is_not_followed(swapped: str, tmp_path: Path) -> None:
    for folder, text in (("s/a", "w1"), ("outside", "w2")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "o.txt").write_text(text)
        os.utime(tmp_path / folder / "o.txt", (0, 0))  # of one size and time: by its version it is the same
    found = listed(write(tmp_path / "s/t.csv", [{"uri": "a/o.txt"}]))
    (tmp_path / "s" / swapped).rename(tmp_path / "s/aside")
    (tmp_path / "s" / swapped).symlink_to(tmp_path / swapped.replace("a", "outside", 1))
    (read,) = reading.read_items(found, 1000, 2)
    assert str(read) == "changed: a link is in its path since it was listed"


@pytest.mark.parametrize("name", ["a/" * 500_000, "https://h/" + "?" * 500_000, "x" * 8_193])
def test_a_name_that_no_object_has_is_refused_unseen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchproj.source.roots.masked", None)
    monkeypatch.setattr("batchproj.source.roots.has_credentials", None)
    with pytest.raises(ItemFault) as found:
        Roots("file:///t", (), "file:///c").resolve(name)
    assert found.value.reason is Reason.BAD_ROW
    assert found.value.detail == f"the uri has {len(name):,} characters, expected at most 8,192"


def test_what_is_wrong_with_a_row_is_told_in_few_words(tmp_path: Path) -> None:
    long = ["n" * 8_000, "n/" * 4_000, "../" + "n" * 8_000, "s3://a:b@" + "n" * 8_000, "/" + "n" * 200_000]
    lines = [json.dumps({"uri": uri}) for uri in long]
    twice = json.dumps("n" * 10_000)
    lines.append(f"{{{twice}: 1, {twice}: 2}}")
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    faults = reading.read_items(listed(tmp_path / "t.jsonl"), 1000, 2)
    for fault in faults:
        assert isinstance(fault, ItemFault)
        assert len(fault.detail) <= 300
    ends = [str(fault)[-25:] for fault in faults]
    assert [end.rpartition(" ")[2] for end in ends[2:]] == ["it", "out", "8,192", "twice"]


def test_real_paths_are_asked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a network's file system each costs as many requests as a path has parts."""
    for number in range(4):
        (tmp_path / f"s/{number}.txt").parent.mkdir(exist_ok=True)
        (tmp_path / f"s/{number}.txt").write_text("w1")
    write(tmp_path / "s/t.csv", [{"uri": f"{number}.txt"} for number in range(4)])
    asked: Counter[str] = Counter()
    real = os.path.realpath

    def counted(path: str) -> str:
        asked[path] += 1
        return real(path)

    monkeypatch.setattr("batchproj.source.roots.os.path.realpath", counted)
    assert len(listed(tmp_path / "s/t.csv")) == 4
    assert set(asked.values()) == {1}


def test_a_key_that_is_there_twice_is_found_at_once() -> None:
    pairs = [(str(number), 0) for number in range(300_000)]
    begun = time.process_time()
    with pytest.raises(ValueError, match="key '299999' is there twice"):
        jsonl._unambiguous([*pairs, pairs[-1]])
    assert time.process_time() - begun < 5


def test_links_inside_the_roots_are_followed(tmp_path: Path) -> None:
    (tmp_path / "disk/real").mkdir(parents=True)
    (tmp_path / "disk/real/o.txt").write_text("w1")
    (tmp_path / "disk/a").symlink_to("real")
    (tmp_path / "mount").symlink_to("disk")
    source = write(tmp_path / "mount/t.csv", [{"uri": "a/o.txt"}, {"uri": "real/o.txt"}])
    found = listed(source)
    assert [row["uri"] for row in found] == [f"file://{source.parent}/{name}/o.txt" for name in ("a", "real")]
    assert reading.read_items(found, 1000, 2) == [b"w1", b"w1"]


def test_other_roots_are_declared_by_the_recipe(tmp_path: Path, tiny_space: Path) -> None:
    write_picture(tmp_path / "elsewhere/0.png", 0)
    source = write(tmp_path / "s/t.csv", [{"uri": f"{tmp_path}/elsewhere/0.png"}])
    assert run(source, tmp_path / "c", tiny_space).quarantined == 1
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"roots: [{tmp_path}/elsewhere]\n")
    done = command("embed", source, tmp_path / "c", "--space", tiny_space, "--recipe", recipe, "--json")
    assert json.loads(done.stdout)["embedded"] == 1
    # a recipe that was left out, or a bucket that is away, is more likely than a corpus that is gone
    refused = command("embed", source, tmp_path / "c")
    assert refused.returncode == 2
    assert "1 rows name objects that are gone or below no root of the recipe" in " ".join(refused.stderr.split())
    write(source, [{"uri": "https://h/0.png?sig=x"}])  # what was no secret to an older version may be one now
    refused = command("embed", source, tmp_path / "c", "--recipe", recipe)
    assert (refused.returncode, "or are bad_row now" in " ".join(refused.stderr.split())) == (2, True)
    assert live_rows(tmp_path / "c").num_rows == 1
    report = run(source, tmp_path / "c", tiny_space, Options(OPTIONS.recipe, allow_mass_delete=True))
    assert (report.quarantined, report.rows) == (1, 0)


def test_broken_lines_are_rows_and_their_neighbours_do_not_notice(tmp_path: Path, tiny_space: Path) -> None:
    good = [json.dumps({"text": words(n), "n": n}).encode() for n in range(8)]
    bad = [
        b'{"text": "w1 w2"',
        b'["w1"]',
        b'{"text": "half \\ud800 a pair"}',
        b'{"text": "w1", "pair": "\\udc00"}',
        b'{"text": "w1 \\u0000 w2"}',
        b'{"text": "caf\xe9"}',
        b'{"text": true}',
        b'{"n": 1}',
        b'{"text": "w1 w2", "note": "' + b"x" * 10_000_000 + b'"}',
        b"[" * 100_000,
        b'{"text": "w1", "deep": ' + b"[" * 600 + b"]" * 600 + b"}",
    ]
    lines = [*good[:6], bad[0], *good[6:], b"", *bad[1:]]
    (tmp_path / "t.jsonl").write_bytes(b"\n".join(lines))
    report = run(tmp_path / "t.jsonl", tmp_path / "c", tiny_space)
    found = quarantined(tmp_path / "c", report)
    assert found["row=7"].startswith("bad_row: line 7 is not JSON")
    assert found["row=11"] == "bad_row: line 11 is no JSON object but list"
    assert found["row=12"].startswith("invalid_utf8")
    assert found["row=13"].startswith("invalid_utf8")
    assert found["row=14"].startswith("corrupt: NUL")
    assert found["row=15"].startswith("invalid_utf8: line 15")
    assert found["row=16"] == "bad_row: the column text has a bool, expected text"
    assert found["row=17"].startswith("bad_row: no value")
    assert found["row=19"].startswith("bad_row: line 19 is not JSON")
    assert found["row=18"].startswith("too_large: 10000")
    assert found["row=20"] == "bad_row: its metadata are nested too deeply"
    assert {f"row={number}" for number in (*range(1, 7), 8, 9)} <= live(tmp_path / "c").keys()
    assert run(tmp_path / "t.jsonl", tmp_path / "c", tiny_space).commit is None


ODD = {
    "day": pa.array([1, 10**7, 2], pa.date32()),
    "second": pa.array([1, 10**15, 2], pa.timestamp("s")),
    "length": pa.array([1, 2**62, 2], pa.duration("s")),
    "zone": pa.array([None, 1, None], pa.timestamp("s", "Nowhere/Land")),
}


@pytest.mark.parametrize("column", ODD)
def test_a_value_that_python_cannot_hold_is_a_bad_row_and_no_end(column: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["w1", "w2", "w3"], column: ODD[column]}), tmp_path / "t.parquet")
    found = reading.read_items(listed(tmp_path / "t.parquet"), 1000, 2)
    assert (found[0], found[2]) == (b"w1", b"w3")
    assert isinstance(found[1], ItemFault)
    assert (found[1].reason, found[1].detail[:33]) == ("bad_row", "a value of the row cannot be read")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (
            "t.jsonl",
            b'{"title": "a", "n": 1}\n',
            r"has no column uri, text or bytes to embed; its columns are title, n",
        ),
        ("t.csv", b"title,n\na,1\n", r"has no column uri, text or bytes"),
        ("t.csv", b"text,text\na,b\n", "names a column twice"),
        ("t.csv", b'text,n\n"a,1\nb,2\n', "a quote in the row at line 2 is never closed"),
        ("t.parquet", b"PAR1 nothing of the kind", "is no sound Parquet file"),
        (
            "t.jsonl",
            b'{"id": "a", "text": "w1"}\n\n{"id": "a", "text": "w2"}\n',
            r"#id=a is there twice, in rows 1 and 3",
        ),
        ("t.lance", b"", "no Lance table at"),
    ],
)
def test_a_table_that_cannot_be_meant_is_one_line(name: str, data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    done = command("embed", tmp_path / name, tmp_path / "c")
    assert done.returncode == 2
    assert re.search(message, done.stderr), done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "c").exists()


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table([["w1"], ["w2"]], ["text", "text"]), tmp_path / "t.parquet")
    with pytest.raises(SourceError, match="has two columns text"):
        listed(tmp_path / "t.parquet")


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_line_that_is_too_long_is_passed_over(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: dict[str, Any] = {"csv": csv, "jsonl": jsonl}
    monkeypatch.setattr(kinds[kind], "LINE_BYTES", 1000)
    table = head(write(tmp_path / f"t.{kind}", [{"text": "w1"}, {"text": "w2 " * 1000}, {"text": "w3"}]).as_uri())
    found = [record.values for record in kinds[kind].records(table, pinned.open_pinned(table))]
    assert (found[0], found[2]) == ({"text": "w1"}, {"text": "w3"})
    assert str(found[1]).endswith("is longer than 1000 bytes")


def test_a_row_in_quarantine_takes_its_new_metadata_along(tmp_path: Path, tiny_space: Path) -> None:
    table = [{"id": str(n), "text": words(n) if n else "  ", "note": "old"} for n in range(4)]
    source = write(tmp_path / "t.jsonl", table)
    run(source, tmp_path / "c", tiny_space)
    write(source, [{**row, "note": "new"} for row in table])
    assert run(source, tmp_path / "c", tiny_space).quarantined == 1
    notes = {explain(str(tmp_path / "c"), f"{source}#id={n}").metadata for n in range(4)}
    assert notes == {'{"note":"new"}'}


def test_the_whole_disk_may_be_a_root() -> None:
    assert Roots("s3://b/t", ["/"], "file:///c").resolve("/etc/hosts").uri == "file:///etc/hosts"
    with pytest.raises(ItemFault):
        Roots("s3://b/t", ["/"], "file:///c").resolve("s3://other/x")


def test_metadata_fields_filter_a_search_exactly(tmp_path: Path, tiny_space: Path) -> None:
    table: list[Row] = [
        {"text": words(0), "colour": "red", "n": 3, "ok": True},
        {"text": words(1), "colour": "red herring", "n": 30},
        {"text": words(2), "inside": {"colour": "red", "n": 3, "list": [{"colour": "red"}]}},
        {"text": words(3), "colour": 'x","colour":"red', "n": 3.0, "ok": False},
        {"text": words(4), 'my","colour': "red", "colour'": "red", "n": "3"},
        {"text": words(5), "colour": "it's; DROP TABLE", "ö%_": "ä"},
        {"text": words(6), "colour": None, "modality": "fruit"},
    ]
    run(write(tmp_path / "t.jsonl", table), tmp_path / "c", tiny_space)
    collection = batchproj.open(str(tmp_path / "c"))

    def found(*where: str) -> set[int]:
        hits = collection.search("w1", where=where, k=100)
        return {int(hit.uri.rpartition("=")[2]) for hit in hits}

    assert found("colour=red") == {1}
    assert found("metadata.colour=red") == {1}
    shown = command("search", tmp_path / "c", "w1", "--where", "ok=false").stdout
    assert re.search(r'text +metadata *\n.* colour=x","colour":"red n=3.0 ok=false', shown), shown
    as_json = json.loads(command("search", tmp_path / "c", "w1", "--where", "ok=false", "--json").stdout)
    assert "metadata" not in as_json[0]  # its keys are the contract's
    assert found("n=3") == {1, 4, 5}
    assert found("n=3.0") == {1, 4}
    assert found("n=30") == {2}
    assert found("ok=true") == {1}
    assert found("ok=false") == {4}
    assert found("colour=it's; DROP TABLE") == {6}
    assert found("ö%_=ä") == {6}
    assert found("colour'=red") == {5}
    assert found("colour=red' OR 1=1") == set()
    assert found("metadata.modality=fruit") == {7}
    assert found("modality=text", "colour=red") == {1}
    with pytest.raises(UsageError, match="there is no column 'color', and no row has it in its metadata"):
        found("color=red")
    with pytest.raises(UsageError, match="there is no column 'list'"):
        found("list=red")
    with pytest.raises(UsageError, match="COLUMN=VALUE"):
        found("colour")


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_that_is_written_while_it_is_read_gives_no_wrong_rows(kind: str, tmp_path: Path) -> None:
    source = write(tmp_path / f"t.{kind}", rows(12))
    found = listed(source)
    assert [data.decode() for data in reading.read_items(found, 1000, 2)] == [words(n) for n in range(12)]
    write(source, [{"id": f"r{n}", "text": words(n + 1), "colour": "red"} for n in range(9)])
    faults = reading.read_items(found, 1000, 2)
    assert {str(getattr(fault, "reason", None)) for fault in faults} == {"changed"}
    source.unlink()
    assert {str(fault.reason) for fault in reading.read_items(found, 1000, 2)} == {"changed"}


def test_only_the_row_groups_that_are_needed_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    payloads = [np.random.default_rng(n).bytes(100_000) for n in range(12)]
    write(tmp_path / "t.parquet", [{"bytes": data, "other": data} for data in payloads])  # 4 rows a group
    found = listed(tmp_path / "t.parquet")
    amount = 0
    read_range = pinned.read_range

    def counting(uri: str, start: int, length: int, *version: str) -> bytes:
        nonlocal amount
        amount += length
        return read_range(uri, start, length, *version)

    monkeypatch.setattr(pinned, "read_range", counting)
    assert reading.read_items([found[5], found[6]], 1_000_000, 2) == [payloads[5], payloads[6]]
    assert amount < 600_000  # a group's column has 400 kB, the file 2.4 MB


def test_lines_close_to_each_other_are_read_by_one_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "t.jsonl", rows(100))
    found = listed(source)
    asked: list[int] = []
    read_range = reading.read_range
    monkeypatch.setattr(reading, "read_range", lambda *a: asked.append(a[2]) or read_range(*a))
    assert len(reading.read_items(found, 1000, 2)) == 100
    assert len(asked) == 1


def test_a_table_may_lie_behind_any_url_that_fsspec_opens(tmp_path: Path) -> None:
    write(tmp_path / "t.jsonl", [*rows(3), {"id": "o", "uri": "o.txt"}, {"id": "p", "uri": "a/%2e%2e/o.txt"}])
    (tmp_path / "o.txt").write_text("w1 w2")
    handler = functools.partial(Quiet, directory=tmp_path)  # knows no ranges
    memory = fsspec.filesystem("memory")
    for file in tmp_path.iterdir():
        memory.pipe(f"/rows/{file.name}", file.read_bytes())
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for source in (f"http://127.0.0.1:{server.server_port}/t.jsonl", "memory://rows/t.jsonl"):
            found = [
                r for page in list_items(source, "file:///c") if not isinstance(page, Seal) for r in page.to_pylist()
            ]
            read = reading.read_items(found, 1000, 2)
            assert read[:4] == [*(words(n).encode() for n in range(3)), b"w1 w2"]
            assert found[3]["uri"].endswith("/o.txt")
            if source.startswith("http"):
                assert isinstance(read[4], ItemFault)
                assert read[4].reason == "outside_roots"
        server.shutdown()


@pytest.mark.parametrize("tells", [True, False])
def test_a_table_that_is_written_again_is_read_again_where_a_server_has_no_etags(tells: bool, tmp_path: Path) -> None:
    source = write(tmp_path / "t.csv", [{"text": "w1 w2"}])

    class Telling(Quiet):
        def send_header(self, keyword: str, value: str) -> None:
            if tells or keyword != "Last-Modified":
                super().send_header(keyword, value)

    handler = functools.partial(Telling, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        uri = f"http://127.0.0.1:{server.server_port}/t.csv"
        sealed = {page.key: page.digest for page in list_items(uri, "file:///c") if isinstance(page, Seal)}
        same = [page.unread for page in list_items(uri, "file:///c", (), sealed) if isinstance(page, Seal)]
        write(source, [{"text": "w3 w4"}])
        os.utime(source, (0, 0))
        again = [page.unread for page in list_items(uri, "file:///c", (), sealed) if isinstance(page, Seal)]
        server.shutdown()
    assert (same, again) == ([tells], [False])


def test_a_redirect_leads_no_row_out_of_its_roots(tmp_path: Path) -> None:
    write(tmp_path / "t.jsonl", [{"id": "o", "uri": "o.txt"}, {"id": "away", "uri": "away.txt"}])
    (tmp_path / "o.txt").write_text("w1 w2")
    (tmp_path / "secret.txt").write_text("w3")
    asked = []

    class Redirecting(Quiet):
        def send_head(self) -> Any:
            asked.append(self.path)
            if self.path not in away:
                return super().send_head()
            self.send_response(302)
            self.send_header("Location", "/secret.txt")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None

    away = ["/away.txt"]
    handler = functools.partial(Redirecting, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found = listed(f"http://127.0.0.1:{server.server_port}/t.jsonl")
        away = ["/away.txt", "/o.txt"]  # since it was listed
        read = reading.read_items(found, 1000, 2)
        server.shutdown()
    assert [str(getattr(fault, "reason", "")) for fault in read] == ["outside_roots", "outside_roots"]
    assert "/secret.txt" not in asked


def test_a_large_table_on_a_server_that_knows_no_ranges_is_one_line(tmp_path: Path) -> None:
    write(tmp_path / "t.csv", [{"text": "w1 " * 50} for _ in range(80_000)])
    handler = functools.partial(Quiet, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(SourceError, match="its server serves no ranges"):
            listed(f"http://127.0.0.1:{server.server_port}/t.csv")
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing."""


def test_a_damaged_parquet_file_is_one_line(tmp_path: Path) -> None:
    """Arrow says it in two."""
    data = encoded("parquet", [{"text": words(n)} for n in range(9)])
    (tmp_path / "t.parquet").write_bytes(data[:4] + b"\xff" * 40 + data[44:])
    with pytest.raises(SourceError, match=r"t\.parquet is no sound Parquet file: [^\n]+; write it again"):
        listed(tmp_path / "t.parquet")


def test_names_of_columns_are_shown_as_far_as_a_line_has_room(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('"two\nlines",' + "x" * 5_000 + "\n1,2\n")
    with pytest.raises(SourceError, match=r"its columns are two lines, x{100,300}$"):
        listed(tmp_path / "t.csv")
