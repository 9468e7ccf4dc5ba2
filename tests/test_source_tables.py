"""Rows of tables as items: what is embedded, what is counted, what a change costs."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import write_picture
from in_process import OPTIONS, command, quiet, run, stopped_when_its_units_are_done, without_ray
from runs import live_rows
from table_files import KINDS, Row, encoded, listed, live, quarantined, rows, words, write

import batchproj
from batchproj import execution
from batchproj.collection.cache import live_features
from batchproj.embed import Options, Watch
from batchproj.errors import UsageError
from batchproj.explain import explain
from batchproj.forget import forget
from batchproj.objectstore import Folder
from batchproj.pipeline import run_units
from batchproj.repair import repair
from batchproj.schema import Modality
from batchproj.source import reading
from batchproj.source.parser import Parser
from batchproj.verify import verify


@pytest.fixture(autouse=True)
def _no_ray() -> Iterator[None]:
    with without_ray():
        yield


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
    pages = Parser.pages
    noting = lambda parser, table, kind: opened.append(table.key) or pages(parser, table, kind)  # noqa: E731
    monkeypatch.setattr(Parser, "pages", noting)
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


def test_a_repair_puts_rows_whose_source_is_gone_into_quarantine(tmp_path: Path, tiny_space: Path) -> None:
    folder = tmp_path / "s"
    for name in ("a", "b"):
        write(folder / f"{name}.parquet", [{**row, "id": f"{name}{row['id']}"} for row in rows(8)])
    run(folder, tmp_path / "c", tiny_space)
    shutil.rmtree(folder)
    for damaged in ("features", "parquet"):
        next(iter(sorted((tmp_path / "c" / damaged).rglob("*.parquet")))).write_bytes(b"damaged")
    report = repair(str(tmp_path / "c"), OPTIONS, Watch()).report
    assert report is not None
    assert 0 < report.quarantined == 16 - live_rows(tmp_path / "c").num_rows


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
    monkeypatch.setattr(execution, "run_units", run_units)
    source = write(tmp_path / "t.parquet", rows(20))
    assert run(source, tmp_path / "c", tiny_space).embedded == 20
    assert live(tmp_path / "c")["id=r7"]["text"] == words(7)


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
