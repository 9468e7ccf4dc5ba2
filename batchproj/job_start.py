"""The first thing that a submitted job does on the cluster: travels with it, and imports nothing of ours before it knows
that there is something to import.

    python job_start.py VERSION COMMAND ...     runs `batchproj COMMAND ...` if the cluster's batchproj is VERSION

A job has one log for stdout and stderr. Lines of stdout, the command's result, get a mark there, so that whoever
follows the log can tell them from progress.
"""

from __future__ import annotations

import io
import sys
from typing import TextIO

RESULT = "result: "
WRONG = 2


class Marked(io.TextIOBase):
    """Writes to a stream, with the mark before every line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._at_start = True

    def write(self, text: str) -> int:
        for line in text.splitlines(keepends=True):
            self._stream.write(RESULT + line if self._at_start else line)
            self._at_start = line.endswith("\n")
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()


def wrong(wanted: str) -> str | None:
    """Why the cluster cannot do a job of this version, in one line."""
    cure = f"use an image with batchproj {wanted} (cluster/Dockerfile), or submit with --ship-code"
    try:
        import batchproj
    except ImportError as error:
        return f"the cluster has no batchproj ({error}): {cure}"
    if batchproj.__version__ != wanted:
        return f"the cluster has batchproj {batchproj.__version__}, the job was submitted by {wanted}: {cure}"
    return None


def main(wanted: str, *command: str) -> None:
    if said := wrong(wanted):
        print(f"error: {said}", file=sys.stderr)
        raise SystemExit(WRONG)
    from batchproj.cli import main as run

    sys.argv = ["batchproj", *command]
    sys.stdout = Marked(sys.stdout)
    run()


if __name__ == "__main__":
    main(*sys.argv[1:])
