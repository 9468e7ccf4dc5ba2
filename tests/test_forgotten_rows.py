"""Rows of tables by their address, their number and the object they name: explained, and forgotten for good."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import write_picture
from in_process import quiet, run, without_ray
from runs import live_rows
from table_files import Row, live, rows, words, write

from batchproj import gc
from batchproj.errors import UsageError
from batchproj.explain import explain, lines
from batchproj.forget import forget


@pytest.fixture(autouse=True)
def _no_ray() -> Iterator[None]:
    with without_ray():
        yield


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
    bad = explain(collection, f"{source}#id=bad")
    assert (bad.status, bad.reason) == ("quarantined", "bad_row")
    assert "object    none was read: no bytes, no model and no version are known of it" in lines(bad)
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


@pytest.mark.parametrize("between", [False, True])
def test_a_forgotten_row_comes_back_once_its_marker_is_removed(between: bool, tmp_path: Path, tiny_space: Path) -> None:
    source = write(tmp_path / "t.csv", rows(8))
    run(source, tmp_path / "c", tiny_space)
    done = forget(str(tmp_path / "c"), f"{source}#id=r2", quiet)
    if between:  # a run that lists the table again and leaves the row out
        write(source, [*rows(8), {**rows(9)[8]}])
        assert run(source, tmp_path / "c", tiny_space).embedded == 1
    (tmp_path / "c" / done.marker).unlink()
    assert run(source, tmp_path / "c", tiny_space).embedded == 1
    assert "id=r2" in live(tmp_path / "c")


@pytest.mark.parametrize("step", ["gc.tags", "gc.snapshots", "gc.table"])
def test_a_forget_of_a_numbered_row_that_was_killed_bars_no_other_row_when_it_is_done_again(
    step: str, tmp_path: Path, tiny_space: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = [{"text": words(n)} for n in range(6)]
    source = write(tmp_path / "t.csv", table)
    run(source, tmp_path / "c", tiny_space)

    def stop(at: str) -> None:
        if at == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(gc, "failpoint", stop)
        with pytest.raises(KeyboardInterrupt):
            forget(str(tmp_path / "c"), f"{source}#row=2", quiet)
    forget(str(tmp_path / "c"), f"{source}#row=2", quiet)
    assert len(list((tmp_path / "c/forgotten").iterdir())) == 1
    del table[1]
    write(source, table)
    run(source, tmp_path / "c", tiny_space)
    assert {row["text"] for row in live(tmp_path / "c").values()} == {words(n) for n in (0, 2, 3, 4, 5)}
    with pytest.raises(UsageError, match="is not in"):
        forget(str(tmp_path / "c"), f"{source}#row=9", quiet)


def test_a_numbered_row_that_only_an_earlier_run_has_is_forgotten(tmp_path: Path, tiny_space: Path) -> None:
    table = [{"text": words(n)} for n in range(6)]
    source = write(tmp_path / "t.csv", table)
    run(source, tmp_path / "c", tiny_space)
    write(source, table[:5])
    run(source, tmp_path / "c", tiny_space)
    done = forget(str(tmp_path / "c"), f"{source}#row=6", quiet)
    assert done.marker == f"forgotten/{hashlib.sha256(words(5).encode()).hexdigest()}"
    write(source, [table[5], *table[:5]])
    assert run(source, tmp_path / "c", tiny_space).items == 5


def test_all_rows_of_a_forgotten_content_go_and_the_next_run_takes_it_for_no_loss(
    tmp_path: Path, tiny_space: Path
) -> None:
    table = [{"text": words(n)} for n in (1, 9, 2, 9, 3, 9)]
    source = write(tmp_path / "t.csv", table)
    run(source, tmp_path / "c", tiny_space)
    done = forget(str(tmp_path / "c"), f"{source}#row=2", quiet)
    assert done.rows == 3
    assert sorted(row["text"] for row in live(tmp_path / "c").values()) == sorted(words(n) for n in (1, 2, 3))
    # a forget that was killed as soon as it had written its marker: the next run does not stop for what is meant
    (tmp_path / "c2").mkdir()
    run(source, tmp_path / "c2", tiny_space)
    (tmp_path / "c2/forgotten").mkdir()
    (tmp_path / "c2" / done.marker).touch()
    assert run(source, tmp_path / "c2", tiny_space).deleted == 3
