"""Rows of tables as items: what is embedded, what a change costs, what a row may name, what is wrong with one."""

from __future__ import annotations

import base64
import csv
import functools
import hashlib
import http.server
import io
import json
import re
import shutil
import threading
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
from in_process import OPTIONS, command, quiet, run, stopped_when_its_units_are_done, without_ray
from runs import live_rows

import batchproj
from batchproj import embed as module_embed
from batchproj import objectstore
from batchproj.collection import layout
from batchproj.collection.cache import live_features
from batchproj.embed import Options, Watch
from batchproj.errors import ItemFault, UsageError
from batchproj.explain import explain
from batchproj.forget import forget
from batchproj.objectstore import Folder
from batchproj.pipeline import run_units
from batchproj.repair import repair
from batchproj.schema import Modality
from batchproj.source import listing, pinned, reading
from batchproj.source.listing import Seal, list_items
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


def listed(source: object) -> list[Row]:
    pages = list_items(str(source), "file:///c")
    return [row for page in pages if not isinstance(page, Seal) for row in page.to_pylist()]


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


def test_objects_that_rows_name_are_looked_up_at_once_and_again_when_the_store_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(8, timeout=20)
    head, failed = objectstore._head, set()

    def slow(fs: object, path: str) -> tuple[int, str]:
        if path not in failed:
            failed.add(path)
            together.wait()
            raise ConnectionResetError("cut")
        return head(fs, path)

    for number in range(8):
        write_picture(tmp_path / f"{number}.png", number)
    source = write(tmp_path / "t.csv", [{"uri": f"{number}.png"} for number in range(8)])
    monkeypatch.setattr(objectstore, "_head", slow)
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


def test_a_stopped_run_over_a_table_is_resumed(tmp_path: Path, tiny_space: Path, reads: Counter[str]) -> None:
    source = write(tmp_path / "t.parquet", rows(20))
    with stopped_when_its_units_are_done():
        run(source, tmp_path / "c", tiny_space)
    assert sum(reads.values()) == 20
    report = run(source, tmp_path / "c", tiny_space)
    assert (report.embedded, report.run, sum(reads.values())) == (20, "000001", 20)
    assert live(tmp_path / "c").keys() == {f"id=r{n}" for n in range(20)}


