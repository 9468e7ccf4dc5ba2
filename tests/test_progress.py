"""What a person is told while a command works."""

from __future__ import annotations

import io
from pathlib import Path

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
