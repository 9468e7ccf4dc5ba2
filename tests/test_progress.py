"""What a person is told while a command works."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
from in_process import OPTIONS, resolved, without_ray
from table_files import rows, write

from batchproj.embed import Watch, embed
from batchproj.progress import RunProgress


def said(*steps: str) -> list[str]:
    stream = io.StringIO()
    with RunProgress(stream) as progress:
        for step in steps:
            progress.step(step)
    return [line.strip() for line in stream.getvalue().splitlines()]


def test_a_step_that_counts_tells_its_first_count_and_its_last() -> None:
    assert said("listing s: 1 items", "listing s: 2 items", "listing s: 3 items", "starting workers") == [
        "listing s: 1 items",
        "listing s: 3 items",
        "starting workers",
    ]
    assert said("files read: 1", "files read: 2") == ["files read: 1", "files read: 2"]
    assert said("one", "two") == ["one", "two"]


def test_what_it_takes_to_start_has_no_part_in_the_rate_and_the_last_line_tells_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr("batchproj.progress.time", SimpleNamespace(monotonic=lambda: clock[0]))
    stream = io.StringIO()
    with RunProgress(stream) as progress:
        progress.totals({"text": 100}, {"text": 1_000, "image": 10})
        end = {"text": 1_000, "image": 10}
        for clock[0], done in [(20.0, {}), (21.0, {"text": 500}), (21.5, {"text": 1_000}), (22.0, end)]:
            progress.progress(done)
        progress.step("checking")
    assert [line.strip() for line in stream.getvalue().splitlines()] == [
        "image 0/10 (0.0/s) · text 600/1,100 (500.0/s, 1 s left)",
        "image 10/10 (20.0/s) · text 1,100/1,100 (500.0/s)",
        "checking",
    ]


def test_a_step_beside_counts_brings_no_line_and_what_was_counted_before_another_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr("batchproj.progress.time", SimpleNamespace(monotonic=lambda: clock[0]))
    stream = io.StringIO()
    with RunProgress(stream) as progress:
        for clock[0], done in [(10.0, 0), (11.0, 5), (12.0, 6)]:
            progress.counted("steps", done, 10)
        progress.step("the store is away")
        progress.counted("files", 0, 3)
        progress.progress({})
    assert [line.strip() for line in stream.getvalue().splitlines()] == [
        "steps 5/10 (5.0/s, 1 s left)",
        "the store is away",
        "steps 6/10 (3.0/s, 1 s left)",
    ]


def test_the_rows_of_all_tables_are_counted_those_of_unchanged_ones_too(tmp_path: Path, tiny_space: Path) -> None:
    for name in "abc":
        write(tmp_path / f"s/{name}.parquet", [{**row, "id": f"{name}{row['id']}"} for row in rows(4)])
    told: list[str] = []
    watch = Watch(told.append)
    with without_ray():
        embed(str(tmp_path / "s"), str(tmp_path / "c"), resolved(tiny_space), OPTIONS, watch)
        assert [line for line in told if line.startswith("listing")][-1].endswith(": 12 items")
        told.clear()
        write(tmp_path / "s/b.parquet", rows(5))
        embed(str(tmp_path / "s"), str(tmp_path / "c"), resolved(tiny_space), OPTIONS, watch)
    assert [line for line in told if line.startswith("listing")][-1].endswith(": 13 items")
