"""Random `kill -9` while a run works: in the end nothing is lost, nothing double, every vector the same."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from conftest import write_picture, write_words
from runs import descendants, live_rows, resume, start, wait_for

from batchproj.recipe import Recipe, Units
from batchproj.search import Collection

ITEMS = int(os.environ.get("BATCHPROJ_CHAOS_ITEMS", "300"))
SEEDS = [int(seed) for seed in os.environ.get("BATCHPROJ_CHAOS_SEEDS", "").split(",") if seed]
"""Minutes each: `BATCHPROJ_CHAOS_SEEDS=1,2,3 BATCHPROJ_CHAOS_ITEMS=2000 python -m pytest tests/test_chaos.py -s`."""

OURS = ("ray::MapWorker", "ray::MapBatches", "ray::_Desk")
"""Of Ray's processes those that run code of ours: encoders, tasks that read or write, the desk."""

DRIVER_KILLS, WORKER_KILLS = (3, 17) if ITEMS >= 2000 else (2, 6)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_here"), pytest.mark.timeout(1800)]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_run_under_random_kills_gives_what_an_undisturbed_one_gives(
    seed: int, tiny_space: Path, tmp_path: Path
) -> None:
    for number in range(ITEMS // 2):
        write_words(tmp_path / f"source/d{number % 7}/{number:05d}.txt", number)
        write_picture(tmp_path / f"source/d{number % 5}/{number:05d}.png", number)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"units: {{max_items: {ITEMS // 12}}}")
    resume(tmp_path / "source", tmp_path / "undisturbed", tiny_space, Recipe(units=Units(max_items=ITEMS // 12)))
    units = len(list((tmp_path / "undisturbed/units/000001").iterdir()))

    collection = tmp_path / "c"
    chance = random.Random(seed)
    victims = ["driver"] * DRIVER_KILLS + ["worker"] * WORKER_KILLS
    chance.shuffle(victims)
    moments = sorted(chance.choices(range(1, units - 2), k=len(victims)))
    print(f"seed {seed}, {units} units, kills after so many of them: {list(zip(moments, victims, strict=True))}")

    def begin() -> subprocess.Popen[str]:
        arguments = ("embed", tmp_path / "source", collection, "--space", tiny_space, "--recipe", recipe)
        return start(*arguments, group=True)

    hit: Counter[str] = Counter()
    process = begin()
    try:
        for moment, victim in zip(moments, victims, strict=True):
            if not reached(process, partial(has_done, collection, moment)):
                break  # the rest came too late
            if victim == "worker":
                hit[kill_a_worker(process, chance)] += 1
                continue
            hit["driver and its group"] += 1
            kill_group(process)
            process = begin()
        _, said = process.communicate(timeout=600)
    finally:
        if process.poll() is None:
            kill_group(process)
    print(f"killed: {dict(hit)}")
    assert process.returncode == 0, said
    assert live_rows(collection).equals(live_rows(tmp_path / "undisturbed"))
    (entry,) = Collection(str(collection)).runs()
    assert (entry["state"], entry["attempts"]) == ("done", 1 + hit["driver and its group"])
    assert sum(entry["encode_calls"].values()) == entry["rows"] == 2 * (ITEMS // 2)


def has_done(collection: Path, units: int) -> bool:
    return len(list(collection.glob("units/000001/*/done.json"))) >= units


def reached(process: subprocess.Popen[str], condition: Callable[[], bool]) -> bool:
    """Wait for a condition; False if the run has ended before."""
    wait_for(lambda: condition() or process.poll() is not None, 600)
    return process.poll() is None


def kill_a_worker(process: subprocess.Popen[str], chance: random.Random) -> str:
    """Kill one of Ray's workers; what it was, "none" if there was none any more."""

    def workers() -> list[tuple[str, int]]:
        named = ((name.partition(" ")[0], pid) for pid, name in descendants(process.pid).items())
        return sorted((name, pid) for name, pid in named if name.startswith(OURS))

    if not reached(process, lambda: bool(workers())) or not (found := workers()):
        return "none"
    name, pid = chance.choice(found)
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return "none"
    return name


def kill_group(process: subprocess.Popen[str]) -> None:
    """Kill a driver with all of its group, and wait until what Ray started for it has followed."""
    started = descendants(process.pid)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    deadline = time.monotonic() + 120
    for pid in started:
        while Path(f"/proc/{pid}").exists():
            assert time.monotonic() < deadline, f"{started[pid]} outlives its driver"
            time.sleep(0.05)
