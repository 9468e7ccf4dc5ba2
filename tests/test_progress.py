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
    assert said("warning: a", "warning: b", "warning: c", "two") == ["warning: a", "warning: b", "warning: c", "two"]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that progress sees."""
    now = [0.0]
    monkeypatch.setattr("batchproj.progress.time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_rates_are_of_what_was_counted_between_the_first_and_the_last_and_the_end_is_told(clock: list[float]) -> None:
    stream = io.StringIO()
    seen: list[tuple[float, dict[str, int]]] = [
        (6.0, {}),  # everything starts: a sign of life
        (20.0, {"text": 500}),  # nobody knows when the first of these was begun
        (22.0, {"text": 800}),
        (26.0, {"text": 800, "image": 4}),
        (28.0, {"text": 1_000, "image": 7}),
        (29.0, {"text": 1_000, "image": 10}),
        (60.0, {"text": 1_000, "image": 10}),
    ]
    with RunProgress(stream) as progress:
        progress.totals({"text": 100}, {"text": 1_000, "image": 10})
        for clock[0], done in seen:
            progress.progress(done)
        progress.step("checking")
    assert [line.strip() for line in stream.getvalue().splitlines()] == [
        "image 0/10 · text 100/1,100",
        "image 0/10 · text 600/1,100",
        "image 4/10 · text 900/1,100 (150.0/s, 1 s left)",
        "image 10/10 (2.0/s) · text 1,100/1,100 (62.5/s)",
        "checking",
    ]


def test_a_step_beside_counts_brings_no_line_and_what_was_counted_before_another_is_told(clock: list[float]) -> None:
    stream = io.StringIO()
    with RunProgress(stream) as progress:
        for clock[0], done in [(10.0, 0), (11.0, 5), (13.0, 7)]:
            progress.counted("steps", done, 10)
        progress.step("the store is away")
        progress.counted("files", 0, 3)
        progress.progress({})
    assert [line.strip() for line in stream.getvalue().splitlines()] == [
        "the store is away",
        "steps 7/10 (1.0/s, 3 s left)",
    ]


def test_a_terminal_keeps_the_line_of_the_end(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    with RunProgress(stream) as progress:
        progress.totals({}, {"text": 201})
        clock[0] = 3.0
        progress.progress({"text": 201})
        progress.totals({"text": 201}, {})
        progress.step("checking")
    assert "text 201/201\n" in stream.getvalue()


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
