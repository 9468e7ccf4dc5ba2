"""Datasets of `save_to_disk` and Lance tables as input: tables with the same columns."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator
from pathlib import Path

import lance
import pyarrow as pa
import pytest
from in_process import OPTIONS, quiet, run, without_ray
from runs import live_rows
from table_files import listed, picture, quarantined, words

from batchproj.confined_process import ConfinedProcess, start
from batchproj.embed import Options
from batchproj.errors import BatchprojError, SourceError, TryLater
from batchproj.explain import explain
from batchproj.objectstore import Folder
from batchproj.source import arrow, reading
from batchproj.source import lance as source_lance
from batchproj.source.ended import Allowed
from batchproj.source.place import parse_place
from batchproj.verify import verify


@pytest.fixture(autouse=True)
def _no_ray() -> Iterator[None]:
    with without_ray():
        yield


def arrow_stream(rows: list[dict[str, object]], rows_a_batch: int) -> bytes:
    """As `datasets.Dataset.save_to_disk` writes it."""
    table = pa.Table.from_pylist(rows)
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows_a_batch)
    return sink.getvalue()


def save(folder: Folder, below: str, shards: list[list[dict[str, object]]]) -> None:
    names = [f"data-{n:05d}-of-{len(shards):05d}.arrow" for n in range(len(shards))]
    folder.write(f"{below}dataset_info.json", json.dumps({"features": {}}).encode())
    folder.write(f"{below}state.json", json.dumps({"_data_files": [{"filename": name} for name in names]}).encode())
    for name, rows in zip(names, shards, strict=True):
        folder.write(f"{below}{name}", arrow_stream(rows, 3))


def pictures(begin: int, end: int) -> list[dict[str, object]]:
    return [{"image": {"bytes": picture(n), "path": f"{n}.png"}, "label": n, "text": None} for n in range(begin, end)]


def test_a_saved_dataset_is_a_table_of_its_media(tmp_path: Path, tiny_space: Path) -> None:
    shards = [pictures(0, 5), [*pictures(5, 7), {"image": None, "label": 9, "text": words(0)}]]
    save(Folder(str(tmp_path / "d")), "", shards)
    report = run(tmp_path / "d", tmp_path / "c", tiny_space)
    assert (report.embedded, report.encode_calls) == (8, {"image": 7, "text": 1})
    rows = {row["uri"].rpartition("/")[2]: row for row in live_rows(tmp_path / "c").to_pylist()}
    assert rows["data-00000-of-00002.arrow#row=2"]["metadata"] == '{"label":1}'
    assert rows["data-00001-of-00002.arrow#row=3"]["text"] == words(0)
    assert run(tmp_path / "d", tmp_path / "c", tiny_space).commit is None
    shards[0][4] = pictures(50, 51)[0]
    save(Folder(str(tmp_path / "d")), "", shards)
    report = run(tmp_path / "d", tmp_path / "c", tiny_space)
    assert (report.embedded, report.unchanged, report.encode_calls) == (1, 7, {"image": 1})
    shown = explain(str(tmp_path / "c"), str(tmp_path / "d/data-00000-of-00002.arrow#row=5"))
    assert (shown.now, shown.status, shown.metadata) == ("unchanged", "embedded", '{"label":50}')
    assert not verify(str(tmp_path / "c"), quiet).damaged


def test_a_file_name_beside_bytes_tells_what_they_are(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"image": {"bytes": picture(0), "path": path}} for path in ("a/b.png", None)]
    save(Folder(str(tmp_path)), "", [rows])
    assert [parse_place(row["place"]).name for row in listed(tmp_path)] == ["b.png", "row"]


def test_all_splits_of_a_dataset_in_a_bucket(s3_bucket: str, tiny_space: Path) -> None:
    folder = Folder(f"{s3_bucket}/d")
    folder.write("dataset_dict.json", json.dumps({"splits": ["train", "test"]}).encode())
    save(folder, "train/", [pictures(0, 4)])
    save(folder, "test/", [pictures(4, 6)])
    report = run(folder.uri, f"{s3_bucket}/c", tiny_space)
    assert (report.items, report.embedded) == (6, 6)
    assert run(folder.uri, f"{s3_bucket}/c", tiny_space).commit is None
    folder.remove(["test/data-00000-of-00001.arrow"])
    with pytest.raises(SourceError, match="is no whole dataset"):
        run(folder.uri, f"{s3_bucket}/c", tiny_space)


def test_a_struct_that_has_only_a_path_names_an_object_below_the_roots(tmp_path: Path, tiny_space: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/0.png").write_bytes(picture(0))
    rows: list[dict[str, object]] = [
        {"image": {"bytes": None, "path": path}} for path in ("0.png", f"{tmp_path}/d/0.png", "/etc/passwd")
    ]
    save(Folder(str(tmp_path / "d")), "", [[*pictures(1, 2), *rows]])
    report = run(tmp_path / "d", tmp_path / "c", tiny_space)
    assert (report.embedded, report.quarantined) == (3, 1)
    assert [text.partition(":")[0] for text in quarantined(tmp_path / "c", report).values()] == ["outside_roots"]


@pytest.mark.parametrize("name", ["../x.arrow", "/etc/passwd", "", "x" * 5_000])
def test_a_dataset_names_no_files_outside_itself(name: str, tmp_path: Path) -> None:
    save(Folder(str(tmp_path)), "", [pictures(0, 1)])
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(SourceError, match="is no whole dataset"):
        arrow.files(Folder(str(tmp_path)))


def test_a_truncated_arrow_file_is_one_line(tmp_path: Path) -> None:
    save(Folder(str(tmp_path)), "", [pictures(0, 5)])
    file = tmp_path / "data-00000-of-00001.arrow"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(SourceError, match="is no sound Arrow stream"):
        listed(tmp_path)


def test_values_that_lie_outside_their_arrow_file_are_not_looked_for(tmp_path: Path) -> None:
    """pyarrow goes where the offsets lead: backwards is an error of Python's, far away its end."""
    rows = [{"text": "ab"}, {"text": "cd"}, {"text": "ef"}]
    save(Folder(str(tmp_path)), "", [rows])
    file = tmp_path / "data-00000-of-00001.arrow"
    sound, offsets = file.read_bytes(), struct.pack("<4i", 0, 2, 4, 6)
    assert sound.count(offsets) == 1
    for wrong in ((0, 4, 2, 6), (0, 2, 4, 1 << 30)):
        file.write_bytes(sound.replace(offsets, struct.pack("<4i", *wrong)))
        with pytest.raises(SourceError, match=r"is no sound Arrow stream: [^\n]+; save it again"):
            listed(tmp_path)


