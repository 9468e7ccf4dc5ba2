"""The schedules of one machine, as cron and systemd run them: the lines themselves, on a folder that changes."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_picture, write_words
from in_process import run, without_ray
from runs import live_rows, wait_for
from test_cluster import CLUSTER, unit_file

import batchproj
from batchproj.failpoint import VARIABLE
from batchproj.search import Collection

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


class Machine:
    """A home folder with pictures, their collection, and an installed batchproj; nothing else of it is real."""

    def __init__(self, home: Path, space: Path) -> None:
        self.home, self.pictures, self.collection = home, home / "Pictures", home / "pictures.batchproj"
        for folder in (".venv/bin", ".cache", ".config/batchproj"):
            (home / folder).mkdir(parents=True)
        self._install(".venv/bin/batchproj", f'exec {sys.executable} -m batchproj.cli "$@"')
        self._install(".config/batchproj/on-failure", 'cat >> "$HOME/told.json"')
        for number in range(8):
            write_picture(self.pictures / f"{number}.png", number)
            write_words(self.pictures / f"{number}.txt", number)
        with without_ray():
            run(self.pictures, self.collection, space)

    def _install(self, name: str, command: str) -> None:
        (program := self.home / name).write_text(f"#!/bin/sh\n{command}\n")
        program.chmod(0o755)

    def cron(self, **environment: str) -> subprocess.Popen[str]:
        """What cron does at the time of the line; its stdout would be mailed."""
        lines = (CLUSTER / "one-machine/crontab").read_text().splitlines()
        (line,) = [each for each in lines if not each.startswith("#")]
        return self._start(["/bin/sh", "-c", line.split(maxsplit=5)[5].replace("\\%", "%")], environment)

    def systemd(self) -> int:
        """What the timer starts: its exit code."""
        service = unit_file("batchproj.service")
        line = service["ExecStart"].replace("%%", "%").replace("%h", str(self.home))
        for name, value in (each.split("=") for each in service["Environment"].split()):
            line = line.replace(f"${{{name}}}", value.replace("%h", str(self.home)))
        process = self._start(shlex.split(line), {})
        said = process.communicate(timeout=300)[1]
        assert process.returncode in (0, 3), said
        return process.returncode

    def _start(self, words: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
        own = {"HOME": str(self.home), "PYTHONPATH": str(Path(batchproj.__file__).parent.parent)}
        return subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **own, **environment}
        )

    @property
    def log(self) -> str:
        return (self.home / ".cache/batchproj.log").read_text()

    @property
    def lease_records(self) -> int:
        return len(list(self.collection.glob("log/*.json")))

    def is_up_to_date(self) -> bool:
        """Whether readers see the folder's files, each once."""
        seen = [uri.rpartition("/")[2] for uri in live_rows(self.collection)["uri"].to_pylist()]
        return sorted(seen) == sorted(file.name for file in self.pictures.iterdir())


@pytest.fixture
def machine(tmp_path: Path, tiny_space: Path) -> Machine:
    return Machine(tmp_path / "home", tiny_space)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code of a line of cron's, and what is mailed."""
    mailed, said = process.communicate(timeout=300)
    assert said == ""
    return process.returncode, mailed


def test_three_runs_on_a_folder_that_changes_and_one_beside_another(machine: Machine) -> None:
    for number in (1, 2):
        write_picture(machine.pictures / f"{number}.png", 100 + number)
        write_words(machine.pictures / f"new{number}.txt", 100 + number)
        (machine.pictures / f"{number}.txt").unlink()
        assert ended(machine.cron()) == (0, "")
        assert machine.is_up_to_date()
    write_words(machine.pictures / "late.txt", 200)
    before = machine.lease_records
    slow = machine.cron(**{VARIABLE: "unit.begun:40s"})
    wait_for(lambda: machine.lease_records > before)
    assert ended(machine.cron()) == (0, "")  # it has met the other one, and that is no failure
    assert "error: " in machine.log
    assert slow.poll() is None
    assert ended(slow) == (0, "")
    assert machine.is_up_to_date()
    did = [(each["state"], each["embedded"], each["deleted"]) for each in Collection(str(machine.collection)).runs()]
    assert did == [("done", 16, 0), ("done", 2, 1), ("done", 2, 1), ("done", 1, 0)]


def test_a_failed_run_is_told_of_and_the_next_one_catches_up(machine: Machine) -> None:
    for number in range(3):
        (machine.pictures / f"bad{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes([number]))
    assert machine.systemd() == 3
    (told,) = [json.loads(line) for line in (machine.home / "told.json").read_text().splitlines()]
    assert (told["outcome"], told["exit_code"], told["report"]["quarantined"]) == ("failure", 3, 3)
    assert told["error"] == "3 of 19 items are in quarantine, more than --max-bad allows"
    # nights that were missed: all that has happened meanwhile is done by the one run after them
    for number in range(3):
        write_picture(machine.pictures / f"bad{number}.png", 300 + number)
        write_words(machine.pictures / f"missed{number}.txt", 300 + number)
    (machine.pictures / "0.txt").unlink()
    assert machine.systemd() == 0
    assert len((machine.home / "told.json").read_text().splitlines()) == 1
    assert machine.is_up_to_date()
    last = Collection(str(machine.collection)).runs()[-1]
    assert (last["embedded"], last["deleted"], last["quarantined"]) == (6, 1, 0)
