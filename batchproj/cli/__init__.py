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
from batchproj.cli.console import Stopped, app, on_signal, one_line, say
from batchproj.errors import BatchprojError

__all__ = ["app", "querying", "embedding", "main", "upkeep"]


def main() -> None:
    """Entry point: every error on purpose becomes one line and its exit code."""
    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    try:
        app()
    except BatchprojError as error:
        say(f"error: {one_line(error)}")
        sys.exit(error.exit_code)
    except Stopped as stopped:
        say("stopped; nothing half-done is visible, run the same command again to go on")
        sys.exit(stopped.exit_code)
