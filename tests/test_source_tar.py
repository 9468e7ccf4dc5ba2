"""Members of WebDataset shards as items: listed by their headers, read by ranges, never extracted."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import WORDS
from in_process import quiet, run, without_ray
from runs import live_rows
from table_files import listed, picture, quarantined

import batchproj
from batchproj.errors import SourceError
from batchproj.explain import explain
from batchproj.forget import forget
from batchproj.objectstore import Folder, Listed, head
from batchproj.source import pinned
from batchproj.source.listing import list_items
from batchproj.source.tar import list_members
from batchproj.verify import verify

Members = dict[str, bytes]


@pytest.fixture(autouse=True)
def _no_ray() -> Iterator[None]:
    with without_ray():
        yield


def words(seed: int) -> bytes:
    return " ".join(np.random.default_rng(seed).choice(WORDS[1:], 6)).encode()


def samples(begin: int, end: int) -> Members:
    members = {}
    for number in range(begin, end):
        members[f"d/{number:04d}.png"] = picture(number)
        members[f"d/{number:04d}.caption.txt"] = words(number)
        members[f"d/{number:04d}.json"] = json.dumps({"number": number, "parity": ["even", "odd"][number % 2]}).encode()
    return members


def tar(members: Members, odd: list[tarfile.TarInfo] | None = None, kind: int = tarfile.PAX_FORMAT) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=kind) as opened:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            opened.addfile(info, io.BytesIO(data))
        for info in odd or []:
            opened.addfile(info)
    return sink.getvalue()


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def by_name(collection: object) -> dict[str, dict[str, object]]:
    return {row["uri"].rpartition("/")[2]: row for row in live_rows(collection).to_pylist()}


def names(listed: Listed) -> list[str]:
    return [uri.rpartition("#")[2] for page in list_members(listed) for uri in page["uri"].to_pylist()]


def test_shards_are_embedded_and_a_second_run_reads_nothing(
    tmp_path: Path, tiny_space: Path, reads: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "s/shard-0000.tar", tar(samples(0, 4)))
    write(tmp_path / "s/shard-0001.tar", tar(samples(4, 8)))
    report = run(tmp_path / "s", tmp_path / "c", tiny_space)
    assert (report.items, report.embedded, report.encode_calls) == (16, 16, {"image": 8, "text": 8})
    rows = by_name(tmp_path / "c")
    row = rows["0005.caption.txt"]
    assert row["uri"] == f"file://{tmp_path}/s/shard-0001.tar#d/0005.caption.txt"
    assert (row["pair"], row["text"]) == ("d/0005", words(5).decode())
    assert row["metadata"] == '{"number":5,"parity":"odd"}'
    assert rows["0005.png"]["pair"] == "d/0005"
    assert {row["uri"] for row in rows.values()} == set(reads)
    assert sum(reads.values()) == 16
    hits = batchproj.open(str(tmp_path / "c")).search("w1", where=["parity=odd"], k=100)
    assert len(hits) == 8
    assert not verify(str(tmp_path / "c"), quiet).damaged
    monkeypatch.setattr(pinned, "read_range", None)  # not a byte of a shard, neither of its headers
    for source in (tmp_path / "s", tmp_path / "s/*.tar", tmp_path / "s/shard-000?.tar"):
        assert run(source, tmp_path / "c", tiny_space).commit is None
    assert sum(reads.values()) == 16


def test_a_shard_that_is_written_again_is_read_and_only_what_differs_encoded(
    tmp_path: Path, tiny_space: Path, reads: Counter[str]
) -> None:
    members = samples(0, 4)
    write(tmp_path / "s/a.tar", tar(members))
    write(tmp_path / "s/b.tar", tar(samples(4, 8)))
    run(tmp_path / "s", tmp_path / "c", tiny_space)
    reads.clear()
    members["d/0001.caption.txt"] = b"w1 w1 w1"
    members["d/0002.json"] = b'{"number": 22}'
    del members["d/0003.png"]
    write(tmp_path / "s/a.tar", tar(members))
    report = run(tmp_path / "s", tmp_path / "c", tiny_space)
    assert (report.embedded, report.copied, report.deleted, report.unchanged) == (1, 6, 1, 8)
    assert report.encode_calls == {"image": 0, "text": 1}
    assert all("/a.tar#" in uri for uri in reads)
    rows = by_name(tmp_path / "c")
    assert rows["0001.caption.txt"]["text"] == "w1 w1 w1"
    assert rows["0002.png"]["metadata"] == '{"number":22}'
    assert run(tmp_path / "s", tmp_path / "c", tiny_space).commit is None


def test_listing_passes_over_the_contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = write(tmp_path / "a.tar", tar({f"{n}.bin": bytes(5_000_000) for n in range(4)}))
    amount = 0
    read_range = pinned.read_range

    def counting(uri: str, start: int, length: int, version: str) -> bytes:
        nonlocal amount
        amount += length
        return read_range(uri, start, length, version)

    monkeypatch.setattr(pinned, "read_range", counting)
    assert names(as_listed(shard)) == [f"{n}.bin" for n in range(4)]
    assert amount < 12_000_000  # of 20 MB: a buffer before each header and behind it


def as_listed(path: Path) -> Listed:
    info = path.stat()
    return Listed(f"file://{path}", path.name, info.st_size, f"{info.st_size}-{info.st_mtime_ns}")


def hostile() -> list[tarfile.TarInfo]:
    found = []
    for name, kind in [
        ("../../escape.txt", tarfile.REGTYPE),
        ("/etc/passwd", tarfile.REGTYPE),
        ("a/../../b.txt", tarfile.REGTYPE),
        ("link.txt", tarfile.SYMTYPE),
        ("hard.txt", tarfile.LNKTYPE),
        ("null", tarfile.CHRTYPE),
        ("pipe", tarfile.FIFOTYPE),
        ("folder", tarfile.DIRTYPE),
        ("caf\udce9.txt", tarfile.REGTYPE),
    ]:
        info = tarfile.TarInfo(name)
        info.type = kind
        info.linkname = "/etc/passwd"
        found.append(info)
    return found


def test_hostile_members_are_quarantined_and_nothing_is_extracted(tmp_path: Path, tiny_space: Path) -> None:
    shard = write(tmp_path / "s/a.tar", tar(samples(0, 1), hostile(), tarfile.GNU_FORMAT))
    before = sorted(tmp_path.rglob("*"))
    report = run(shard, tmp_path / "c", tiny_space)
    found = {uri: text.partition(":")[0] for uri, text in quarantined(tmp_path / "c", report).items()}
    assert found == {
        **dict.fromkeys(["../../escape.txt", "/etc/passwd", "a/../../b.txt", "caf\\xe9.txt"], "bad_name"),
        **dict.fromkeys(["link.txt", "hard.txt", "null", "pipe"], "unsupported_format"),
    }
    assert report.embedded == 2
    assert [path for path in sorted(tmp_path.rglob("*")) if tmp_path / "c" not in (path, *path.parents)] == before
    assert run(shard, tmp_path / "c", tiny_space).commit is None


@pytest.mark.parametrize(
    ("linked", "advice"), [("symbolic", "--dereference --hard-dereference"), ("hard", "--hard-dereference")]
)
def test_who_takes_the_advice_on_links_has_their_contents_embedded(
    linked: str, advice: str, tmp_path: Path, tiny_space: Path
) -> None:
    """By GNU tar itself."""
    text = write(tmp_path / "f/a.txt", words(0))
    link = tmp_path / "f/b.txt"
    link.symlink_to("a.txt") if linked == "symbolic" else link.hardlink_to(text)
    embedded = []
    for number, option in enumerate([[], advice.split()]):
        shard = tmp_path / f"{number}.tar"
        subprocess.run(["tar", "-cf", shard, *option, "-C", tmp_path / "f", "a.txt", "b.txt"], check=True)
        report = run(shard, tmp_path / f"c{number}", tiny_space)
        embedded.append(
            (report.embedded, [advice in said for said in quarantined(tmp_path / f"c{number}", report).values()])
        )
    assert embedded == [(1, [True]), (2, [])]


def test_a_shard_that_ends_too_early_gives_what_is_whole_and_one_row(tmp_path: Path, tiny_space: Path) -> None:
    whole = tar(samples(0, 4))
    reasons = {}
    for name, data in {
        "content": whole[: whole.index(words(2)) + 5],
        "header": whole[: whole.index(b"d/0002.caption.txt") + 100],
        "unmarked": whole.rstrip(b"\0") + bytes(-len(whole.rstrip(b"\0")) % 512),
        "garbage": whole[: whole.index(b"d/0001.png")] + b"garbage" * 1000,
        "none": b"no tar at all " * 100,
        "empty": b"",
    }.items():
        shard = write(tmp_path / name / "a.tar", data)
        report = run(shard, tmp_path / f"c-{name}", tiny_space)
        reasons[name] = report.embedded, sorted(quarantined(tmp_path / f"c-{name}", report).values())
    assert {name: (embedded, len(rows)) for name, (embedded, rows) in reasons.items()} == {
        "content": (5, 1),
        "header": (5, 1),
        "unmarked": (8, 1),
        "garbage": (2, 1),
        "none": (0, 1),
        "empty": (0, 1),
    }
    assert all(text.startswith("truncated: ") and "is no whole tar" in text for _, (text,) in reasons.values())


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_header_of_any_size_is_not_read_into_memory(kind: bytes, is_first: bool, tmp_path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, 2**30
    sound = b"" if is_first else tar({"a.txt": b"w1"}, kind=tarfile.USTAR_FORMAT)[:1024]
    shard = write(tmp_path / "a.tar", sound + info.tobuf(tarfile.GNU_FORMAT))
    with shard.open("r+b") as file:
        file.truncate(2**30 + 10_240)
    asked = []
    read_range = pinned.read_range
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pinned, "read_range", lambda *given: asked.append(given[2]) or read_range(*given))
        found = [row for page in list_members(as_listed(shard)) for row in page.to_pylist()]
    assert sum(asked) < 10_000_000
    assert [row["place"] for row in found if "a header of 1073741824 bytes" in row["place"]]
    assert len(found) == (1 if is_first else 2)


def test_names_of_any_kind_and_json_that_describes_nothing(tmp_path: Path, tiny_space: Path) -> None:
    long = "x" * 150 + "/" + "y" * 120 + ".txt"
    members = {
        long: b"w1 w2",
        "./dot/a.txt": b"w2 w3",
        "hash#a.txt": b"w3 w4",
        "hash%23a.txt": b"w4 w5",
        "ü.txt": b"w5 w6",
        "alone.json": b'{"text": "w7"}',
        "list.json": b"[1, 2]",
        "list.txt": b"w6 w7",
        "broken.json": b'{"n": 1,}',
        "broken.txt": b"w10",
        "alone_and_broken.json": b'{"n": 1,}',
        "twice.txt": b"w8",
    }
    data = {**members, "twice.txt": b"w8"}
    sink = io.BytesIO(tar(data))
    with tarfile.open(fileobj=sink, mode="a") as opened:
        info = tarfile.TarInfo("twice.txt")
        info.size = 2
        opened.addfile(info, io.BytesIO(b"w9"))
    shard = write(tmp_path / "a.tar", sink.getvalue())
    report = run(shard, tmp_path / "c", tiny_space)
    assert (report.items, report.embedded) == (12, 11)
    assert quarantined(tmp_path / "c", report)["broken.json"].startswith(
        "bad_row: the metadata of its pair, but no JSON: "
    )
    texts = {row["uri"].rpartition("#")[2]: row["text"] for row in live_rows(tmp_path / "c").to_pylist()}
    assert texts == {
        long: "w1 w2",
        "dot/a.txt": "w2 w3",
        "hash%23a.txt": "w3 w4",
        "hash%2523a.txt": "w4 w5",
        "ü.txt": "w5 w6",
        "alone.json": '{"text": "w7"}',
        "list.json": "[1, 2]",
        "list.txt": "w6 w7",
        "broken.txt": "w10",
        "alone_and_broken.json": '{"n": 1,}',
        "twice.txt": "w9",
    }


def test_a_compressed_tar_says_so(tmp_path: Path) -> None:
    data = gzip.compress(tar({"a.txt": b"w1"}))
    ((row,),) = [page.to_pylist() for page in list_members(head(write(tmp_path / "a.tar", data).as_uri()))]
    assert "is compressed with gzip, so its members cannot be read by range; gunzip it" in row["place"]
    for name in ("b.tar.gz", "b.tgz"):  # whatever is in it
        with pytest.raises(SourceError, match=f"{name} is a compressed tar, .*; decompress it to a .tar"):
            list(list_items(str(write(tmp_path / name, data[:1])), "file:///c"))


def test_shards_in_a_bucket_are_read_by_ranges(s3_bucket: str, tmp_path: Path, tiny_space: Path) -> None:
    folder = Folder(f"{s3_bucket}/s")
    folder.write("shard-0000.tar", tar(samples(0, 3)))
    folder.write("shard-0001.tar", tar(samples(3, 6)))
    source, collection = folder.uri, f"{s3_bucket}/c"
    report = run(source, collection, tiny_space)
    assert (report.embedded, report.quarantined) == (12, 0)
    uri = f"{source}/shard-0001.tar#d/0004.png"
    assert by_name(collection)["0004.png"]["uri"] == uri
    assert run(source, collection, tiny_space).commit is None
    shown = explain(collection, uri)
    assert (shown.now, shown.pair, shown.metadata) == ("unchanged", "d/0004", '{"number":4,"parity":"even"}')
    forget(collection, uri, quiet)
    assert run(source, collection, tiny_space).commit is None
    folder.write("shard-0001.tar", tar(samples(4, 7)))
    assert explain(collection, f"{source}/shard-0001.tar#d/0005.png").now == "changed since"
    assert explain(collection, f"{source}/shard-0001.tar#d/0003.png").now == "gone"
    report = run(source, collection, tiny_space)
    assert (report.embedded, report.copied, report.deleted) == (2, 3, 2)
    assert "0004.png" not in by_name(collection)


def test_a_member_larger_than_any_file_ends_its_shard_too_early(tmp_path: Path) -> None:
    header = bytearray(tarfile.TarInfo("a.txt").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\x80\0\0\0\x7f" + b"\xff" * 7  # its size, base 256
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "t.tar").write_bytes(bytes(header) + bytes(1024))
    (row,) = listed(tmp_path / "t.tar")
    assert "is no whole tar" in row["place"]
