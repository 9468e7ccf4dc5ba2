"""Rounds: every contender once, each in a fresh process, in an order that turns by one from round to round.

Before each process the machine is calibrated; a round in which one of these moved by more than 10 % from the
median of all is void and is run again, up to as many times as there are rounds.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from batchproj.bench import machine
from batchproj.bench.calibration import Calibration
from batchproj.bench.contender import OUTCOME, Job, Outcome
from batchproj.bench.contenders import CEILING, Contender
from batchproj.errors import BatchprojError

MOVES = 0.10
LIMIT_S = 7_200.0
_ENVIRONMENT = {
    # no hub, and nobody is told of it
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "DAFT_PROGRESS_BAR": "0",
}


@dataclass(frozen=True)
class Run:
    """One process. Unix times of its start and end; `busy_s`, what all cores of the machine worked meanwhile."""

    spawned: float
    ended: float
    busy_s: float | None
    outcome: Outcome

    @property
    def steady_s(self) -> float:
        """From the model's being loaded to the last feature's being written."""
        return self.outcome.done - self.outcome.ready

    @property
    def total_s(self) -> float:
        return self.ended - self.spawned

    @property
    def start_s(self) -> float:
        return self.outcome.ready - self.spawned


@dataclass
class Round:
    """Runs and calibrations by contender; `void` once calibrations say so."""

    order: list[str]
    runs: dict[str, Run] = field(default_factory=dict)
    calibrations: dict[str, Calibration] = field(default_factory=dict)
    void: bool = False


Start = Callable[[Contender], Run]
OnRound = Callable[[int, Round], None]


def run_rounds(
    contenders: list[Contender],
    rounds: int,
    start: Start,
    calibrate: Callable[[], Calibration],
    on_round: OnRound,
) -> tuple[list[Round], dict[str, str]]:
    """Rounds in the order they were run, void ones among them; `rounds` valid ones if the machine is quiet enough.

    With them, why contenders failed that did not get through every round: they are in none. BatchprojError if the
    ceiling fails.
    """
    done: list[Round] = []
    failed: dict[str, str] = {}
    while sum(not each.void for each in done) < rounds and len(done) < 2 * rounds:
        left = [contender for contender in contenders if contender.name not in failed]
        turn = len(done) % len(left)
        order = left[turn:] + left[:turn]
        current = Round([contender.name for contender in order])
        for contender in order:
            current.calibrations[contender.name] = calibrate()
            try:
                current.runs[contender.name] = start(contender)
            except BatchprojError as error:
                if contender.name == CEILING:
                    raise
                failed[contender.name] = str(error)
        done.append(current)
        mark_void(done)
        on_round(len(done), current)
    for each in done:
        for name in failed:
            each.runs.pop(name, None)
    return done, failed


def mark_void(rounds: list[Round]) -> None:
    """Judge all rounds anew by the median of all calibrations so far: the first may have been the noisy one."""
    found = [calibration for each in rounds for calibration in each.calibrations.values()]
    in_bf16 = [each.bf16 for each in found if each.bf16 is not None]
    usual = Calibration(
        bf16=statistics.median(in_bf16) if in_bf16 else None, fp32=statistics.median(each.fp32 for each in found)
    )
    for each in rounds:
        each.void = any(moved(calibration, usual) > MOVES for calibration in each.calibrations.values())


def moved(calibration: Calibration, usual: Calibration) -> float:
    """By how much the product that moved more did so."""
    pairs = [(calibration.bf16, usual.bf16), (calibration.fp32, usual.fp32)]
    return max(abs(now / then - 1) for now, then in pairs if now is not None and then is not None)


def start_process(contender: Contender, job: Job) -> Run:
    """Run a contender and collect what it made into `job.out`; BatchprojError, with its last words, if it fails."""
    shutil.rmtree(job.out, ignore_errors=True)
    job.out.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        if job.collection is not None:  # each run projects the same collection again
            copy = Path(scratch) / "collection"
            shutil.copytree(job.collection, copy)
            job = job.model_copy(update={"collection": copy})
        file = Path(scratch) / "job.json"
        file.write_text(job.model_dump_json())
        busy, spawned = machine.busy_seconds(), time.time()
        _call(contender, file)
        ended, now_busy = time.time(), machine.busy_seconds()
        _call(contender, file, "collect")
    outcome = Outcome.model_validate_json((job.out / OUTCOME).read_text())
    return Run(spawned, ended, None if busy is None or now_busy is None else now_busy - busy, outcome)


def _call(contender: Contender, job: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", contender.module, str(job), *arguments]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=LIMIT_S,
            env={**os.environ, **_ENVIRONMENT, **contender.environment}, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise BatchprojError(f"{contender.name} was not done after {LIMIT_S:.0f} s: give it fewer --items") from None
    if done.returncode:
        words = " ".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-3:])[-400:]
        raise BatchprojError(f"{contender.name} ended with {done.returncode}: {words}")
