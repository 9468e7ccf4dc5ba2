"""Places where the tests kill or slow down a process; in use they cost one look at the environment."""

from __future__ import annotations

import os
import signal
import time
from itertools import count
from pathlib import Path

VARIABLE = "BATCHPROJ_FAILPOINT"
"""`name:n:folder`: whoever is the nth to come to the place `name` is killed there, once.
`name:0.5s`: whoever comes to the place stays so many seconds.

Arrivals are counted over all processes of a run by files in `folder`.
"""


def failpoint(name: str) -> None:
    """Die here, as with `kill -9`, or wait, if the environment asks for it."""
    wanted, _, rest = os.environ.get(VARIABLE, "").partition(":")
    if wanted != name:
        return
    if ":" not in rest:
        time.sleep(float(rest.removesuffix("s")))
        return
    nth, _, folder = rest.partition(":")
    if _arrival(Path(folder), name) == int(nth):
        os.kill(os.getpid(), signal.SIGKILL)


def _arrival(folder: Path, name: str) -> int:
    """The number of this arrival; a file that can be made only once is the counter."""
    for number in count(1):
        try:
            (folder / f"{name}-{number}").touch(exist_ok=False)
        except FileExistsError:
            continue
        return number
    raise AssertionError("count never ends")
