"""The `batchproj` command: arguments in, one function called, two lines out.

console.py     what all commands share
embedding.py   plan, embed, train, evaluate, demo
querying.py      search, explain, runs
upkeep.py      rollback, verify, gc, forget
"""

from __future__ import annotations

import signal
import sys

from batchproj.cli import embedding, querying, upkeep
from batchproj.cli.console import app, on_signal, one_line, say, stopped_by
from batchproj.errors import BatchprojError

__all__ = ["app", "querying", "embedding", "main", "upkeep"]


def main() -> None:
    """Entry point: every error on purpose becomes one line and its exit code."""
    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    try:
        app()
    except BaseException as error:
        number = stopped_by()
        if number is not None and not _is_success(error):
            say("stopped; nothing half-done is visible, run the same command again to go on")
            sys.exit(128 + number)
        if isinstance(error, BatchprojError):
            say(f"error: {one_line(error)}")
            sys.exit(error.exit_code)
        raise


def _is_success(error: BaseException) -> bool:
    """Whether the command was done before the signal could stop it."""
    return isinstance(error, SystemExit) and not error.code
