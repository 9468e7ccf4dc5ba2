"""Notices that a run gets nowhere, and says what its processes were at."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from batchproj.errors import TryLater

TOLD = 3
"""Processes that the message names."""


@dataclass(frozen=True)
class Doing:
    """What a process (`where`, host:pid) is at, and since when by the clock of whoever keeps these."""

    where: str
    what: str
    since: float


class Stalled(TryLater):
    """No worker has got anywhere for longer than a run waits."""


class StallWatch:
    """Told again and again how many signs of life there were so far."""

    def __init__(self, patience_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience_s, self._clock = patience_s, clock
        self._signs = -1
        self._changed = clock()

    def look(self, signs: int) -> bool:
        """Whether there was none for too long."""
        if signs != self._signs:
            self._signs, self._changed = signs, self._clock()
        return self._clock() - self._changed > self._patience_s

    def reason(self, doing: list[Doing], now: float, waiting_for: str) -> Stalled:
        """What to stop with; `waiting_for` is said where no process is at anything."""
        longest = sorted(doing, key=lambda each: each.since)[:TOLD]
        at = "; ".join(f"{each.where} has been {each.what} for {now - each.since:,.0f} s" for each in longest)
        return Stalled(
            f"no progress for {self._patience_s:,.0f} s: {at or waiting_for}; nothing was made visible, what is "
            "done is kept: look at that process and its storage, then run the same command again (recipe: stall_s)"
        )
