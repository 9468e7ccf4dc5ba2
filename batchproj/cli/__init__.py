"""The `batchproj` command: arguments in, one function called, two lines out.

console.py     what all commands share
embedding.py   plan, embed, train, evaluate, demo
querying.py    search, explain, runs
serving.py    serve
inventory.py   encoders, doctor
upkeep.py      quarantine, rollback, verify, gc, forget
benchmarking.py   bench
cluster.py     submit, jobs
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import traceback
from contextlib import suppress

from batchproj.cli import benchmarking, cluster, embedding, inventory, querying, serving, upkeep
from batchproj.cli.console import answer_signals, app, ignore_signals, one_line, say, stopped_by, stopping_line
from batchproj.errors import BatchprojError
from batchproj.stall import Stalled

PATIENCE_S = 3.0
"""How long threads may take to notice that the command was stopped."""

__all__ = ["app", "benchmarking", "cluster", "embedding", "inventory", "main", "querying", "serving", "upkeep"]


def main() -> None:
    """Entry point: every error on purpose becomes one line and its exit code."""
    answer_signals()
    atexit.register(_leave)  # first, so it is called last
    try:
        app()
    except BaseException as error:
        # the command is over: a signal that comes now must cut off neither what it says nor its exit code
        with suppress(KeyboardInterrupt):  # of one that has come by now, after which all are ignored as well
            ignore_signals()
        _leave.code = _exit_code(error)
        if (stopped_by() is not None or isinstance(error, Stalled)) and _hangs():
            atexit._run_exitfuncs()  # the interpreter itself would wait for that thread before it comes to these
    raise SystemExit(_leave.code)


def _hangs() -> bool:
    """Whether a thread still works when the command is over: in a read, of a mount that is away, for ever."""
    deadline = time.monotonic() + PATIENCE_S
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(max(0.0, deadline - time.monotonic()))
    return any(not each.daemon for each in threading.enumerate() if each is not threading.current_thread())


def _exit_code(error: BaseException) -> int:
    """What the command ends with, said in one line where something is wrong."""
    number = stopped_by()
    if number is not None and not _is_success(error):
        say(stopping_line())
        return 128 + number
    if isinstance(error, BatchprojError):
        say(f"error: {one_line(error)}")
        return error.exit_code
    if isinstance(error, SystemExit):
        # typer makes 1 of an output that nobody reads to its end, which is not the command's fault
        return 0 if isinstance(error.__context__, BrokenPipeError) else int(error.code or 0)
    for line in "".join(traceback.format_exception(error)).splitlines():
        say(line)
    return 1


def _is_success(error: BaseException) -> bool:
    """Whether the command was done before the signal could stop it."""
    return isinstance(error, SystemExit) and not error.code


class _Leave:
    """The end of the process, when everything that wanted to be closed is: the threads of Ray's and Lance's
    native code now and then abort it when the interpreter takes itself apart."""

    code = 0

    def __call__(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # nobody reads it any more
                stream.flush()
        os._exit(self.code)


_leave = _Leave()
