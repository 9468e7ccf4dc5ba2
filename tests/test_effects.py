"""Only the work that changed, counted where it cannot be talked away: at a proxy before the store."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import in_process
import numpy as np
import pytest
import torch
from conftest import WORDS, write_words
from proxy import proxied

import batchproj
from batchproj.collection.ledger import Report
from batchproj.embed import Options, Watch, embed
from batchproj.project.linear import Config
from batchproj.space import ResolvedSpace, open_space, resolve
from batchproj.switch import rollback


def words(number: int) -> bytes:
    return " ".join(np.random.default_rng(number).choice(WORDS[1:], 12)).encode()


Command = Callable[..., Any]
"""A `batchproj` command's JSON."""


def here(*arguments: object) -> Any:
    done = in_process.command(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def elsewhere(*arguments: object) -> Any:
    """In a process of its own, with Ray."""
    line = [sys.executable, "-m", "batchproj.cli", *map(str, arguments), "--json"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def text_space(tiny_clip: Path, tmp_path: Path) -> Path:
    """Texts alone, without a projector."""
    (tmp_path / "space.yaml").write_text(
        f"name: texts\ndim: 24\ntext: {{encoder: {{kind: clip, model: {tiny_clip}}}}}\n"
    )
    return tmp_path / "space.yaml"


@pytest.fixture
def projected_space(tiny_clip: Path, tmp_path: Path) -> Path:
    """The same encoder under a linear projector: other vectors from equal features."""
    torch.manual_seed(0)
    folder = tmp_path / "projected"
    folder.mkdir()
    Config(in_dim=24, out_dim=24).build().save(folder / "text.safetensors")
    projector = "projector: {kind: linear, weights: text.safetensors}"
    (folder / "space.yaml").write_text(
        f"name: projected\ndim: 24\ntext: {{encoder: {{kind: clip, model: {tiny_clip}}}, {projector}}}\n"
    )
    return folder / "space.yaml"


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("objects", "command"),
    [
        pytest.param(30, here, id="30"),
        pytest.param(10_000, elsewhere, id="10000", marks=pytest.mark.long),
    ],
)
def test_many_objects_and_three_changes(
    objects: int, command: Command, s3_endpoint: str, s3_bucket: str, text_space: Path, projected_space: Path
) -> None:
    bucket = s3_bucket.removeprefix("s3://")
    store = fsspec.filesystem("s3")
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: store.pipe_file(f"{bucket}/texts/{n:05d}.txt", words(n)), range(objects)))
    source, collection = f"{s3_bucket}/texts", f"{s3_bucket}/c"
    with proxied(s3_endpoint) as proxy:
        first = command("embed", source, collection, "--space", text_space)
        assert first["encode_calls"] == {"text": objects}
        assert proxy.object_reads(bucket, "texts/").total() == objects

        proxy.clear()
        same = command("embed", source, collection)
        assert (same["unchanged"], same["commit"], same["encode_calls"]) == (objects, None, {})
        assert not proxy.object_reads(bucket, "texts/")
        assert {request.method for request in proxy.requests} <= {"GET", "HEAD"}  # nothing is written

        for number in (17, objects // 2, objects - 1):
            store.pipe_file(f"{bucket}/texts/{number:05d}.txt", words(objects + number))
        proxy.clear()
        changed = command("embed", source, collection)
        assert (changed["embedded"], changed["unchanged"], changed["encode_calls"]) == (3, objects - 3, {"text": 3})
        assert list(proxy.object_reads(bucket, "texts/").values()) == [1, 1, 1]

        proxy.clear()
        projected = command("embed", source, collection, "--space", projected_space)
        assert (projected["reprojected"], projected["embedded"]) == (objects, 0)
        assert sum(projected["encode_calls"].values()) == 0
        assert not proxy.object_reads(bucket, "texts/")
    assert batchproj.open(collection).table().num_rows == objects


@pytest.mark.usefixtures("no_ray")
def test_switches_under_queries_fail_none_and_mix_nothing(
    tmp_path: Path, text_space: Path, projected_space: Path
) -> None:
    """Every answer is wholly of the one run or wholly of the other, while the tag moves 20 times."""
    for number in range(40):
        write_words(tmp_path / "texts" / f"{number}.txt", number)
    collection = str(tmp_path / "c")
    reports: list[Report] = [
        embed(str(tmp_path / "texts"), collection, resolve(open_space(str(space))), Options(), Watch())
        for space in (text_space, projected_space)
    ]
    query = np.float32(np.random.default_rng(0).normal(size=24))

    def answer() -> list[tuple[str, float]]:
        return [(hit.id, hit.score) for hit in batchproj.open(collection).nearest(query, k=40)]

    expected = []
    for report in reports:
        rollback(collection, report.run, print)
        expected.append(answer())
    assert expected[0] != expected[1]
    done = threading.Event()
    answers: list[list[tuple[str, float]]] = []

    def ask() -> None:
        while not done.is_set():
            answers.append(answer())

    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(ask) for _ in range(2)]
        for switch in range(20):
            rollback(collection, reports[switch % 2].run, print)
            while len(answers) <= switch and not any(each.done() for each in asking):  # however busy the machine is
                time.sleep(0.01)
        done.set()
        for each in asking:
            each.result()
    assert len(answers) >= 20
    assert [each for each in answers if each not in expected] == []


@pytest.mark.usefixtures("no_ray")
def test_vectors_of_two_models_never_meet(tiny_clip: Path, tmp_path: Path) -> None:
    """A model that is exchanged between a stop and the rerun makes all vectors, also of what was done before."""
    from transformers import CLIPModel

    model = tmp_path / "model"
    shutil.copytree(tiny_clip, model)
    (tmp_path / "space.yaml").write_text(f"name: t\ndim: 24\ntext: {{encoder: {{kind: clip, model: {model}}}}}\n")
    for number in range(24):
        write_words(tmp_path / "texts" / f"{number:02d}.txt", number)

    def run(space: ResolvedSpace) -> Report:
        return embed(str(tmp_path / "texts"), str(tmp_path / "c"), space, in_process.OPTIONS, Watch())

    with in_process.stopped_when_its_units_are_done():
        run(resolve(open_space(str(tmp_path / "space.yaml"))))
    torch.manual_seed(1)
    CLIPModel(CLIPModel.from_pretrained(model).config).save_pretrained(model)
    space = resolve(open_space(str(tmp_path / "space.yaml")))
    report = run(space)
    assert (report.run, report.encode_calls) == ("000001", {"text": 24})
    live = batchproj.open(str(tmp_path / "c")).table()
    assert set(live["fingerprint"].to_pylist()) == {member.vector_fp for member in space.members.values()}
