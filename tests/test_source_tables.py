"""Rows of tables as items: what is embedded, what a change costs, what a row may name, what is wrong with one."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_picture
from in_process import command, quiet, run, without_ray
from runs import live_rows

from batchproj.collection import layout
from batchproj.objectstore import Folder
from batchproj.source import reading
from batchproj.verify import verify

Row = dict[str, Any]
KINDS = ["parquet", "jsonl", "csv"]


@pytest.fixture(autouse=True)
def _no_ray() -> Iterator[None]:
    with without_ray():
        yield


def words(number: int) -> str:
    return f"w{number % 13 + 1} w{number % 7 + 1} w{number % 5 + 1} w{number % 11 + 1}"


def rows(count: int = 12) -> list[Row]:
    return [
        {"id": f"r{n}", "text": words(n), "pair": f"p{n // 2}", "colour": ["red", "blue"][n % 2]} for n in range(count)
    ]


def encoded(kind: str, table: list[Row]) -> bytes:
    if kind == "parquet":
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(table), sink, row_group_size=4)
        return sink.getvalue()
    if kind == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in table).encode()
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]))
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue().encode()


def write(path: Path, table: list[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(path.suffix[1:], table))
    return path


def live(collection: object) -> dict[str, Row]:
    """Rows that readers see, by what stands behind the `#` of their URI, or by the URI."""
    return {row["uri"].rpartition("#")[2]: row for row in live_rows(collection).to_pylist()}


def quarantined(collection: object, report: Any) -> dict[str, str]:
    data = Folder(str(collection)).read(layout.quarantine(report.run))
    found = pq.read_table(pa.BufferReader(data)).to_pylist()
    return {row["uri"].rpartition("#")[2]: f"{row['reason']}: {row['detail']}" for row in found}


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many items were read, by file: counted where workers and the calibration read them."""
    counted: Counter[str] = Counter()
    together = reading._read_together

    def read(items: list[Any]) -> Any:
        counted.update(item.container if item.place and item.place.kind != "object" else item.uri for item in items)
        return together(items)

    monkeypatch.setattr(reading, "_read_together", read)
    return counted


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_is_embedded_and_a_second_run_reads_nothing(
    kind: str, tmp_path: Path, tiny_space: Path, reads: Counter[str]
) -> None:
    table = write(tmp_path / f"t.{kind}", rows())
    report = run(table, tmp_path / "c", tiny_space)
    assert (report.items, report.embedded, report.quarantined, report.rows) == (12, 12, 0, 12)
    found = live(tmp_path / "c")
    assert found["id=r3"]["text"] == words(3)
    assert (found["id=r3"]["pair"], json.loads(found["id=r3"]["metadata"])) == ("p1", {"colour": "blue"})
    assert found["id=r3"]["uri"] == f"file://{table}#id=r3"
    assert sum(reads.values()) == 12
    again = run(table, tmp_path / "c", tiny_space)
    assert (again.unchanged, again.commit, sum(reads.values())) == (12, None, 12)
    assert not verify(str(tmp_path / "c"), quiet).damaged


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_changed_of_a_table_is_done(kind: str, tmp_path: Path, tiny_space: Path, reads: Counter[str]) -> None:
    table = rows()
    source = write(tmp_path / f"t.{kind}", table)
    run(source, tmp_path / "c", tiny_space)
    before = live(tmp_path / "c")
    reads.clear()
    table[5]["text"] = "w9 w9 w2"
    table[7]["colour"] = "green"
    table[8]["pair"] = "other"
    del table[2]
    write(source, [table[-1], *table[:-1]])  # the rows move, too
    report = run(source, tmp_path / "c", tiny_space)
    assert (report.embedded, report.reprojected, report.deleted, report.unchanged) == (1, 2, 1, 8)
    assert report.encode_calls == {"text": 1}
    assert sum(reads.values()) == 1
    after = live(tmp_path / "c")
    assert after["id=r5"]["text"] == "w9 w9 w2"
    # `table` has lost row 2: what was table[7] is r7 and what was table[8] is r8
    assert json.loads(after["id=r7"]["metadata"]) == {"colour": "green"}
    assert after["id=r7"]["vector"] == before["id=r7"]["vector"]
    assert after["id=r8"]["pair"] == "other"
    assert "id=r2" not in after
    assert run(source, tmp_path / "c", tiny_space).commit is None


