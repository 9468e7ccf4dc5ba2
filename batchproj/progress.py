"""What a person sees while a run works: live bars on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import threading
import time
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

PLAIN_LINE_S = 5.0


class RunProgress:
    """Done, total, items/s and time left per modality; use as a context manager. Thread-safe.

    Writes to `stream`, the command's stderr: stdout belongs to its result.
    """

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream)
        self._live = self._console.is_terminal
        self._lock = threading.Lock()
        self._tasks: dict[str, TaskID] = {}
        self._bars = Progress(
            TextColumn("  {task.description:<6}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:>12}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._live,
        )
        self._before: dict[str, int] = {}
        self._total: dict[str, int] = {}
        self._started = time.monotonic()
        self._last_line = 0.0
        self._last_step = ""

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def step(self, text: str) -> None:
        """Say what happens now; repeated lines of a count are thinned out."""
        with self._lock:
            now = time.monotonic()
            same = text.split(":")[0] == self._last_step
            if same and now - self._last_line < PLAIN_LINE_S:
                return
            self._last_step, self._last_line = text.split(":")[0], now
            self._console.print(f"  {text}", highlight=False, markup=False)

    def totals(self, before: dict[str, int], todo: dict[str, int]) -> None:
        """Items done by an earlier attempt, and items to do, by modality."""
        with self._lock:
            self._started = time.monotonic()
            self._before, self._total = before, {m: before.get(m, 0) + todo.get(m, 0) for m in {**before, **todo}}
            for task in self._tasks.values():
                self._bars.remove_task(task)
            self._tasks = {
                m: self._bars.add_task(m, total=total, completed=before.get(m, 0), rate="")
                for m, total in sorted(self._total.items())
            }

    def progress(self, done: dict[str, int]) -> None:
        """Items done since `totals`, by modality."""
        with self._lock:
            elapsed = max(time.monotonic() - self._started, 1e-6)
            for modality, task in self._tasks.items():
                now = min(self._before.get(modality, 0) + done.get(modality, 0), self._total[modality])
                rate = f"{done.get(modality, 0) / elapsed:,.1f}/s"
                self._bars.update(task, completed=now, rate=rate)
            if not self._live and time.monotonic() - self._last_line >= PLAIN_LINE_S:
                self._last_line = time.monotonic()
                self._console.print(self._plain(done, elapsed), highlight=False, markup=False)

    def _plain(self, done: dict[str, int], elapsed: float) -> str:
        parts = []
        for modality, total in sorted(self._total.items()):
            now = min(self._before.get(modality, 0) + done.get(modality, 0), total)
            rate = done.get(modality, 0) / elapsed
            left = f", {(total - now) / rate:,.0f} s left" if rate and now < total else ""
            parts.append(f"{modality} {now:,}/{total:,} ({rate:,.1f}/s{left})")
        return "  " + " · ".join(parts)
