"""Tables that unfold to far more than they are, and what their parser may do."""

from __future__ import annotations

import io
import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from in_process import command, without_ray
from table_files import encoded, listed, rows, write

from batchproj.errors import BatchprojError, ItemFault, SourceError, TryLater
from batchproj.objectstore import Listed, head
from batchproj.schema import Reason
from batchproj.source import parser as source_parser
from batchproj.source.listing import Seal, list_items
from batchproj.source.parser import Parser
from batchproj.source.place import fault_at, parse_place

MIB = 1 << 20
ALLOWED = 256 * MIB


@pytest.fixture(autouse=True)
def _no_ray() -> Iterator[None]:
    with without_ray():
        yield


def parquet_bomb() -> bytes:
    """A thousand values of 16 MiB, all the same: a dictionary of one, and a run of its number."""
    value = pa.array(["w" * (16 * MIB)])
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 1_000, pa.int32()), value)
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": column}), sink, compression="zstd", store_schema=False)
    return sink.getvalue()


def bad_footer(seed: int) -> bytes:
    """A Parquet file in whose footer some bytes are others."""
    data = bytearray(encoded("parquet", rows(40)))
    length = int.from_bytes(data[-8:-4], "little")
    chance = random.Random(seed)
    for _ in range(8):
        data[len(data) - 8 - chance.randrange(1, length)] = chance.randrange(256)
    return bytes(data)


def csv_bomb() -> bytes:
    return b"text\nw1\n" + b'""",' * (8 * MIB) + b"\n"


def jsonl_bomb() -> bytes:
    """A line of lists, each of which takes twenty times what it is written with."""
    return b'{"text": "w1"}\n{"text": [' + b"[]," * (8 * MIB) + b"[]]}\n" + b'{"text": "w2"}\n'


_LISTED = """
import sys
from resource import *
from batchproj.errors import SourceError
from batchproj.source.listing import list_items
from batchproj.source.parser import Parser
with Parser(int(sys.argv[2])) as parser:
    try:
        rows = sum(page.num_rows for page in list_items(sys.argv[1], "file:///c", parser=parser))
    except SourceError as error:
        rows = error
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(peak, getrusage(RUSAGE_CHILDREN).ru_maxrss, rows)
"""


@pytest.mark.parametrize(("name", "bomb"), [("t.parquet", parquet_bomb), ("t.csv", csv_bomb)], ids=["parquet", "csv"])
def test_a_table_that_unfolds_to_gigabytes_is_one_line(name: str, bomb: Callable[[], bytes], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(bomb())
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(each for each in sys.path if each)}
    program = [sys.executable, "-c", _LISTED, str(tmp_path / name), str(ALLOWED)]
    done = subprocess.run(program, capture_output=True, text=True, env=env, check=True)
    own, parsers, said = done.stdout.split(maxsplit=2)
    assert said.startswith(f"file://{tmp_path}/{name} takes more memory to list than {ALLOWED:,} bytes: ")
    assert int(own) * 1024 < 300 * MIB
    assert int(parsers) * 1024 < ALLOWED + 200 * MIB
    (recipe := tmp_path / "recipe.yaml").write_text(f"limits: {{table_bytes: {ALLOWED}}}")
    done = command("embed", tmp_path / name, tmp_path / "c", "--recipe", recipe)
    assert (done.returncode, done.stderr, (tmp_path / "c").exists()) == (2, f"error: {said}", False)