def test_rows_without_ids_are_known_by_their_number_and_their_contents_again(
    tmp_path: Path, tiny_space: Path, reads: Counter[str]
) -> None:
    table = [{"text": words(n)} for n in range(12)]
    source = write(tmp_path / "t.jsonl", table)
    run(source, tmp_path / "c", tiny_space)
    assert live(tmp_path / "c")["row=3"]["text"] == words(2)
    write(source, [{"text": "w13 w13 w13"}, *table])
    report = run(source, tmp_path / "c", tiny_space)
    assert (report.embedded, report.copied, report.items) == (1, 12, 13)
    assert report.encode_calls == {"text": 1}
    found = live(tmp_path / "c")
    assert (found["row=1"]["text"], found["row=13"]["text"]) == ("w13 w13 w13", words(11))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_may_name_objects_beside_the_table(
    kind: str, tmp_path: Path, tiny_space: Path, reads: Counter[str]
) -> None:
    for number in range(3):
        write_picture(tmp_path / "s" / "pictures" / f"{number}.png", number)
    named = [{"id": str(n), "uri": f"pictures/{n}.png", "title": f"number {n}"} for n in range(3)]
    named[1]["uri"] = f"file://{tmp_path}/s/pictures/1.png"
    source = write(tmp_path / "s" / f"t.{kind}", named)
    report = run(source, tmp_path / "c", tiny_space)
    assert (report.embedded, report.encode_calls) == (3, {"image": 3})
    found = {row["uri"]: row for row in live_rows(tmp_path / "c").to_pylist()}
    row = found[f"file://{tmp_path}/s/pictures/2.png"]
    assert (row["pair"], json.loads(row["metadata"])) == ("pictures/2", {"title": "number 2"})
    reads.clear()
    write_picture(tmp_path / "s" / "pictures" / "1.png", 77)
    report = run(source, tmp_path / "c", tiny_space)
    assert (report.embedded, report.unchanged, sum(reads.values())) == (1, 2, 1)
    # one and the same object under another name: a copy, and no encode
    shutil.copy2(tmp_path / "s/pictures/2.png", tmp_path / "s/pictures/copy.png")
    named[2]["uri"] = "pictures/copy.png"
    write(source, named)
    report = run(source, tmp_path / "c", tiny_space)
    assert (report.copied, report.encode_calls) == (1, {"image": 0})
    assert f"file://{tmp_path}/s/pictures/copy.png" in {r["uri"] for r in live_rows(tmp_path / "c").to_pylist()}


def test_bytes_in_a_table_are_decoded_by_their_content(corpus: Path, tmp_path: Path, tiny_space: Path) -> None:
    picture, text = (corpus / "d0/item0.png").read_bytes(), (corpus / "d0/item0.txt").read_bytes()
    write(tmp_path / "t.parquet", [{"bytes": picture, "n": 1}, {"bytes": text, "n": 2}])
    assert run(tmp_path / "t.parquet", tmp_path / "p", tiny_space).encode_calls == {"image": 1, "text": 1}
    in_base64 = [{"bytes": base64.b64encode(data).decode(), "n": 1} for data in (picture, text)]
    write(tmp_path / "t.csv", [*in_base64, {"bytes": "no base64!", "n": 3}])
    report = run(tmp_path / "t.csv", tmp_path / "c", tiny_space)
    assert (report.embedded, report.quarantined) == (2, 1)
    assert "base64" in quarantined(tmp_path / "c", report)["row=3"]
    vectors = [{tuple(row["vector"]) for row in live(tmp_path / c).values()} for c in ("p", "c")]
    assert vectors[0] == vectors[1]


def test_the_first_of_uri_bytes_and_text_that_has_a_value_is_the_item(tmp_path: Path, tiny_space: Path) -> None:
    write_picture(tmp_path / "s/0.png", 0)
    table = [{"uri": "0.png", "text": "w1 w2"}, {"uri": None, "text": "w3 w4"}, {"uri": None, "text": None}]
    report = run(write(tmp_path / "s/t.parquet", table), tmp_path / "c", tiny_space)
    assert (report.encode_calls, report.quarantined) == ({"image": 1, "text": 1}, 1)
    picture = live(tmp_path / "c")[f"file://{tmp_path}/s/0.png"]
    assert json.loads(picture["metadata"]) == {"text": "w1 w2"}
    assert quarantined(tmp_path / "c", report) == {
        "row=3": "bad_row: no value in any of the columns uri, text and bytes"
    }


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


def test_other_roots_are_declared_by_the_recipe(tmp_path: Path, tiny_space: Path) -> None:
    write_picture(tmp_path / "elsewhere/0.png", 0)
    source = write(tmp_path / "s/t.csv", [{"uri": f"{tmp_path}/elsewhere/0.png"}])
    assert run(source, tmp_path / "c", tiny_space).quarantined == 1
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"roots: [{tmp_path}/elsewhere]\n")
    done = command("embed", source, tmp_path / "c", "--space", tiny_space, "--recipe", recipe, "--json")
    assert json.loads(done.stdout)["embedded"] == 1


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
    assert {f"row={number}" for number in (*range(1, 7), 8, 9)} <= live(tmp_path / "c").keys()
    assert run(tmp_path / "t.jsonl", tmp_path / "c", tiny_space).commit is None


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
