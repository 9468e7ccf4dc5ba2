"""A few items are done by the command itself, with the same result; whatever is more, or told otherwise, by Ray."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from conftest import write_words
from in_process import resolved
from runs import live_rows, start

from batchproj import small_run
from batchproj.collection.unit import Task, Unit
from batchproj.objectstore import Folder
from batchproj.recipe import Pool, Recipe
from batchproj.schema import Modality
from batchproj.small_run import MOST_ITEMS, is_small
from batchproj.stages import Job


def unit(items: int, modality: Modality = Modality.TEXT, task: Task = "embed") -> Unit:
    return Unit(name="u", run="1", task=task, modality=modality, items=items, bytes=0)


def test_what_is_small(tmp_path: Path, tiny_space: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_run, "is_ray_asked_for", lambda: False)  # a test before this one may have opened it
    space = resolved(tiny_space)
    job = Job(Folder(str(tmp_path)), space.dim, space.members, Recipe())
    assert is_small(job, [unit(MOST_ITEMS)])
    assert is_small(job, [unit(20), unit(20, Modality.IMAGE), unit(20, task="project")])
    assert not is_small(job, [unit(MOST_ITEMS + 1)])
    assert not is_small(job, [unit(5), unit(5)])  # the recipe has made units smaller, so that they be spread
    told = Job(job.folder, job.dim, job.members, Recipe(pools={Modality.TEXT: Pool(workers=1)}))
    assert not is_small(told, [unit(5)])


def test_a_cluster_that_is_named_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert not small_run.is_ray_asked_for()
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    assert small_run.is_ray_asked_for()


@pytest.mark.slow
def test_with_ray_or_without_the_files_are_the_same(tmp_path: Path, corpus: Path, tiny_space: Path) -> None:
    write_words(corpus / "d0" / "again.txt", 2)
    (tmp_path / "ray.yaml").write_text("pools: {text: {workers: 1}}")
    (tmp_path / "plain.yaml").write_text("{}")
    steps = {}
    for name in ("ray", "plain"):
        recipe = tmp_path / f"{name}.yaml"
        run = start("embed", corpus, tmp_path / name, "--space", tiny_space, "--recipe", recipe, "--json")
        told, steps[name] = run.communicate(timeout=240)
        assert run.returncode == 0, steps[name]
        assert json.loads(told)["embedded"] == 25
    assert "starting workers" in steps["ray"]
    assert "starting workers" not in steps["plain"]
    assert live_rows(tmp_path / "ray").equals(live_rows(tmp_path / "plain"))
