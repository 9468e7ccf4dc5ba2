"""A run in which nothing happens ends, and says what its processes were at."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import start

from batchproj.errors import TryLater
from batchproj.failpoint import VARIABLE
from batchproj.stall import Doing, StallWatch


def test_only_the_lack_of_any_sign_is_a_stall() -> None:
    now = [0.0]
    watch = StallWatch(10, lambda: now[0])
    for second, signs, stalled in [(0, 0, False), (9, 0, False), (9.5, 1, False), (19, 1, False), (20, 1, True)]:
        now[0] = second
        assert watch.look(signs) is stalled, second


def test_the_reason_names_who_is_at_something_for_longest() -> None:
    doing = [Doing(f"host:{number}", f"embedding unit u{number}", since=number) for number in range(5)]
    error = StallWatch(600).reason(doing, 605, "no worker is at anything")
    assert isinstance(error, TryLater)
    assert "no progress for 600 s: host:0 has been embedding unit u0 for 605 s; host:1" in str(error)
    assert "host:3" not in str(error)
    assert "no worker is at anything" in str(StallWatch(600).reason([], 0, "no worker is at anything"))


@pytest.mark.slow
def test_a_worker_that_hangs_ends_the_run(tmp_path: Path, tiny_space: Path) -> None:
    source, recipe = tmp_path / "texts", tmp_path / "recipe.yaml"
    source.mkdir()
    (source / "a.txt").write_text("a b")
    recipe.write_text("stall_s: 5")
    arguments = ["embed", source, tmp_path / "c", "--space", tiny_space, "--recipe", recipe]
    run = start(*arguments, environment={VARIABLE: "unit.begun:600s"})
    _, said = run.communicate(timeout=120)
    assert run.returncode == 75, said
    assert "no progress for 5 s" in said
    assert "embedding unit" in said
    assert "Traceback" not in said
    recipe.write_text("{}")
    again = start(*arguments)
    again.communicate(timeout=120)
    assert again.returncode == 0
