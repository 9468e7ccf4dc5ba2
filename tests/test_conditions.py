"""Typed filters: what each of them lets through, and that a hundred hostile ones let nothing through."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from in_process import command, run, without_ray
from serving import Client, served

from batchproj import conditions
from batchproj.conditions import Filter
from batchproj.errors import UsageError
from batchproj.search import Collection
from batchproj.serve.overview import Overview

ROWS = [
    {"id": "a", "text": "w1 w2", "pair": "p1", "year": 1999, "colour": "red", "ok": True, "size": 1.5},
    {"id": "b", "text": "w3 w4", "pair": "p1", "year": 2005, "colour": "dark red", "ok": False, "size": 2},
    {"id": "c", "text": "w5 w6", "year": 2010, "colour": 'say "red", {red}', "note": "one\ntwo"},
    {"id": "d", "text": "w7 w8", "colour": "it's 100% \\ red", "nested": {"year": 1999, "colour": "red"}},
    {"id": "e", "text": "w9 w1", "year": "1999", "a.b": 1, "größe": "ä", "big": 12345678901234567890123},
]


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory, tiny_space: Path) -> Path:
    folder = tmp_path_factory.mktemp("conditions")
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    with without_ray():
        run(folder / "t.jsonl", folder / "c", tiny_space)
    return folder / "c"


@pytest.fixture(scope="module")
def client(collection: Path) -> Iterator[Client]:
    with served(collection) as asked:
        yield asked


def let_through(opened: Collection, *filters: Filter) -> set[str]:
    texts = {row["text"]: row["id"] for row in ROWS}
    return {str(texts[hit.text]) for hit in opened.search("w1", k=9, filters=filters)}


@pytest.mark.parametrize(
    ("field", "op", "value", "ids"),
    [
        ("text", "eq", "w1 w2", "a"),
        ("text", "ne", "w1 w2", "bcde"),
        ("text", "contains", "w1", "ae"),
        ("text", "lt", "w3", "a"),
        ("text", "ge", "w7 w8", "de"),
        ("text", "in", ["w1 w2", "w9 w1", "no"], "ae"),
        ("pair", "is_null", None, "cde"),
        ("pair", "is_null", False, "ab"),
        ("pair", "ne", "p1", "cde"),
        ("segment", "eq", 0, "abcde"),
        ("segment", "gt", 0.5, ""),
        ("start", "is_null", True, ""),
        ("end", "le", 5, "abcde"),
        ("metadata.year", "eq", 1999, "a"),
        ("metadata.year", "eq", "1999", "e"),
        ("metadata.year", "ne", 1999, "bcde"),
        ("metadata.year", "in", [1999, 2010.0, "x"], "ac"),
        ("metadata.year", "lt", 2005, "a"),
        ("metadata.year", "le", 2005, "ab"),
        ("metadata.year", "gt", 1999.5, "bc"),
        ("metadata.year", "ge", 10**6, ""),
        ("metadata.year", "ge", "1", "e"),
        ("metadata.year", "is_null", None, "d"),
        ("metadata.year", "is_null", False, "abce"),
        ("metadata.colour", "contains", "red", "abcd"),
        ("metadata.colour", "contains", '", {', "c"),
        ("metadata.colour", "eq", 'say "red", {red}', "c"),
        ("metadata.colour", "eq", "it's 100% \\ red", "d"),
        ("metadata.note", "contains", "n", "c"),
        ("metadata.note", "contains", "\n", "c"),
        ("metadata.ok", "eq", True, "a"),
        ("metadata.ok", "ne", True, "bcde"),
        ("metadata.size", "eq", 2.0, "b"),
        ("metadata.a.b", "eq", 1, "e"),
        ("metadata.größe", "eq", "ä", "e"),
        ("metadata.big", "gt", 1, "e"),
    ],
)
def test_what_a_filter_lets_through(collection: Path, field: str, op: Any, value: Any, ids: str) -> None:
    assert let_through(Collection(str(collection)), Filter(field=field, op=op, value=value)) == set(ids)


@pytest.mark.parametrize(
    ("field", "op", "value", "said"),
    [
        ("metadata.size", "eq", "2", "size is never a text here; its values are numbers"),
        ("metadata.size", "ne", "2", "size is never a text here"),
        ("metadata.size", "gt", "1", "size is never a text here"),
        ("metadata.size", "contains", "2", "size is never a text here"),
        ("metadata.size", "in", [2, "2"], "size is never a text here"),
        ("metadata.size", "eq", True, "size is never a truth value here"),
        ("metadata.colour", "eq", 1, "colour is never a number here; its values are texts"),
        ("metadata.ok", "eq", 1, "ok is never a number here; its values are truth values"),
        ("metadata.ok", "eq", "true", "ok is never a text here"),
        ("metadata.year", "eq", False, "year is never a truth value here; its values are texts and numbers"),
        ("metadata.nested", "eq", "red", "nested is never a text here; its values are lists or nested ones"),
    ],
)
def test_a_value_of_a_kind_that_no_row_has_is_refused(
    collection: Path, field: str, op: Any, value: Any, said: str
) -> None:
    with pytest.raises(UsageError, match=said) as refused:
        let_through(Collection(str(collection)), Filter(field=field, op=op, value=value))
    assert str(refused.value).startswith(f"filter {field} {op} ")


def test_many_filters_hold_together(collection: Path) -> None:
    opened = Collection(str(collection))
    year = Filter(field="metadata.year", op="ge", value=2000)
    assert let_through(opened, year, Filter(field="pair", op="eq", value="p1")) == {"b"}
    with pytest.raises(UsageError, match="at most 20"):
        opened.search("w1", filters=[year] * 21)
    many = Filter(field="metadata.colour", op="in", value=[str(number) for number in range(1_000)])
    with pytest.raises(UsageError, match="too many values"):
        opened.search("w1", filters=[many])
    assert let_through(opened, Filter(field="text", op="in", value=[str(number) for number in range(1_000)])) == set()


STRINGS = [
    *("' OR 1=1 --", "' OR '1'='1", '" OR ""="', "'; DROP TABLE vectors; --", "1=1", "true", "\\' OR 1=1 --", "%", "_"),
    *("%' OR '%'='", "a' UNION SELECT * FROM vectors --", "$1", "?", ":x", "{}", "[]", "*", "\0", "\n", "' --", "''"),
    *("`", "`text`", "text", "text = text", "lit(1)", "${x}", "{{7*7}}", "\u2019 OR 1=1", "\ud7ff", "x" * 5_000),
    *(
        ")) OR ((1=1",
        "') OR ('1'='1",
        "NULL",
        "null",
        "1 OR 1",
        "0x31",
        "/*",
        "*/ OR 1=1 /*",
        "regexp_match(text,'.*')",
    ),
]
FIELDS = [
    *(
        "vector",
        "metadata",
        "_rowid",
        "_distance",
        "text' OR 1=1 --",
        "text = text OR 'a'",
        "",
        " ",
        "metadata.",
        "TEXT",
    ),
    *("text; DROP TABLE vectors", "1", "*", "`text`", '"text"', "metadata.x' OR 1=1 --", 'metadata.x":1,"y', "a.b.c"),
    *("__class__", "metadata.year\0", "x" * 301, "metadata." + "y" * 280, "../text", "lower(text)"),
]
OTHERS: list[dict[str, Any]] = [
    {"field": "text", "op": "eq", "value": 1},
    {"field": "text", "op": "eq", "value": True},
    {"field": "text", "op": "eq"},
    {"field": "text", "op": "eq", "value": []},
    {"field": "text", "op": "eq", "value": {"a": 1}},
    {"field": "text", "op": "in", "value": "abc"},
    {"field": "text", "op": "in", "value": []},
    {"field": "text", "op": "in", "value": [["a"]]},
    {"field": "text", "op": "in", "value": ["x"] * 1_001},
    {"field": "text", "op": "is_null", "value": "no"},
    {"field": "segment", "op": "eq", "value": "0 OR 1=1"},
    {"field": "segment", "op": "eq", "value": 2**63},
    {"field": "segment", "op": "eq", "value": -(2**70)},
    {"field": "segment", "op": "in", "value": [10**400]},
    {"field": "segment", "op": "contains", "value": "1"},
    {"field": "start", "op": "gt", "value": 1e308},
    {"field": "start", "op": "eq", "value": True},
    {"field": "metadata.year", "op": "gt", "value": True},
    {"field": "metadata.year", "op": "gt", "value": None},
    {"field": "metadata.year", "op": "eq", "value": 10**30},
    {"field": "metadata.year", "op": "contains", "value": 19},
    {"field": "text", "op": "like", "value": "%"},
    {"field": "text", "op": "", "value": "%"},
    {"field": "text", "op": "eq", "value": "a", "or": True},
    {"field": 1, "op": "eq", "value": "a"},
    {"op": "eq", "value": "a"},
    {},
]
HOSTILE = [
    *({"field": "text", "op": "eq", "value": value} for value in STRINGS),
    *({"field": "metadata.colour", "op": "eq", "value": value} for value in STRINGS),
    *({"field": field, "op": "eq", "value": "a"} for field in FIELDS),
    *OTHERS,
]


def test_a_hundred_hostile_filters_leak_no_row(client: Client) -> None:
    assert len(HOSTILE) >= 100
    for hostile in HOSTILE:
        answer = client.post({"text": "w1", "k": 9, "filters": [hostile]})
        assert answer.status in (200, 422), (hostile, answer.data)
        if answer.status == 200:
            assert answer.json()["hits"] == [], hostile
        else:
            assert "\n" not in answer.json()["detail"], hostile
    for wrong in ({"field": "text"}, "text=1", [[]], 1, None):
        assert client.post({"text": "w1", "filters": wrong}).status == 422


def test_overlong_conditions_of_where_are_as_before(collection: Path) -> None:
    opened = Collection(str(collection))
    assert [hit.text for hit in opened.search("w1", where=["colour=red", "year=1999"])] == ["w1 w2"]
    assert opened.search("w1", where=["metadata.colour=x' OR 1=1 --"]) == []


@pytest.mark.parametrize("wrong", ["start=nan", "start=inf", "end=-inf", "segment=9" + "0" * 30, "segment=1.5"])
def test_a_number_that_is_none_is_refused_in_one_line(collection: Path, wrong: str) -> None:
    refused = command("search", collection, "w1", "--where", wrong)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
    assert wrong[:5] in refused.stderr


def test_a_comparison_names_no_more_rows_than_it_may(collection: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    year = Filter(field="metadata.year", op="ge", value=1)
    monkeypatch.setattr(conditions, "BATCH_ROWS", 1)
    assert let_through(Collection(str(collection)), year) == set("abc")
    monkeypatch.setattr(conditions, "MOST_ROWS", 2)
    assert let_through(Collection(str(collection)), year) == set("abc")  # by its values, which are few
    monkeypatch.setattr(conditions, "MOST_FORMS", 1)
    with pytest.raises(UsageError, match="for more than 2 rows"):
        let_through(Collection(str(collection)), year)


def test_a_search_in_vain_says_what_was_searched_and_why_that_may_be(collection: Path) -> None:
    for options, said in (
        (("--where", "colour=Red"), "nothing found in the 5 rows of run 000001: none is with colour=Red; values are"),
        (
            ("--where", "year=1999", "--where", "colour=blue", "--modality", "text"),
            "none is of modality text and with year=1999 and with colour=blue; ",
        ),
        (
            ("--offset", "50"),
            "nothing found in the 5 rows of run 000001; there are no more than the --offset 50 passed",
        ),
    ):
        done = command("search", collection, "w1", *options)
        assert (done.returncode, len(done.stdout.splitlines()), said in done.stdout) == (0, 1, True), done
        assert command("search", collection, "w1", *options, "--json").stdout == "[]\n"


def test_what_a_run_holds_is_counted_once_however_many_ask(collection: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    dataset = Collection.dataset
    monkeypatch.setattr(Collection, "dataset", lambda self: counted.append(1) or time.sleep(0.1) or dataset(self))
    overview = Overview(Collection(str(collection)))
    with ThreadPoolExecutor(4) as pool:
        told = list(pool.map(lambda _: overview.stats, range(4)))
    assert counted == [1]
    assert [each["modalities"]["text"] for each in told] == [{"items": 5, "rows": 5}] * 4
