"""Tables whose rows are broken or name what they must not, and objects of which less arrives than was listed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile import archive, sound, tone
from in_process import command, run, without_ray
from proxy import Proxy, proxied
from table_files import listed, quarantined, write

from batchproj import objectstore
from batchproj.errors import ItemFault
from batchproj.objectstore import Folder
from batchproj.schema import Reason
from batchproj.source.reading import read_items


@pytest.fixture(autouse=True)
def _no_ray() -> Iterator[None]:
    with without_ray():
        yield


@pytest.fixture
def proxy(s3_endpoint: str) -> Iterator[Proxy]:
    with proxied(s3_endpoint) as between:
        yield between


ROWS: list[tuple[bytes, str | None]] = [
    (b'{"text": "w1 w2"}', None),
    (b'{"uri": "fine.txt"}', None),
    (b'{"uri": "gone.txt"}', "missing: no object file://"),
    (b'{"uri": "secret.txt"}', "forbidden: "),
    (b'{"uri": "../outside.txt"}', "outside_roots: '../outside.txt' is not opened: a path with '.' or '..' in it"),
    (b'{"uri": "file:///etc/passwd"}', "outside_roots: 'file:///etc/passwd' is not opened: it is not below"),
    (b'{"text": "w1", "uri"', "bad_row: line 7 is not JSON"),
    (
        b'{"uri": "simplecache::file:///etc/passwd"}',
        "outside_roots: 'simplecache::file:///etc/passwd' is not opened: c",
    ),
    (b'{"text": "w1", "text": "w2"}', "bad_row: line 9 is not JSON: key 'text' is there twice"),
    (b'{"title": "w1"}', "bad_row: no value in any of the columns uri, text and bytes"),
    (b'{"text": "half \\ud800 a pair"}', "invalid_utf8: "),
    (b'{"text": "caf\xe9"}', "invalid_utf8: line 12: byte 13 is not UTF-8"),
    (b'{"text": "w1 \\u0000 w2"}', "corrupt: NUL character at byte offset 3"),
    (b'{"text": "w1 \\u202e w2"}', None),
    (b'{"text": "' + b"w3" * 5_000_000 + b'"}', None),
]


def test_every_broken_row_has_its_reason_and_the_others_are_embedded(
    tmp_path: Path, tiny_space: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = objectstore.reading._head

    def refusing(fs: object, path: str, **options: int) -> tuple[int, str]:
        if path.endswith("secret.txt"):
            raise PermissionError("Forbidden")
        return head(fs, path, **options)

    monkeypatch.setattr(objectstore.reading, "_head", refusing)
    (tmp_path / "s").mkdir()
    (tmp_path / "outside.txt").write_text("w9")
    for name in ("fine", "secret"):
        (tmp_path / f"s/{name}.txt").write_text("w4 w5")
    (tmp_path / "s/t.jsonl").write_bytes(b"\n".join(line for line, _ in ROWS))
    report = run(tmp_path / "s/t.jsonl", tmp_path / "c", tiny_space)
    found = quarantined(tmp_path / "c", report)
    expected = {f"row={number}": said for number, (_, said) in enumerate(ROWS, 1) if said}
    assert found.keys() == expected.keys()
    assert {row: text for row, text in found.items() if not text.startswith(expected[row])} == {}
    assert report.embedded == len(ROWS) - len(expected)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('{"id": "a", "text": "w1"}\n{"id": "a", "text": "w2"}\n', "#id=a is there twice, in rows 1 and 2"),
        ('{"title": "w1"}\n{"title": "w2"}\n', "has no column uri, text or bytes to embed; its columns are title"),
    ],
)
def test_a_table_that_cannot_be_meant_ends_before_anything_is_written(lines: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(lines)
    done = command("embed", tmp_path / "t.jsonl", tmp_path / "c")
    assert (done.returncode, said in done.stderr, (tmp_path / "c").exists()) == (2, True, False)


def test_a_packed_table_is_an_object_like_another_and_not_unpacked(tmp_path: Path, tiny_space: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s/t.jsonl.gz").write_bytes(archive("gz"))
    (tmp_path / "s/t.tar.gz").write_bytes(archive("tgz"))
    report = run(tmp_path / "s", tmp_path / "c", tiny_space)
    assert [text.partition(":")[0] for text in quarantined(tmp_path / "c", report).values()] == [
        "unsupported_format"
    ] * 2


def sounds() -> dict[str, bytes]:
    return {f"cut.{kind}": sound(tone(0.5, 1), kind.upper()) for kind in ("ogg", "wav", "mp3")}


def test_a_download_that_is_cut_is_tried_again_and_then_one_item_s_fault(
    s3_bucket: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objectstore.reading, "CUT_TRIES", 2)
    folder, files = Folder(f"{s3_bucket}/s"), {**sounds(), "whole.wav": sound(tone(0.5, 2), "WAV")}
    for name, data in files.items():
        folder.write(name, data)
    rows = listed(f"{s3_bucket}/s")
    proxy.clear()
    for _ in range(2):
        for name in sounds():
            proxy.drop_answer(lambda request, name=name: request.path.endswith(name), half=True)  # type: ignore[misc]
    read = dict(zip([row["key"] for row in rows], read_items(rows, 1 << 20, 4), strict=True))
    assert read.pop("whole.wav") == files["whole.wav"]
    for fault in read.values():
        assert isinstance(fault, ItemFault)
        assert fault.reason is Reason.CHANGED
        assert fault.detail.endswith("bytes listed, the answer was cut short 2 times")
    bucket = s3_bucket.removeprefix("s3://")
    assert proxy.object_reads(bucket) == {f"/{bucket}/s/{name}": 1 + (name in read) for name in files}
    assert read_items(rows, 1 << 20, 4) == [files[row["key"]] for row in rows]


def test_an_answer_that_is_short_and_says_nothing_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: Counter[str] = Counter()
    whole = objectstore.reading._read_version

    def short(fs: object, path: str, *told: Any, **options: int) -> bytes:
        name = path.rpartition("/")[2]
        asked[name] += 1
        is_cut = name == "cut.ogg" or (name == "cut.wav" and asked[name] == 1)
        data = whole(fs, path, *told, **options)
        return data[:-5] if is_cut else data

    for name, data in sounds().items():
        (tmp_path / name).write_bytes(data)
    monkeypatch.setattr(objectstore.reading, "_read_version", short)
    rows = listed(tmp_path)
    read = dict(zip([row["key"] for row in rows], read_items(rows, 1 << 20, 1), strict=True))
    fault = read.pop("cut.ogg")
    assert isinstance(fault, ItemFault)
    assert (fault.reason, fault.detail[-7:]) == (Reason.CHANGED, " listed")
    assert read == {name: data for name, data in sounds().items() if name != "cut.ogg"}
    assert asked == {"cut.ogg": objectstore.reading.CUT_TRIES, "cut.wav": 2, "cut.mp3": 1}


def test_a_row_of_bytes_that_lie_is_quarantined_by_what_they_are(tmp_path: Path) -> None:
    rows = listed(write(tmp_path / "t.jsonl", [{"bytes": "%%%"}, {"bytes": "aGk="}, {"bytes": 5}, {"bytes": None}]))
    read = read_items(rows, 1000, 1)
    assert [each if isinstance(each, bytes) else str(each.reason) for each in read] == [
        "bad_row",
        b"hi",
        "bad_row",
        "bad_row",
    ]
    assert json.loads(rows[1]["place"])[2] == "row"
