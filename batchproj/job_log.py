"""A job has one log for stdout and stderr. Lines of stdout, the command's result, get a mark there, so that whoever
follows the log can tell them from progress."""

from __future__ import annotations

import io
from typing import TextIO

RESULT = "result: "


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


def unmarked(text: str) -> tuple[str, bool]:
    """A line of a log without its mark, and whether it had one."""
    line = text.rstrip("\n").expandtabs()
    return line.removeprefix(RESULT), line.startswith(RESULT)
