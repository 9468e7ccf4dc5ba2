"""Bad usage of the command line is one line: what was wrong, what is expected, where to read of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from in_process import command
from typer.main import get_command

import batchproj
from batchproj import cli
from batchproj.cli import console

COMMANDS = sorted(get_command(cli.app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_option_of_any_command_is_one_line(name: str) -> None:
    done = command(name, "--no-such-option")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.endswith(f"more by: batchproj {name} --help\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("embed", "missing argument 'source'; usage: batchproj embed [OPTIONS] {source} {collection}; "),
        ("embed a", "missing argument 'collection'; usage: "),
        ("embed a b --spac x", "no such option: --spac (Possible options: --space"),
        ("embed a b --space", "option '--space' requires an argument"),
        ("embed a b --max-bad 7", "--max-bad 7: expected a share such as 0.05 or 5%; usage: "),
        ("embed a b --retry-quarantined corupt", "--retry-quarantined: no 'corupt'; expected one of all, empty, "),
        ("quarantine c --modality smell", "--modality: no 'smell'; expected one of text, image, audio, video; usage: "),
        ("plan a b --gpu-hour-price much", "--gpu-hour-price is 'much', expected a number; usage: "),
        ("gc c --keep 0", "--keep is '0', expected at least 1; usage: "),
        ("gc c d", "got unexpected extra argument"),
        ("train c", "missing option '--out'; usage: "),
        ("embd", "no such command 'embd'"),
        ("--nothing", "no such option: --nothing"),
    ],
)
def test_bad_usage_is_one_line(arguments: str, said: str) -> None:
    done = command(*arguments.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {said}")
    assert len(done.stderr.splitlines()) == 1


def test_help_is_no_error_and_nothing_at_all_gets_it() -> None:
    assert command("embed", "--help").returncode == 0
    assert "Usage: batchproj embed" in command("embed", "--help").stdout
    done = command()
    assert (done.returncode, "Usage: batchproj" in done.stdout + done.stderr) == (2, True)


def test_the_version_is_told() -> None:
    done = command("--version")
    assert (done.returncode, done.stdout) == (0, f"batchproj {batchproj.__version__}\n")
    assert "--version" in command("--help").stdout


def test_a_command_that_only_reads_says_no_more_when_it_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for line, said in (
        (("plan", tmp_path / "nothing", tmp_path / "c"), "stopped; a plan writes nothing"),
        (("serve", tmp_path / "nothing"), "stopped; nothing is served any more"),
    ):
        monkeypatch.setattr(console, "_stopping_line", "of embed")
        assert command(*line).returncode == 2
        assert console.stopping_line() == said


def test_the_package_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "batchproj", "gc"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: missing argument 'collection'; usage: batchproj gc [OPTIONS] ")
