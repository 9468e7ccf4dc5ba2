"""A few items are done by the command itself, with the same result; whatever is more, or told otherwise, by Ray."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from conftest import write_words
from in_process import resolved
from runs import live_rows, start, wait_for

from batchproj import small_run
from batchproj.collection.unit import Task, Unit
from batchproj.objectstore import Folder
from batchproj.project import parse_config
from batchproj.recipe import Pool, Recipe
from batchproj.schema import Modality
from batchproj.small_run import MOST_ITEMS, is_small
from batchproj.stages import Job


def tokens_cached(job: Job) -> Job:
    text = replace(job.members[Modality.TEXT], cache="tokens")
    return replace(job, members={**job.members, Modality.TEXT: text})


def unit(items: int, modality: Modality | None = Modality.TEXT, task: Task = "embed", again: bool = False) -> Unit:
    return Unit(name="u", run="1", task=task, modality=modality, items=items, bytes=0, again=again)


def test_what_is_small(tmp_path: Path, tiny_space: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_run, "is_ray_asked_for", lambda: False)  # a test before this one may have opened it
    space = resolved(tiny_space)
    job = Job(Folder(str(tmp_path)), space.dim, space.members, Recipe())
    assert is_small(job, [unit(MOST_ITEMS)])
    assert is_small(job, [unit(20), unit(20, Modality.IMAGE), unit(20, task="project")])
    assert is_small(job, [unit(5), unit(5, None), unit(5, Modality.VIDEO), unit(5, again=True)])
    assert not is_small(job, [unit(MOST_ITEMS + 1)])
    assert not is_small(job, [unit(5), unit(5)])  # the recipe has made units smaller, so that they be spread
    assert is_small(job, [unit(5), *[unit(1_000, task="project")] * 300])
    assert not is_small(job, [unit(1_000, task="project")] * 301)
    assert not is_small(tokens_cached(job), [unit(MOST_ITEMS + 1, task="project")])  # there is more of each
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


@pytest.mark.long
def test_what_is_projected_by_threads_has_the_bits_of_rays_workers(tmp_path: Path, tiny_space: Path) -> None:
    for number in range(20):
        write_words(tmp_path / "s" / f"{number}.txt", number + 1)
    projected = tmp_path / "projected"
    projected.mkdir()
    torch.manual_seed(1)
    parse_config({"kind": "mlp", "in_dim": 24, "out_dim": 24}).build().save(projected / "text.safetensors")
    projector = {"kind": "mlp", "weights": "text.safetensors"}
    text = {**yaml.safe_load(tiny_space.read_text())["text"], "projector": projector}
    (projected / "space.yaml").write_text(yaml.safe_dump({"name": "projected", "dim": 24, "text": text}))
    (tmp_path / "ray.yaml").write_text("{pools: {text: {workers: 1}}, units: {max_items: 4}}")
    (tmp_path / "plain.yaml").write_text("units: {max_items: 4}")

    def embed(name: str, space: Path, recipe: str) -> tuple[str, int]:
        told = ["embed", tmp_path / "s", tmp_path / name, "--space", space, "--recipe", tmp_path / recipe, "--json"]
        run = start(*told, "--force")
        out, steps = run.communicate(timeout=240)
        assert run.returncode == 0, steps
        return steps, json.loads(out)["reprojected"]

    embed("ray", tiny_space, "ray.yaml")
    assert len(list((tmp_path / "ray" / "features").glob("*/*.parquet"))) >= 3
    shutil.copytree(tmp_path / "ray", tmp_path / "plain")
    steps = {}
    for name in ("ray", "plain"):
        steps[name], reprojected = embed(name, projected / "space.yaml", f"{name}.yaml")
        assert reprojected == 20
    assert "starting workers" in steps["ray"]
    assert "starting workers" not in steps["plain"]
    assert live_rows(tmp_path / "ray").equals(live_rows(tmp_path / "plain"))


HANGS = """if True:
    import pathlib, sys, time
    from batchproj import cli
    from batchproj.source import reading

    def hangs(*_):
        pathlib.Path(sys.argv[2] + ".reading").touch()
        time.sleep(600)  # as in a mount that is away: no signal gets there

    reading.read_pinned = hangs
    sys.argv = ["batchproj", *sys.argv[1:]]
    cli.main()
"""


@contextlib.contextmanager
def hanging(tmp_path: Path, space: Path, recipe: str) -> Iterator[subprocess.Popen[str]]:
    write_words(tmp_path / "s" / "one.txt", 1)
    (tmp_path / "recipe.yaml").write_text(recipe)
    arguments = ["embed", tmp_path / "s", tmp_path / "c", "--space", space, "--recipe", tmp_path / "recipe.yaml"]
    line = [sys.executable, "-c", HANGS, *map(str, arguments)]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as run:
        try:
            yield run
        finally:
            run.kill()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.long)]
)
def test_a_read_that_hangs_holds_up_no_signal(
    tmp_path: Path, tiny_space: Path, number: signal.Signals, code: int
) -> None:
    with hanging(tmp_path, tiny_space, "{}") as run:
        wait_for(lambda: (tmp_path / "s.reading").exists())
        run.send_signal(number)
        _, said = run.communicate(timeout=30)
    assert (run.returncode, "run the same command again" in said) == (code, True), said
    assert json.loads((tmp_path / "c/lock.json").read_text())["released"]


def test_a_read_that_hangs_is_a_stall(tmp_path: Path, tiny_space: Path) -> None:
    with hanging(tmp_path, tiny_space, "stall_s: 15") as run:  # loading the encoder takes several on a busy machine
        _, said = run.communicate(timeout=90)
    assert run.returncode == 75, said
    assert "reading unit" in said
    assert "Traceback" not in said
