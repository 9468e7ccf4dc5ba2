"""Commands that reach a cluster: submit, jobs."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchproj.cli.console import JsonFlag, app, print_json, say, stopping_line
from batchproj.errors import UsageError
from batchproj.terminal import printable

if TYPE_CHECKING:
    from batchproj.jobs import Jobs, JobState

SUBMITTED = ("embed", "evaluate", "gc", "plan", "train", "verify")
"""Commands that may become jobs: those that work long and ask nothing."""

AddressOption = Annotated[
    str, typer.Option("--address", metavar="URL", help="The Ray head's dashboard, such as http://head:8265.")
]
InsecureFlag = Annotated[bool, typer.Option("--insecure", help="Use a cluster that asks for no token.")]


@app.command(
    epilog="Example: batchproj submit --address http://head:8265 -- embed s3://bucket/photos s3://bucket/c",
    context_settings={"allow_interspersed_args": False},  # who forgets the `--` means the command's flags all the same
)
def submit(
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND …", help="As it would be typed here.")],
    address: AddressOption,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the job to its end.")] = True,
    ship_code: Annotated[
        bool, typer.Option("--ship-code", help="Take this installation's batchproj along; the cluster has the rest.")
    ] = False,
    insecure: InsecureFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Run a command as a job of a Ray cluster; its exit code is this one's."""
    named = _parsed(command)
    from batchproj.jobs import Jobs
    from batchproj.shipping import pack

    if as_json and "--json" not in command:
        command = [*command, "--json"]
    with tempfile.TemporaryDirectory(prefix="batchproj-job-") as folder:
        shipment = pack(command, named, Path(folder), ship_code)
        jobs = Jobs(address, insecure)
        job = jobs.submit(shipment)
    if not wait:
        _say_submitted(jobs, job, as_json)
        return
    say(f"  job {job}")
    _follow(jobs, job, as_json)


@app.command(name="jobs", epilog="Example: batchproj jobs --address http://head:8265 --logs raysubmit_4LamXRuQpYdSMg7J")
def list_jobs(
    address: AddressOption,
    logs: Annotated[str | None, typer.Option(metavar="JOB", help="Follow this one's log to its end.")] = None,
    stop: Annotated[str | None, typer.Option(metavar="JOB", help="Stop this one, as SIGTERM would.")] = None,
    insecure: InsecureFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """The jobs of a Ray cluster, newest first; follow or stop one."""
    if logs is not None and stop is not None:
        raise UsageError("--logs and --stop at once: expected one of them")
    from batchproj.jobs import Jobs

    jobs = Jobs(address, insecure)
    if logs is not None:
        _follow(jobs, logs, as_json)
    elif stop is not None:
        _stop(jobs, stop, as_json)
    elif as_json:
        print_json([state.as_dict() for state in jobs.list()])
    else:
        _print_jobs(jobs.list())


def _parsed(command: list[str]) -> dict[str, Any]:
    """The parameters of a command by name; what is wrong with it is said here and not on the cluster."""
    if command[0] not in SUBMITTED:
        raise UsageError(f"'{command[0]}' is not for a cluster: expected one of {', '.join(SUBMITTED)}")
    group: Any = typer.main.get_command(app)
    name, *arguments = command
    parsed: dict[str, Any] = group.commands[name].make_context(f"batchproj {name}", arguments).params
    return parsed


def _say_submitted(jobs: Jobs, job: str, as_json: bool) -> None:
    if as_json:
        print_json({"job": job, "address": jobs.address})
        return
    print(f"Job {job} is submitted.")
    print(f"Follow it: {_logs_command(jobs, job)}")


def _logs_command(jobs: Jobs, job: str) -> str:
    return f"batchproj jobs --address {jobs.address} --logs {job}"


def _follow(jobs: Jobs, job: str, as_json: bool) -> None:
    """Show the log as the command itself would have: progress on stderr, the result on stdout; then its exit code."""
    from batchproj.jobs import exit_code

    result: list[str] = []

    def show(line: str, is_result: bool) -> None:
        if not is_result:
            say(line)
        elif as_json:
            result.append(line)
        else:
            print(printable(line), flush=True)

    try:
        state = jobs.follow(job, show)
    except KeyboardInterrupt:
        _interrupted(jobs, job)
        raise
    code = exit_code(state)
    if as_json:
        print_json({**state.as_dict(), "exit_code": code, "result": _document("".join(result))})
    if state.state == "STOPPED":
        say(f"job {job} was stopped; nothing half-done is visible, submit it again")
    raise typer.Exit(code)


def _document(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:  # a command that ended with an error prints none
        return None


def _interrupted(jobs: Jobs, job: str) -> None:
    """The job goes on, unless who sits at the terminal says otherwise; then a signal ends this command."""
    detached = f"detached; job {job} goes on: {_logs_command(jobs, job)}"
    stopping_line(detached)
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return
    signal.signal(signal.SIGINT, lambda *_: os.write(2, b"\n") and None)
    print(f"\njob {job}: [d]etach, it goes on, or [c]ancel it? ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower().startswith("c"):
        jobs.stop(job)
        while not jobs.look(job).has_ended:
            time.sleep(0.5)
        stopping_line(f"job {job} is cancelled; nothing half-done is visible")


def _stop(jobs: Jobs, job: str, as_json: bool) -> None:
    was_running = jobs.stop(job)
    if as_json:
        print_json({"job": job, "stopped": was_running})
    else:
        print(f"Job {job} is told to stop." if was_running else f"Job {job} had ended before.")


def _print_jobs(states: list[JobState]) -> None:
    if not states:
        print("No jobs.")
    for state in states:
        begun = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(state.started)) if state.started else "-"
        ended = f"exit {state.exit_code}" if state.exit_code is not None else "-"
        print(printable(f"{state.job}  {begun}  {state.state:<9}  {ended:<8}  {state.command}"))
