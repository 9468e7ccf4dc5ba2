"""The command as a user has it: exit codes, one-line errors, one JSON document, nothing left behind.

What starts with `run` is a process of its own; `command` is the same without one.
"""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import write_words
from in_process import command, stopped_when_its_units_are_done, without_ray
from in_process import run as embed

import batchproj
from batchproj.collection.lease import acquire
from batchproj.embed import Options
from batchproj.errors import CollectionError
from batchproj.failpoint import VARIABLE
from batchproj.objectstore import Folder
from batchproj.recipe import load_recipe
from batchproj.terminal import nonzero


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "batchproj.cli", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=240, env={**os.environ, **environment})


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit 2, nothing on stdout, one line that says what is wrong."""
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in lines[0]


def test_embed_then_search(corpus: Path, tmp_path: Path, tiny_space: Path) -> None:
    done = run("embed", corpus, tmp_path / "c", "--space", tiny_space, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert set(report) == {
        "run", "items", "embedded", "reprojected", "copied", "unchanged", "deleted", "quarantined", "rows", "seconds",
        "encode_calls", "items_per_s", "commit",
    }  # fmt: skip
    assert (report["items"], report["embedded"], report["rows"]) == (24, 24, 24)
    assert "ray" not in done.stderr.lower()

    done = run("search", tmp_path / "c", "--image", corpus / "d1/item4.png", "-k", 3, "--json")
    hits = json.loads(done.stdout)
    assert list(hits[0]) == ["id", "item", "uri", "modality", "score", "segment", "start", "end", "pair", "text"]
    assert hits[0]["uri"] == f"file://{corpus}/d1/item4.png"
    assert hits[0]["score"] == pytest.approx(1, abs=1e-5)
    assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)

    done = run("embed", corpus, tmp_path / "c", "--space", tiny_space)
    assert done.stdout.splitlines()[0] == "Nothing to do: 24 items unchanged, run 000001 stays live."


def test_more_bad_files_than_allowed_is_exit_3(corpus: Path, tmp_path: Path, tiny_space: Path) -> None:
    for number in range(3):
        (corpus / f"empty{number}.txt").touch()
    done = command("embed", corpus, tmp_path / "c", "--space", tiny_space, "--max-bad", "0.05", "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["quarantined"] == 3
    assert command("embed", corpus, tmp_path / "c", "--space", tiny_space, "--max-bad", "12%").returncode == 0


def test_a_missing_folder(tmp_path: Path, tiny_space: Path) -> None:
    refused(run("embed", tmp_path / "nowhere", tmp_path / "c", "--space", tiny_space), "nowhere", "not found")
    assert not (tmp_path / "c").exists()


def test_an_empty_folder(tmp_path: Path, tiny_space: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(command("embed", tmp_path / "empty", tmp_path / "c", "--space", tiny_space), "nothing to embed")
    assert not (tmp_path / "c").exists()


def test_a_bucket_without_permission(tmp_path: Path, tiny_space: Path, s3_bucket: str, denied_s3: str) -> None:
    done = run("embed", s3_bucket, tmp_path / "c", "--space", tiny_space, AWS_ENDPOINT_URL=denied_s3)
    refused(done, s3_bucket, "may not be listed")
    assert not (tmp_path / "c").exists()


def test_a_bucket_without_credentials(tmp_path: Path, tiny_space: Path, s3_endpoint: str) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
    environment |= {"AWS_ENDPOINT_URL": s3_endpoint, "AWS_EC2_METADATA_DISABLED": "true"}
    arguments = ["embed", "s3://some-bucket/x", tmp_path / "c", "--space", tiny_space]
    line = [sys.executable, "-m", "batchproj.cli", *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, env=environment)
    refused(done, "some-bucket", "credentials")


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("dim: 24\ntext: {encodr: {kind: clip}}", ["unknown key 'encodr' in 'text'", "did you mean 'encoder'"]),
        ("dim: 24\ntxt: {encoder: {kind: clip}}", ["unknown key 'txt'", "did you mean 'text'"]),
        ("dim: 24\ntext: {encoder: {kind: clap2, model: x}}", ["no encoder kind 'clap2'", "clip"]),
        ("dim: 24\ntext: {encoder: {kind: clip, model: CLIP, dtyp: bf16}}", ["unknown key 'dtyp'", "'dtype'"]),
        ("dim: 25\ntext: {encoder: {kind: clip, model: CLIP}}", ["gives 24 dimensions and the space has 25"]),
        ("dim: 24\ntext: {encoder: {kind: clip, model: /nowhere}}", ["/nowhere"]),
        ("dim: 24\nimage: {encoder: {kind: text, model: CLIP}}", ["image"]),
        ("dim: [", ["not YAML"]),
        ("dim: 24", ["no modality"]),
    ],
)
def test_a_wrong_space_file(broken: str, words: list[str], corpus: Path, tmp_path: Path, tiny_clip: Path) -> None:
    (tmp_path / "space.yaml").write_text(broken.replace("CLIP", str(tiny_clip)))
    refused(command("embed", corpus, tmp_path / "c", "--space", tmp_path / "space.yaml"), *words)
    assert not (tmp_path / "c").exists()


def test_a_misspelt_recipe_key(corpus: Path, tmp_path: Path, tiny_space: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("units: {max_item: 3}")
    arguments = ["embed", corpus, tmp_path / "c", "--space", tiny_space, "--recipe", tmp_path / "recipe.yaml"]
    refused(command(*arguments), "unknown key 'max_item' in 'units'", "'max_items'")


def test_search_without_a_collection(tmp_path: Path) -> None:
    refused(run("search", tmp_path, "frog"), "no collection")


def test_help_has_an_example_for_every_command() -> None:
    listed = run("--help").stdout
    for name in ("embed", "search", "train", "evaluate", "demo"):
        assert name in listed
        assert f"Example: batchproj {name}" in " ".join(command(name, "--help").stdout.split())


def test_help_imports_no_library_of_work() -> None:
    heavy = ("duckdb", "fsspec", "lancedb", "numpy", "pandas", "pyarrow", "ray", "torch", "transformers")
    told = run_script(f"import sys, batchproj.cli; print([name for name in {heavy} if name in sys.modules])")
    assert told.stdout == "[]\n", told.stderr


def test_what_a_run_did_is_told_without_zeros() -> None:
    assert nonzero({"embedded": 0, "projected again": 1_234, "deleted": 2}) == "1,234 projected again, 2 deleted"
    assert nonzero({"embedded": 0}) == ""


HEARS_HANGUP = "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_DFL); "
"""Whoever runs the tests may have it ignored, and so would what they start."""

BECOMES = "os.execvp(sys.argv[1], sys.argv[1:])"


@pytest.mark.long
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=["INT", "TERM", "HUP"]
)
def test_a_stopped_run_leaves_no_process_and_is_finished_by_a_rerun(
    number: signal.Signals, code: int, tmp_path: Path, tiny_space: Path
) -> None:
    for file in range(80):
        write_words(tmp_path / "texts" / f"{file:02d}.txt", file)
    (tmp_path / "recipe.yaml").write_text("units: {max_items: 4}")
    marker = f"{tmp_path.name}-{number}"
    arguments = [
        "embed",
        tmp_path / "texts",
        tmp_path / "c",
        "--space",
        tiny_space,
        "--recipe",
        tmp_path / "recipe.yaml",
    ]
    line = [sys.executable, "-c", HEARS_HANGUP + BECOMES, sys.executable, "-m", "batchproj.cli", *map(str, arguments)]
    # in a group of its own, as a shell would start it: a terminal that is closed tells all of the group
    own = {"text": True, "process_group": 0, "env": {**os.environ, "BATCHPROJ_TEST_MARKER": marker}}
    process = subprocess.Popen(line, stderr=subprocess.PIPE, **own)
    wait_for(lambda: len(list((tmp_path / "c" / "units").glob("*/*/done.json"))) >= 3, process)
    if number == signal.SIGHUP:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, said = process.communicate(timeout=20)  # what is promised
    assert process.returncode == code, said
    assert "run the same command again" in said
    wait_for(lambda: not marked_processes(marker), None)
    with pytest.raises(CollectionError):
        batchproj.open(str(tmp_path / "c"))

    finished = [path.stat().st_mtime_ns for path in sorted((tmp_path / "c" / "units").glob("*/*/done.json"))]
    done = run(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["embedded"] == 80
    after = {path.stat().st_mtime_ns for path in (tmp_path / "c" / "units").glob("*/*/done.json")}
    assert set(finished) <= after  # what was done stayed as it was
    with without_ray():
        embed(tmp_path / "texts", tmp_path / "d", tiny_space, Options(load_recipe(str(tmp_path / "recipe.yaml"))))
    tables = [batchproj.open(str(tmp_path / name)).table().sort_by("id") for name in ("c", "d")]
    assert tables[0].equals(tables[1])


@pytest.mark.parametrize(
    ("while_", "number", "code"),
    [
        ("ray starts", signal.SIGTERM, 143),
        ("ray starts", signal.SIGINT, 130),
        ("working without it", signal.SIGTERM, 143),
        ("switching", signal.SIGTERM, 143),
        pytest.param("working without it", signal.SIGINT, 130, marks=pytest.mark.long),
        pytest.param("switching", signal.SIGINT, 130, marks=pytest.mark.long),
    ],
)
def test_a_stop_is_a_stop_at_any_time(
    while_: str, number: signal.Signals, code: int, tmp_path: Path, tiny_space: Path
) -> None:
    """Ray puts a handler of its own in place while it starts, and the default one when it is shut down."""
    write_words(tmp_path / "texts" / "one.txt", 1)
    marker = f"{tmp_path.name}-{number}"
    line = [sys.executable, "-m", "batchproj.cli", "embed", tmp_path / "texts", tmp_path / "c", "--space", tiny_space]
    if while_ == "ray starts":  # for one text alone it would not
        (tmp_path / "recipe.yaml").write_text("pools: {text: {workers: 1}}")
        line += ["--recipe", tmp_path / "recipe.yaml"]
    # without the stay the run could be through before the signal comes
    stay = "unit.begun:60s" if while_ == "working without it" else "commit.recorded:60s"
    environment = {"BATCHPROJ_TEST_MARKER": marker, VARIABLE: stay}
    process = subprocess.Popen(
        [str(each) for each in line], stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    if while_ == "ray starts":
        wait_for(lambda: len(marked_processes(marker)) > 1, process)  # the first of Ray's servers
    elif while_ == "working without it":
        wait_for(lambda: list((tmp_path / "c/units").glob("*/*/inputs.parquet")) != [], process)
        time.sleep(3)  # in the unit or on the way to it
    else:
        wait_for(lambda: (tmp_path / "c/log/00000002.json").exists(), process)  # the commit's record
    process.send_signal(number)
    _, said = process.communicate(timeout=20)
    assert process.returncode == code, said
    assert "run the same command again" in said
    wait_for(lambda: not marked_processes(marker), None)
    assert json.loads((tmp_path / "c/lock.json").read_text())["released"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_while_the_command_is_imported_shows_no_traceback(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    (tmp_path / "typer.py").write_text("import pathlib, time\npathlib.Path('imported').touch()\ntime.sleep(60)\n")
    # the first place where it is looked for is the folder that the command is called in
    line = [sys.executable, "-m", "batchproj", "--help"]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path)
    wait_for(lambda: (tmp_path / "imported").exists(), process)
    process.send_signal(number)
    assert (process.communicate(timeout=20)[0], process.returncode) == ("", code)


READS_SLOWLY = """if True:
    import pathlib, sys, time
    from batchproj import cli
    from batchproj.source import reading

    read = reading.read_pinned

    def slowly(*given):
        pathlib.Path("{there}").touch()
        time.sleep({seconds})
        return read(*given)

    reading.read_pinned = slowly
    cli.main()
