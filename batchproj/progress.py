"""What a person sees while a command works: live bars on a terminal, a plain line now and then elsewhere.

Everything goes to the command's stderr: stdout belongs to its result. All of it is thread-safe.
"""

from __future__ import annotations

import threading
import time
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from batchproj.terminal import printable

RATE_S = 2.0
"""Items are counted some hundred at a time: of less than that a rate may be off by several times."""

PLAIN_LINE_S = 5.0


class Bars:
    """Named counts with total, rate and time left."""

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream)
        self._live = self._console.is_terminal
        self._lock = threading.Lock()
        self._first: dict[str, tuple[float, int]] = {}
        self._last: dict[str, float] = {}
        self._now: dict[str, tuple[int, int]] = {}
        self._tasks: dict[str, TaskID] = {}
        self._notes: dict[str, str] = {}
        self._last_line = 0.0
        self._is_untold = False
        self._bars = Progress(
            TextColumn("  {task.description:<8}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:>12}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._live,
        )

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if not self._live:  # there the bars stay as they are
                self._tell()
        self._bars.stop()

    def say(self, text: str) -> None:
        with self._lock:
            self._console.print(printable(text), highlight=False, markup=False, soft_wrap=True)

    def clear(self) -> None:
        """Forget all counts; finished bars leave the screen."""
        with self._lock:
            self._tell()
            for task in self._tasks.values():
                self._bars.remove_task(task)
            self._tasks, self._now, self._first, self._last = {}, {}, {}, {}

    def begin(self, name: str, before: int, total: int) -> None:
        """Start a count at `before`, of which the rate knows nothing."""
        with self._lock:
            self._now[name], self._notes[name] = (before, total), ""
            self._last_line = time.monotonic()
            self._tasks[name] = self._bars.add_task(name, total=total, completed=before, rate="")

    def count(self, name: str, done: int, note: str = "") -> None:
        """Set a count. A note stands in the place of the rate."""
        with self._lock:
            before, total = self._now[name]
            if before != min(done, total):
                self._now[name], self._is_untold = (min(done, total), total), True
                self._last[name] = time.monotonic()
                self._first.setdefault(name, (self._last[name], self._now[name][0]))
            self._notes[name] = note or self._rated(name)
            self._bars.update(self._tasks[name], completed=min(done, total), rate=self._notes[name])

    def tick(self) -> None:
        """All counts are set: the plain line, every few seconds; the same again is a sign of life."""
        with self._lock:
            if not self._live and time.monotonic() - self._last_line >= PLAIN_LINE_S:
                self._is_untold = True
                self._tell()

    def tell_end(self) -> None:
        """The plain line of counts that are all complete, unless it was said."""
        with self._lock:
            if all(done == total for done, total in self._now.values()):
                self._tell()

    def _tell(self) -> None:
        """The plain line, unless the last one said the same."""
        if self._is_untold and self._now:
            self._is_untold, self._last_line = False, time.monotonic()
            line = " · ".join(self._plain(each) for each in sorted(self._now))
            self._console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)

    def _rate(self, name: str) -> float:
        """Items a second between the first and the last that were counted, 0 before these are RATE_S apart: what it
        takes to start, and what comes after the end, have no part in it."""
        began, first = self._first.get(name, (0.0, 0))
        seconds = self._last.get(name, began) - began
        return (self._now[name][0] - first) / seconds if seconds >= RATE_S else 0.0

    def _rated(self, name: str) -> str:
        rate = self._rate(name)
        return f"{rate:,.1f}/s" if rate else ""

    def _plain(self, name: str) -> str:
        done, total = self._now[name]
        rate = self._rate(name)
        left = f"{(total - done) / rate:,.0f} s left" if rate and done < total else ""
        told = ", ".join(each for each in (self._notes[name], left) if each)
        return f"{name} {done:,}/{total:,}" + (f" ({told})" if told else "")


class RunProgress:
    """Watches a run: its steps, and done, total, items/s and time left per modality."""

    def __init__(self, stream: TextIO) -> None:
        self._bars = Bars(stream)
        self._before: dict[str, int] = {}
        self._last_step = ("", 0.0)
        self._unsaid: str | None = None
        self._counted: tuple[str, int] | None = None

    def __enter__(self) -> Self:
        self._bars.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._say_rest()
        self._bars.__exit__()

    def step(self, text: str) -> None:
        """Say what happens now; a step that counts (`listing …: 1,000`) speaks every few seconds, and at its end."""
        name, _, count = text.rpartition(": ")
        if not count[:1].isdigit():
            name = text
        now = time.monotonic()
        if name != self._last_step[0]:
            self._say_rest()
        elif now - self._last_step[1] < PLAIN_LINE_S:
            self._unsaid = text
            return
        self._last_step, self._unsaid = (name, now), None
        self._bars.say(f"  {text}")

    def _say_rest(self) -> None:
        self._bars.tell_end()
        if self._unsaid is not None:
            self._bars.say(f"  {self._unsaid}")
            self._unsaid = None

    def totals(self, before: dict[str, int], todo: dict[str, int]) -> None:
        """Items done by an earlier attempt, and items to do, by modality."""
        self._say_rest()
        self._bars.clear()
        self._before = before
        for modality in sorted({**before, **todo}):
            done = before.get(modality, 0)
            self._bars.begin(modality, done, done + todo.get(modality, 0))

    def progress(self, done: dict[str, int]) -> None:
        """Items done since `totals`, by modality."""
        for modality, items in done.items():
            self._bars.count(modality, self._before.get(modality, 0) + items)
        self._bars.tick()

    def counted(self, name: str, done: int, total: int, note: str = "") -> None:
        """A count that stands by itself, such as training steps or files written; a note stands for its rate."""
        if self._counted != (name, total):
            self._counted = (name, total)
            self._bars.clear()
            self._bars.begin(name, done, total)
        self._bars.count(name, done, note)
        self._bars.tick()


class DemoScreen(RunProgress):
    """Numbered headlines above the progress of each step."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._steps_started = time.monotonic()

    def headline(self, number: int, of: int, text: str) -> None:
        self._bars.clear()
        self._counted = None
        minutes, seconds = divmod(int(time.monotonic() - self._steps_started), 60)
        self._bars.say(f"[{number}/{of}] {minutes}:{seconds:02d}  {text}")
