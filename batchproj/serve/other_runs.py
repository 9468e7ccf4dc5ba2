"""Runs that are not live, for those who ask for one by its name: opened then, and the last few of them kept open."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

MOST_OPEN = 4
"""Each may have models of its own."""

V = TypeVar("V")


class OtherRuns(Generic[V]):
    """Views of them, by run; threads may share it."""

    def __init__(self, opened: Callable[[str], V], on_closed: Callable[[], None]) -> None:
        """`opened` raises RunMissing for a run that is not kept; `on_closed` is called when one had to give way."""
        self._opened, self._on_closed = opened, on_closed
        self._views: OrderedDict[str, V] = OrderedDict()
        self._opening: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def view(self, run: str) -> V:
        """Of a run; the one that was asked for longest ago is closed if they are too many. Who asks for a run that is
        open does not wait for one that is being opened."""
        with self._lock:
            if (open_already := self._views.get(run)) is not None:
                self._views.move_to_end(run)
                return open_already
            opening = self._opening.setdefault(run, threading.Lock())
        with opening:
            with self._lock:
                if (open_by_now := self._views.get(run)) is not None:
                    return open_by_now
            try:
                found = self._opened(run)
            finally:
                with self._lock:
                    self._opening.pop(run, None)
            with self._lock:
                self._views[run] = found
                is_full = len(self._views) > MOST_OPEN
                if is_full:
                    self._views.popitem(last=False)
        if is_full:
            self._on_closed()
        return found

    def all(self) -> list[V]:
        with self._lock:
            return list(self._views.values())

    def drop(self, view: V) -> None:
        """Whose files may be gone; it is opened anew for the next who asks."""
        with self._lock:
            for run in [run for run, each in self._views.items() if each is view]:
                del self._views[run]

    def keep(self, versions: Mapping[str, int], version_of: Callable[[V], int]) -> bool:
        """Close those that are not kept any more, or have another version of the table by now; whether there were."""
        with self._lock:
            gone = [view for run, view in self._views.items() if versions.get(run) != version_of(view)]
        for view in gone:
            self.drop(view)
        return bool(gone)