def test_a_table_that_is_the_same_is_not_even_listed(
    tmp_path: Path, tiny_space: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["a.parquet", "b.parquet", "c.parquet"]
    for number, name in enumerate(names):
        write(tmp_path / "s" / name, [{"text": words(10 * number + n), "n": n} for n in range(5)])
    run(tmp_path / "s", tmp_path / "c", tiny_space)
    opened: list[str] = []
    records = listing._RECORDS["parquet"]
    noting = lambda table: opened.append(table.key) or records(table)  # noqa: E731
    monkeypatch.setitem(listing._RECORDS, "parquet", noting)
    assert run(tmp_path / "s", tmp_path / "c", tiny_space).commit is None
    assert opened == []
    write(tmp_path / "s/b.parquet", [{"text": words(99), "n": 1}, *({"text": words(10 + n), "n": n} for n in range(5))])
    report = run(tmp_path / "s", tmp_path / "c", tiny_space)
    assert (report.embedded + report.copied, report.unchanged, opened) == (6, 10, ["b.parquet"])
    (tmp_path / "s/a.parquet").unlink()
    report = run(tmp_path / "s", tmp_path / "c", tiny_space, Options(OPTIONS.recipe, allow_mass_delete=True))
    assert (report.deleted, report.unchanged, opened) == (5, 11, ["b.parquet"])
    assert run(tmp_path / "s/*.parquet", tmp_path / "c", tiny_space).commit is None
    assert live_rows(tmp_path / "c").num_rows == 11


def test_rows_that_moved_are_found_where_they_are_by_now(tmp_path: Path, tiny_space: Path) -> None:
    table = rows(12)
    source = write(tmp_path / "t.jsonl", table)
    run(source, tmp_path / "c", tiny_space)
    before = {key: row["vector"] for key, row in live(tmp_path / "c").items()}
    write(source, list(reversed(table)))
    assert run(source, tmp_path / "c", tiny_space).commit is None
    for file in (tmp_path / "c/features").rglob("*.parquet"):
        file.write_bytes(b"damaged")
    now = repair(str(tmp_path / "c"), OPTIONS, Watch()).now
    assert now.of(now.live) == []
    assert {key: row["vector"] for key, row in live(tmp_path / "c").items()} == before
    write(source, [{"id": "new", "text": "w9 w9"}, *table])
    assert run(source, tmp_path / "c", tiny_space).embedded == 1
    space = tmp_path / "fp32.yaml"
    space.write_text(tiny_space.read_text().replace("kind: clip,", "kind: clip, dtype: fp32,"))
    report = run(source, tmp_path / "c", space)  # every row is read again, listed or not
    assert (report.embedded, report.quarantined) == (13, 0)


def test_a_plan_counts_rows_and_writes_nothing(tmp_path: Path, tiny_space: Path) -> None:
    table = rows(12)
    source = write(tmp_path / "t.parquet", table)
    planned = command("plan", source, tmp_path / "c", "--space", tiny_space, "--json")
    document = json.loads(planned.stdout)
    assert (document["new"], document["reads"], document["encodes"]) == (12, 12, {"text": 12})
    assert document["calibration"]["text"]["sampled"] == 12
    assert not (tmp_path / "c").exists()
    run(source, tmp_path / "c", tiny_space)
    table[0]["text"], table[1]["colour"] = "w9", "green"
    write(source, table[:11])
    document = json.loads(command("plan", source, tmp_path / "c", "--json").stdout)
    counts = ("changed", "touched", "reproject", "deleted", "unchanged", "listed")
    assert [document[name] for name in counts] == [1, 0, 1, 1, 9, 11]


def test_a_collection_beside_its_tables_is_none_of_them(tmp_path: Path, tiny_space: Path) -> None:
    write(tmp_path / "s/a.parquet", rows(3))
    write(tmp_path / "s/_SUCCESS.parquet", rows(1))
    assert run(tmp_path / "s", tmp_path / "s/c", tiny_space).items == 3
    assert run(tmp_path / "s", tmp_path / "s/c", tiny_space).commit is None
    write(tmp_path / "s/z.csv", rows(3))
    with pytest.raises(UsageError, match=r"3 of 3 items are no longer in the source"):
        run(tmp_path / "s", tmp_path / "s/c", tiny_space)  # now a folder of objects, whatever they are


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


def test_explain_and_forget_know_rows_by_their_address_and_by_the_object_they_name(
    tmp_path: Path, tiny_space: Path
) -> None:
    write_picture(tmp_path / "s/0.png", 0)
    write_picture(tmp_path / "s/1.png", 1)
    table: list[Row] = [
        {"id": "zero", "uri": "0.png", "text": None, "note": "first"},
        {"id": "one", "uri": "1.png", "text": None},
        {"id": "again", "uri": "1.png", "text": None},
        {"id": "a/b c#d", "uri": None, "text": "w1 w2"},
        {"id": "moved", "uri": None, "text": "w3 w4"},
        {"id": "bad", "uri": None, "text": None},
    ]
    source = write(tmp_path / "s/t.jsonl", table)
    run(source, tmp_path / "c", tiny_space)
    collection = str(tmp_path / "c")
    shown = explain(collection, str(tmp_path / "s/0.png"))
    assert (shown.row, shown.now) == (f"file://{source}#id=zero", "unchanged")
    assert json.loads(shown.metadata or "") == {"note": "first"}
    assert explain(collection, f"{source}#id=zero").item == shown.item
    with pytest.raises(UsageError, match=r"several rows name .*t.jsonl#id=one, .*t.jsonl#id=again"):
        explain(collection, str(tmp_path / "s/1.png"))
    assert explain(collection, f"{source}#id=a%2Fb%20c%23d").now == "unchanged"
    assert explain(collection, f"{source}#id=bad").status == "quarantined"
    write(source, [table[4], {**table[3], "text": "w5"}, *table[:3]])
    assert explain(collection, f"{source}#id=moved").now == "unchanged"
    assert explain(collection, f"{source}#id=a%2Fb%20c%23d").now == "changed since"
    write(source, table[:4])
    assert explain(collection, f"{source}#id=moved").now == "gone"
    source.unlink()
    assert explain(collection, f"{source}#id=moved").now == "gone"
    write(source, table)
    for uri, left in ((tmp_path / "s/0.png", 4), (f"{source}#id=one", 3), (f"{source}#id=moved", 2)):
        forget(collection, str(uri), quiet)
        assert live_rows(collection).num_rows == left
    report = run(source, collection, tiny_space)
    assert (report.embedded, report.items) == (0, 3)
    assert {row["uri"] for row in live_rows(collection).to_pylist()} == {
        f"file://{tmp_path}/s/1.png",
        f"file://{source}#id=a%2Fb%20c%23d",
    }


def test_a_forgotten_row_without_an_id_does_not_come_back_under_another_number(
    tmp_path: Path, tiny_space: Path
) -> None:
    table = [{"text": words(n)} for n in range(6)]
    source = write(tmp_path / "t.csv", table)
    run(source, tmp_path / "c", tiny_space)
    forget(str(tmp_path / "c"), f"{source}#row=2", quiet)
    write(source, [{"text": "w9"}, *table])
    run(source, tmp_path / "c", tiny_space)
    assert {row["text"] for row in live(tmp_path / "c").values()} == {"w9", *(words(n) for n in (0, 2, 3, 4, 5))}


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_in_a_bucket_is_as_one_in_a_folder(kind: str, s3_bucket: str, tmp_path: Path, tiny_space: Path) -> None:
    folder = Folder(f"{s3_bucket}/s")
    write_picture(tmp_path / "0.png", 0)
    folder.write("pictures/0.png", (tmp_path / "0.png").read_bytes())
    table: list[Row] = [
        {"id": "a", "uri": "pictures/0.png", "text": None},
        {"id": "b", "uri": f"{s3_bucket}/s/pictures/none.png", "text": None},
        {"id": "c", "uri": "s3://elsewhere/key", "text": None},
        *({"id": f"t{n}", "uri": None, "text": words(n)} for n in range(5)),
    ]
    folder.write(f"t.{kind}", encoded(kind, table))
    folder.write(f"t.{kind}.bak", b"a name that begins like it")
    source, collection = f"{folder.uri}/t.{kind}", f"{s3_bucket}/c"
    report = run(source, collection, tiny_space)
    assert (report.embedded, report.quarantined) == (6, 2)
    reasons = {key: text.partition(":")[0] for key, text in quarantined(collection, report).items()}
    assert reasons == {"id=b": "missing", "id=c": "outside_roots"}
    assert run(source, collection, tiny_space).commit is None
    table[4]["text"] = "w9 w9"
    folder.write(f"t.{kind}", encoded(kind, table))
    report = run(source, collection, tiny_space)
    assert (report.embedded, report.unchanged, report.encode_calls) == (1, 5, {"text": 1})
    assert explain(collection, f"{source}#id=t1").now == "unchanged"
    found = listed(source)
    folder.write(f"t.{kind}", encoded(kind, table[3:4]))  # most of the ranges are behind its end
    now = reading.read_items(found[3:], 1000, 2)
    assert {str(getattr(read, "reason", "read")) for read in now} <= {"changed", "read"}
    assert len([read for read in now if isinstance(read, bytes)]) <= 1


@pytest.mark.usefixtures("ray_here")
def test_workers_read_rows_as_well(tmp_path: Path, tiny_space: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_embed, "run_units", run_units)
    source = write(tmp_path / "t.parquet", rows(20))
    assert run(source, tmp_path / "c", tiny_space).embedded == 20
    assert live(tmp_path / "c")["id=r7"]["text"] == words(7)


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


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing."""


def test_a_collection_made_before_metadata_were_kept_opens_and_goes_on(
    corpus: Path, tmp_path: Path, tiny_space: Path
) -> None:
    run(corpus, tmp_path / "c", tiny_space)
    snapshot = tmp_path / "c/snapshots/000001.json"
    file = tmp_path / "c/snapshots/000001.manifest.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["metadata", "place"]), file)
    document = json.loads(snapshot.read_text())
    del document["sealed"]
    document["manifest"][0] |= {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    snapshot.write_text(json.dumps(document))
    assert run(corpus, tmp_path / "c", tiny_space).commit is None
    assert explain(str(tmp_path / "c"), str(corpus / "d0/item0.txt")).now == "unchanged"
    assert live_features(Folder(str(tmp_path / "c")), batchproj.open(str(tmp_path / "c")).snapshot, Modality.TEXT)
    (corpus / "d0/item0.txt").write_text("w9 w9")
    assert run(corpus, tmp_path / "c", tiny_space).embedded == 1
    assert run(corpus, tmp_path / "c", tiny_space).commit is None
    forget(str(tmp_path / "c"), str(corpus / "d0/item3.txt"), quiet)
    assert live_rows(tmp_path / "c").num_rows == 23
    assert not verify(str(tmp_path / "c"), quiet).damaged
