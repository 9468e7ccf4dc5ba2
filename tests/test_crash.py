"""`kill -9` at every step of a run, in real processes: the next run does the rest, and nothing twice."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest
from conftest import write_picture, write_words
from runs import live_rows, resume, start

from batchproj.collection import layout, ledger
from batchproj.collection.ledger import Report
from batchproj.failpoint import VARIABLE
from batchproj.lanes import UNITS_AT_ONCE
from batchproj.objectstore import Folder
from batchproj.recipe import Recipe, Units
from batchproj.search import Collection

RECIPE = Recipe(units=Units(max_items=4))

COMMIT_STEPS = [
    *("commit.manifest", "commit.deleted", "commit.added", "commit.indexed", "commit.checked"),
    *("commit.snapshot", "commit.ledger", "commit.recorded", "commit.tagged", "commit.live"),
]


@dataclass(frozen=True)
class Story:
    """A collection whose second run was killed when all its units were done, and what others made of the same."""

    source: Path
    collection: Path
    recipe: Path
    before: pa.Table
    after: pa.Table
    report: Report


@pytest.fixture(scope="module")
def story(tiny_space: Path, tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("crash")
    source, first, undisturbed, killed = (folder / name for name in ("source", "first", "undisturbed", "killed"))
    (folder / "recipe.yaml").write_text("units: {max_items: 4}")
    for number in range(10):
        write_words(source / f"d{number % 3}/{number}.txt", number)
    for number in range(4):
        write_picture(source / f"d{number % 3}/{number}.png", number)
    resume(source, first, tiny_space, RECIPE)
    before = live_rows(first)
    (source / "d0/3.txt").unlink()
    write_words(source / "d1/4.txt", 104)
    write_picture(source / "d2/2.png", 102)
    write_words(source / "new.txt", 105)
    for copy in (undisturbed, killed):
        shutil.copytree(first, copy)
    report = resume(source, undisturbed, tiny_space, RECIPE)
    told = Story(source, killed, folder / "recipe.yaml", before, live_rows(undisturbed), report)
    kill_at("commit.parts", 1, told, killed, tiny_space, folder)
    return told


def kill_at(point: str, nth: int, story: Story, collection: object, space: Path, scratch: Path) -> None:
    arrivals = scratch / "arrivals"
    arrivals.mkdir()
    with run_with(point, nth, story, collection, space, arrivals) as process:
        _, said = process.communicate(timeout=240)
    assert process.returncode == -signal.SIGKILL, said


def run_with(
    point: str, nth: int, story: Story, collection: object, space: Path, arrivals: Path
) -> subprocess.Popen[str]:
    arguments = ["embed", story.source, collection, "--space", space, "--recipe", story.recipe, "--json"]
    return start(*arguments, environment={VARIABLE: f"{point}:{nth}:{arrivals}"})


@pytest.mark.parametrize(
    "point",
    [
        pytest.param(
            name, marks=[] if name in ("commit.added", "commit.recorded", "commit.tagged") else [pytest.mark.long]
        )
        for name in COMMIT_STEPS
    ],
)
def test_killed_at_a_step_of_the_commit(point: str, story: Story, tiny_space: Path, tmp_path: Path) -> None:
    shutil.copytree(story.collection, tmp_path / "c")
    killed_and_resumed(point, str(tmp_path / "c"), story, tiny_space, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "point",
    [
        pytest.param(name, marks=[] if name in ("commit.recorded", "commit.live") else [pytest.mark.long])
        for name in COMMIT_STEPS
    ],
)
def test_killed_at_a_step_of_the_commit_on_s3(
    point: str, story: Story, tiny_space: Path, s3_bucket: str, tmp_path: Path
) -> None:
    fsspec.filesystem("s3").put(f"{story.collection}/", f"{s3_bucket}/c/", recursive=True)
    killed_and_resumed(point, f"{s3_bucket}/c", story, tiny_space, tmp_path)


def killed_and_resumed(point: str, collection: str, story: Story, space: Path, scratch: Path) -> None:
    """Readers see the run before until the tag has moved, and after the rerun what the undisturbed run gave."""
    done = dict(done_records(collection))
    kill_at(point, 1, story, collection, space, scratch)
    assert live_rows(collection).equals(story.after if point == "commit.live" else story.before)
    report = resume(story.source, collection, space, RECIPE)
    assert live_rows(collection).equals(story.after)
    assert dict(done_records(collection)) == done  # no unit was done again
    is_committed = point in ("commit.recorded", "commit.tagged", "commit.live")
    assert (report.run, report.commit is None) == ("000002", is_committed)
    entries = [ledger.read_entry(Folder(collection), run) for run in ledger.numbers(Folder(collection))]
    if point == "commit.live":  # nothing was left to do, so nothing was written
        assert [entry.state for entry in entries if entry] == ["done", "running"]
    else:
        assert [entry.state for entry in entries if entry] == ["done", "done"]
    assert entries[1]
    assert entries[1].attempts == (2 if is_committed else 3)
    assert entries[1].encode_calls == story.report.encode_calls
    assert resume(story.source, collection, space, RECIPE).commit is None


def done_records(collection: str) -> Iterator[tuple[str, bytes]]:
    folder = Folder(collection)
    for unit in folder.names(layout.units("000002")):
        yield unit, folder.read(layout.unit_file("000002", unit, "done.json"))


@pytest.fixture(scope="module")
def fresh(story: Story, tiny_space: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[pa.Table, int]:
    """What a first run of the source gives, and the number of its units."""
    collection = tmp_path_factory.mktemp("fresh") / "c"
    resume(story.source, collection, tiny_space, RECIPE)
    return live_rows(collection), len(list((collection / "units" / "000001").iterdir()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("point", "which"),
    [
        pytest.param("unit.features", "first", marks=pytest.mark.long),
        ("unit.part", "middle"),
        pytest.param("unit.outcome", "last", marks=pytest.mark.long),
        pytest.param("unit.done", "first", marks=pytest.mark.long),
    ],
)
def test_a_worker_killed_at_a_step_of_a_unit_costs_no_run(
    point: str, which: str, story: Story, fresh: tuple[pa.Table, int], tiny_space: Path, tmp_path: Path
) -> None:
    rows, units = fresh
    nth = {"first": 1, "middle": units // 2, "last": units}[which]
    (tmp_path / "arrivals").mkdir()
    with run_with(point, nth, story, tmp_path / "c", tiny_space, tmp_path / "arrivals") as process:
        printed, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    # whoever did the unit again came there again, or found its done-record; the worker may have had another one in hand
    again, most = len(list((tmp_path / "arrivals").iterdir())) - units, UNITS_AT_ONCE
    assert 0 <= again < most if point == "unit.done" else 1 <= again <= most
    assert json.loads(printed)["embedded"] == rows.num_rows
    assert live_rows(tmp_path / "c").equals(rows)
    (entry,) = Collection(str(tmp_path / "c")).runs()
    assert (entry["state"], entry["attempts"]) == ("done", 1)
