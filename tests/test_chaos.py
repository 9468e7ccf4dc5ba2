"""Random `kill -9` while a run works: in the end nothing is lost, nothing double, every vector the same."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import write_picture, write_words
from runs import descendants, live_rows, start, wait_for

from batchproj.failpoint import VARIABLE
from batchproj.search import Collection

ITEMS = int(os.environ.get("BATCHPROJ_CHAOS_ITEMS", "2000"))
SEEDS = [int(seed) for seed in os.environ.get("BATCHPROJ_CHAOS_SEEDS", "1,2,3").split(",")]
"""Two minutes and more each; `BATCHPROJ_CHAOS_SEEDS=7 python -m pytest -m long tests/test_chaos.py -s` repeats one."""

UNIT_ITEMS = 32

PACE = "unit.begun:1s"
"""The tests' tiny encoders would be done before most of the kills."""

PROCESSES = {"encoder": "ray::MapWorker", "task": "ray::MapBatches", "desk": "ray::_Desk"}
"""What Ray calls the processes that run code of ours; tasks read or write."""

VICTIMS = ["driver"] * 3 + ["raylet"] + ["encoder"] * 7 + ["task"] * 7 + ["desk"] * 2

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chaos") / "source"
    for number in range(ITEMS // 2):
        write_words(folder / f"d{number % 7}/{number:05d}.txt", number)
        write_picture(folder / f"d{number % 5}/{number:05d}.png", number)
    return folder


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    file.write_text(f"units: {{max_items: {UNIT_ITEMS}}}")
    return file


@pytest.fixture(scope="module")
def undisturbed(
    source: Path, recipe: Path, tiny_space: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[pa.Table, int]:
    """The rows of a run that nothing happened to, and the number of its units."""
    collection = tmp_path_factory.mktemp("undisturbed") / "c"
    process = start("embed", source, collection, "--space", tiny_space, "--recipe", recipe)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said
    return live_rows(collection), len(list((collection / "units/000001").iterdir()))


class TwoNodes:
    """A Ray cluster of two raylets on this machine."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        self._second = self._cluster.add_node(num_cpus=2)
        self.address = self._cluster.address

    def kill_raylet(self) -> None:
        os.kill(self._second.all_processes["raylet"][0].process.pid, signal.SIGKILL)

    def close(self) -> None:
        self._cluster.shutdown()


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[TwoNodes]:
    monkeypatch.setenv(VARIABLE, PACE)  # workers inherit from their node, not from the command
    nodes = TwoNodes()
    yield nodes
    nodes.close()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_run_under_random_kills_gives_what_an_undisturbed_one_gives(
    seed: int,
    source: Path,
    recipe: Path,
    undisturbed: tuple[pa.Table, int],
    two_nodes: TwoNodes,
    tiny_space: Path,
    tmp_path: Path,
) -> None:
    rows, units = undisturbed
    collection = tmp_path / "c"
    chance = random.Random(seed)
    victims = chance.sample(VICTIMS, len(VICTIMS))
    moments = sorted(chance.choices(range(1, units // 2), k=len(victims)))
    print(f"seed {seed}, {units} units, kills after so many of them: {list(zip(moments, victims, strict=True))}")

    def begin() -> subprocess.Popen[str]:
        arguments = ("embed", source, collection, "--space", tiny_space, "--recipe", recipe)
        return start(*arguments, group=True, environment={"RAY_ADDRESS": two_nodes.address})

    hit: Counter[str] = Counter()
    process = begin()
    try:
        for moment, victim in zip(moments, victims, strict=True):
            wait_until(process, partial(has_done, collection, moment))
            if victim in PROCESSES:
                hit[kill_a_worker(process, chance, PROCESSES[victim])] += 1
            elif victim == "raylet":
                two_nodes.kill_raylet()
                hit["raylet"] += 1
            else:
                wait_until(process, partial(has_begun, collection, 1 + hit["driver and its group"]))
                kill_group(process)
                hit["driver and its group"] += 1
                process = begin()
        _, said = process.communicate(timeout=600)
    finally:
        if process.poll() is None:
            kill_group(process)
    print(f"killed: {dict(hit)}")
    assert process.returncode == 0, said
    assert hit.total() == len(VICTIMS)
    assert live_rows(collection).equals(rows)
    (entry,) = Collection(str(collection)).runs()
    assert (entry["state"], entry["attempts"]) == ("done", 1 + hit["driver and its group"])
    assert sum(entry["encode_calls"].values()) == entry["rows"] == 2 * (ITEMS // 2)


def has_done(collection: Path, units: int) -> bool:
    return len(list(collection.glob("units/000001/*/done.json"))) >= units


def has_begun(collection: Path, attempts: int) -> bool:
    """Whether the ledger knows of so many starts of the run."""
    try:
        return bool(json.loads((collection / "runs/000001.json").read_text())["attempts"] >= attempts)
    except FileNotFoundError:
        return False


def wait_until(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    """Wait for a condition while the run goes on; all kills must come before its end."""
    wait_for(lambda: condition() or process.poll() is not None, 600)
    assert process.poll() is None, process.communicate()


def kill_a_worker(process: subprocess.Popen[str], chance: random.Random, kind: str) -> str:
    """Kill one of Ray's workers, one of a kind if there is such a one within some seconds; what it was doing."""

    def workers(*kinds: str) -> list[tuple[str, int]]:
        named = ((name.partition(" ")[0], pid) for pid, name in descendants(os.getpid()).items())
        return sorted((name, pid) for name, pid in named if name.startswith(kinds))

    patience = time.monotonic() + 3
    while True:
        wait_until(process, lambda: bool(workers(*PROCESSES.values())))
        found = workers(kind)
        if not found and time.monotonic() < patience:
            time.sleep(0.05)
            continue
        if not (found := found or workers(*PROCESSES.values())):
            continue
        name, pid = chance.choice(found)
        with suppress(ProcessLookupError):  # over by itself
            os.kill(pid, signal.SIGKILL)
            return name


def kill_group(process: subprocess.Popen[str]) -> None:
    """Kill a driver with all of its group, and wait until what it had started has followed."""
    started = descendants(process.pid)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    deadline = time.monotonic() + 120
    for pid in started:
        while Path(f"/proc/{pid}").exists():
            assert time.monotonic() < deadline, f"{started[pid]} outlives its driver"
            time.sleep(0.05)