def test_a_line_that_unfolds_is_a_row_and_its_neighbours_do_not_notice(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(jsonl_bomb())
    with Parser(ALLOWED) as parser:
        pages = list(list_items(str(tmp_path / "t.jsonl"), "file:///c", parser=parser))
    places = [parse_place(place) for page in pages if not isinstance(page, Seal) for place in page["place"].to_pylist()]
    assert [place.kind for place in places] == ["jsonl", "fault", "jsonl"]
    assert str(fault_at(places[1])) == "too_large: line 2 takes more memory than a table may"


def test_a_line_of_two_gigabytes_is_a_row(tmp_path: Path) -> None:
    with (tmp_path / "t.jsonl").open("wb") as file:
        file.write(b'{"text": "w1"}\n')
        file.seek(2 << 30, io.SEEK_CUR)  # which takes no room on the disk
        file.write(b'\n{"text": "w2"}\n')
    with Parser() as parser:
        pages = list(list_items(str(tmp_path / "t.jsonl"), "file:///c", parser=parser))
    places = [parse_place(place) for page in pages if not isinstance(page, Seal) for place in page["place"].to_pylist()]
    assert [place.kind for place in places] == ["jsonl", "fault", "jsonl"]
    assert fault_at(places[1]).reason is Reason.TOO_LARGE


def test_a_damaged_footer_is_one_line_or_a_table(tmp_path: Path) -> None:
    refused = 0
    with Parser(ALLOWED) as parser:
        for seed in range(40):
            (tmp_path / "t.parquet").write_bytes(bad_footer(seed))
            said = None
            try:
                list(list_items(str(tmp_path / "t.parquet"), "file:///c", parser=parser))
            except SourceError as error:
                said = str(error)
            refused += said is not None
            assert said is None or re.fullmatch(rf"file://{tmp_path}/t\.parquet [^\n]+", said)
    assert refused


POISONED = [
    ("crash", SourceError, "t.jsonl cannot be read: it is damaged, and its parser ends with SIGSEGV; write it again$"),
    ("spin", SourceError, "t.jsonl takes more processor time to list than its [0-9]+ bytes allow: "),
    ("hang", SourceError, "t.jsonl takes more time to list than its [0-9]+ bytes allow: "),
    ("eat", SourceError, "t.jsonl takes more memory to list than 268,435,456 bytes: "),
    ("be_killed", TryLater, "t.jsonl was ended by SIGKILL, perhaps for want of memory; run the same command again$"),
    ("leave", BatchprojError, "t.jsonl ended with exit code 3"),
    ("stumble", BatchprojError, "t.jsonl cannot be listed: KeyError in poisoned_child.py, line [0-9]+: 'nothing'"),
    ("break_out", BatchprojError, r"open: \[\], secrets: \[\]"),
]


@pytest.mark.parametrize(("poison", "raised", "said"), POISONED, ids=[poison for poison, _, _ in POISONED])
def test_what_a_table_may_do_to_its_parser(
    poison: str, raised: type[BatchprojError], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    monkeypatch.setenv("HF_TOKEN", "canary")
    monkeypatch.setattr(source_parser, "PROGRAM", "poisoned_parser")
    (tmp_path / "t.jsonl").write_text(f"{poison}\n")
    sound = write(tmp_path / "sound.csv", rows())
    with Parser(ALLOWED, cpu_s=0.2 if poison == "hang" else 1.0) as parser:
        with pytest.raises(BatchprojError, match=said) as found:
            list(list_items(str(tmp_path / "t.jsonl"), "file:///c", parser=parser))
        assert type(found.value) is raised
        pages = list(list_items(str(sound), "file:///c", parser=parser))  # the next one has a parser again
        assert sum(page.num_rows for page in pages if not isinstance(page, Seal)) == 12


def test_a_parser_that_is_no_longer_ours_leads_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_parser, "PROGRAM", "poisoned_parser")
    with pytest.raises(AssertionError, match="/etc/passwd"):
        listed(write(tmp_path / "away.jsonl", rows()))


def test_one_process_for_many_tables_and_none_for_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Any] = []
    start = source_parser._start
    monkeypatch.setattr(source_parser, "_start", lambda: begun.append(start()) or begun[-1])
    for number in range(3):
        write(tmp_path / f"tables/{number}.parquet", rows())
        (tmp_path / f"{number}.txt").write_text("w1")
    assert len(listed(f"{tmp_path}/*.txt")) == 3
    assert not begun
    assert len(listed(tmp_path / "tables")) == 36
    assert [child.process.returncode for child in begun] == [-signal.SIGKILL]


def test_who_stops_half_way_leaves_no_parser_behind(tmp_path: Path) -> None:
    table = head(write(tmp_path / "t.jsonl", rows(5_000)).as_uri())
    parser = Parser()
    pages = parser.pages(table, "jsonl")
    next(pages)
    assert parser._child is not None
    process = parser._child.process
    pages.close()
    assert process.returncode is not None
    assert sum(map(len, parser.pages(table, "jsonl"))) == 5_000
    parser.close()


def test_a_table_that_is_written_while_it_is_listed_says_so(tmp_path: Path) -> None:
    table = head(write(tmp_path / "t.jsonl", rows()).as_uri())
    with Parser() as parser, pytest.raises(ItemFault) as found:
        list(parser.pages(Listed(table.uri, table.key, table.size, "1-1"), "jsonl"))
    assert found.value.reason is Reason.CHANGED


def test_times_in_zones_and_to_the_nanosecond_are_as_in_any_process(tmp_path: Path) -> None:
    kinds = [pa.timestamp("ns", "Asia/Kathmandu"), pa.timestamp("us", "+02:00"), pa.timestamp("s", "America/Lima")]
    odd = {f"t{n}": pa.array([10**9], kind) for n, kind in enumerate([*kinds, pa.duration("ns"), pa.time64("ns")])}
    pq.write_table(pa.table({"text": ["w1"], **odd}), tmp_path / "t.parquet")
    (row,) = listed(tmp_path / "t.parquet")
    said = json.loads(row["metadata"])
    assert said["t0"] == "1970-01-01T05:30:01+05:30"
    assert said["t2"] == "2001-09-08T20:46:40-05:00"
    assert len(said) == 5


def test_a_broken_table_ends_the_command_as_ever(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(bad_footer(1)[:-4] + b"PAR2")
    done = command("embed", tmp_path / "t.parquet", tmp_path / "c")
    assert (done.returncode, (tmp_path / "c").exists()) == (2, False)
    assert done.stderr.startswith(f"error: file://{tmp_path}/t.parquet is no sound Parquet file: ")