"""


@pytest.mark.parametrize("ignored", [False, True])
def test_a_terminal_that_is_closed_stops_a_run_unless_nohup_says_otherwise(
    ignored: bool, tmp_path: Path, tiny_space: Path
) -> None:
    write_words(tmp_path / "texts" / "one.txt", 1)
    line = ["embed", tmp_path / "texts", tmp_path / "c", "--space", tiny_space]
    reading = READS_SLOWLY.format(there=str(tmp_path / "reading"), seconds=10 if ignored else 300)
    line = [*(["nohup"] if ignored else []), sys.executable, "-c", reading, *map(str, line)]
    own = f"{HEARS_HANGUP}import fcntl, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY); {BECOMES}"
    terminal, end = pty.openpty()
    line = [sys.executable, "-c", own, *line]
    # nohup leaves what is said in a file where it is called
    process = subprocess.Popen(line, stdin=end, stdout=end, stderr=end, cwd=tmp_path)
    os.close(end)
    try:
        wait_for(lambda: (tmp_path / "reading").exists(), process)
    finally:
        os.close(terminal)
    assert process.wait(60) == (0 if ignored else 128 + signal.SIGHUP)
    assert json.loads((tmp_path / "c/lock.json").read_text())["released"]


def run_script(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)


def test_a_signal_after_the_end_changes_nothing() -> None:
    script = """if True:
        import atexit, os, signal, sys
        from batchproj import cli

        def app():
            atexit.register(os.kill, os.getpid(), signal.SIGTERM)
            sys.exit(3)

        cli.app = app
        cli.main()
    """
    done = run_script(script)
    assert (done.returncode, done.stderr) == (3, "")


def test_a_signal_at_the_end_is_no_traceback() -> None:
    """It is waiting when the command is over, and is delivered where signals are turned off."""
    script = """if True:
        import signal, sys
        from batchproj import cli
        from batchproj.cli.console import on_signal

        def app():
            sys.exit(0)

        def turned_off(number, handler):
            if handler is signal.SIG_IGN and len(turned) == 0:
                turned.append(number)
                on_signal(signal.SIGINT, None)
            return really(number, handler)

        turned, really, signal.signal, cli.app = [], signal.signal, turned_off, app
        cli.main()
    """
    done = run_script(script)
    assert (done.returncode, done.stderr) == (0, "")


def test_of_two_signals_the_first_decides() -> None:
    script = """if True:
        import signal
        from batchproj import cli
        from batchproj.cli.console import on_signal

        def app():
            try:
                on_signal(signal.SIGTERM, None)
            finally:
                on_signal(signal.SIGINT, None)

        cli.app = app
        cli.main()
    """
    done = run_script(script)
    assert done.returncode == 143, done.stderr


def test_an_output_that_nobody_reads_to_its_end_is_no_failure(corpus: Path, tmp_path: Path, tiny_space: Path) -> None:
    with without_ray(), stopped_when_its_units_are_done():
        embed(corpus, tmp_path / "c", tiny_space, Options())
    read, write = os.pipe()
    os.close(read)
    line = [sys.executable, "-m", "batchproj.cli", "embed", corpus, tmp_path / "c", "--space", tiny_space]
    done = subprocess.run([str(each) for each in line], stdout=write, stderr=subprocess.PIPE, timeout=240)
    os.close(write)
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr
    assert batchproj.open(str(tmp_path / "c")).run == "000001"


def test_the_ledger_shows_a_first_run_that_is_not_finished(corpus: Path, tmp_path: Path, tiny_space: Path) -> None:
    with without_ray(), stopped_when_its_units_are_done():
        embed(corpus, tmp_path / "c", tiny_space)
    shown = json.loads(command("runs", tmp_path / "c", "--json").stdout)
    assert [(entry["run"], entry["state"], entry["live"]) for entry in shown] == [("000001", "running", False)]
    assert "ended early" in command("runs", tmp_path / "c").stdout
    with acquire(Folder(str(tmp_path / "c")), "embed"):
        assert "running" in command("runs", tmp_path / "c").stdout


def test_work_to_do_shows_in_the_exit_code_if_asked(corpus: Path, tmp_path: Path, tiny_space: Path) -> None:
    arguments = ["plan", corpus, tmp_path / "c", "--space", tiny_space, "--json"]
    assert command(*arguments).returncode == 0
    assert command(*arguments, "--detailed-exitcode").returncode == 2
    assert command("embed", corpus, tmp_path / "c", "--space", tiny_space).returncode == 0
    nothing = command(*arguments, "--detailed-exitcode")
    assert (nothing.returncode, json.loads(nothing.stdout)["nothing_to_do"]) == (0, True)


def wait_for(condition: object, process: subprocess.Popen[str] | None) -> None:
    deadline = time.monotonic() + 120
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "waited in vain"
        assert process is None or process.poll() is None, "the run ended too early"
        time.sleep(0.1)


def marked_processes(marker: str) -> list[int]:
    """Processes that have inherited our marker: the run's own, Ray's servers and workers."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"BATCHPROJ_TEST_MARKER={marker}".encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue  # gone, or not ours
    return found