def test_a_nested_string_that_is_not_utf8_is_a_matter_of_its_row(tmp_path: Path) -> None:
    kept = [{"image": {"bytes": picture(n), "path": name}} for n, name in enumerate(("a.png", "bX.png", "c.png"))]
    save(Folder(str(tmp_path)), "", [kept])
    file = tmp_path / "data-00000-of-00001.arrow"
    file.write_bytes(file.read_bytes().replace(b"bX.png", b"b\xff.png"))
    assert [parse_place(row["place"]).kind for row in listed(tmp_path)] == ["arrow", "fault", "arrow"]


def one_file(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def test_a_damaged_lance_table_ends_its_reader_alone(tmp_path: Path) -> None:
    """Lance aborts its process over an error text with a NUL in it, and panics or raises over others."""
    lance.write_dataset(pa.table({"text": ["a", "b"]}), tmp_path / "t.lance")
    data, manifest = one_file(tmp_path, "t.lance/data/*.lance"), one_file(tmp_path, "t.lance/_versions/*.manifest")
    sound = {file: file.read_bytes() for file in (data, manifest)}
    for file, changed, said in (
        (data, sound[data].replace(b"/lance.encodings", b"/\0ance.encodings"), "Lance ends with SIGABRT"),
        (manifest, b"\xff\xff\xff\x7f" + sound[manifest][4:], "out of range"),
        (manifest, sound[manifest][:-4] + b"LANX", "magic number"),
    ):
        file.write_bytes(changed)
        with pytest.raises(SourceError, match=rf"t\.lance[^\n]*: [^\n]*{said}"):
            listed(tmp_path / "t.lance")
        file.write_bytes(sound[file])
    assert len(listed(tmp_path / "t.lance")) == 2


@pytest.mark.parametrize(
    ("ended", "raised", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", TryLater, "was ended by SIGKILL, perhaps for want of memory; run"),
        ("os.kill(os.getpid(), signal.SIGTERM)", TryLater, "was ended by SIGTERM; run"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", SourceError, "it is damaged, and Lance ends with SIGSEGV; write it"),
        ("import no_such_module", BatchprojError, "exit code 1: ModuleNotFoundError: No module named 'no_such_module'"),
        ("print('x' * 100_000, file=sys.stderr); sys.exit(3)", BatchprojError, "exit code 3: x{200}$"),
    ],
)
def test_a_table_is_called_damaged_only_if_it_is(
    ended: str, raised: type[BatchprojError], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lister_that_ends.py").write_text(f"import os, signal, sys\n{ended}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(source_lance, "PROGRAM", "lister_that_ends")
    with pytest.raises(BatchprojError, match=f"t.lance.*{said}") as found:
        source_lance.listed("file:///t.lance", Allowed())
    assert type(found.value) is raised


def test_who_stops_half_way_leaves_no_process_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[ConfinedProcess] = []
    monkeypatch.setattr(source_lance, "start", lambda *told, **named: begun.append(start(*told, **named)) or begun[-1])
    lance.write_dataset(pa.table({"text": ["w" * 1_000] * 5_000}), tmp_path / "t.lance")
    pages = source_lance.pages(source_lance.listed(f"file://{tmp_path}/t.lance", Allowed()), Allowed())
    next(pages)
    pages.close()
    assert [child.process.returncode is None for child in begun] == [False, False]


def test_a_lance_table_is_a_source(tmp_path: Path, tiny_space: Path) -> None:
    rows = [{"id": n, "text": words(n), "n": n} for n in range(10)]
    uri = str(tmp_path / "t.lance")
    lance.write_dataset(pa.Table.from_pylist(rows), uri, max_rows_per_file=4)
    report = run(uri, tmp_path / "c", tiny_space)
    assert (report.embedded, report.quarantined) == (10, 0)
    assert run(uri, tmp_path / "c", tiny_space).commit is None
    table = lance.dataset(uri)
    table.delete("id = 3")
    table.update({"text": "'w9 w9 w9'"}, "id = 5")
    now = [explain(str(tmp_path / "c"), f"{uri}#id={n}").now for n in (3, 5, 7)]
    assert now == ["gone", "changed since", "unchanged"]
    report = run(uri, tmp_path / "c", tiny_space)
    assert (report.embedded, report.deleted, report.unchanged) == (1, 1, 8)
    found = {row["uri"]: row for row in live_rows(tmp_path / "c").to_pylist()}
    assert found[f"file://{uri}#id=5"]["text"] == "w9 w9 w9"
    assert found[f"file://{uri}#id=7"]["metadata"] == '{"n":7}'
    assert explain(str(tmp_path / "c"), f"{uri}#id=5").now == "unchanged"
    lance.write_dataset(pa.Table.from_pylist([{"id": 1, "text": words(1), "n": 1}]), uri, mode="overwrite")
    report = run(uri, tmp_path / "c", tiny_space, Options(OPTIONS.recipe, allow_mass_delete=True))
    assert (report.unchanged, report.deleted) == (1, 8)


def test_rows_of_a_lance_table_are_read_in_the_version_that_was_listed(tmp_path: Path) -> None:
    uri = str(tmp_path / "t.lance")
    table = lance.write_dataset(pa.table({"id": [1, 2, 3], "bytes": [b"a", b"bb", b"ccc"]}), uri)
    found = listed(Path(uri))
    table.delete("id = 1")
    assert reading.read_items(found, 100, 2) == [b"a", b"bb", b"ccc"]


def test_a_lance_table_in_a_bucket(s3_bucket: str, tiny_space: Path) -> None:
    uri = f"{s3_bucket}/t.lance"
    lance.write_dataset(pa.table({"text": [words(n) for n in range(4)]}), uri, storage_options={"allow_http": "true"})
    report = run(uri, f"{s3_bucket}/c", tiny_space)
    assert (report.embedded, report.quarantined) == (4, 0)
    assert run(uri, f"{s3_bucket}/c", tiny_space).commit is None
