"""How workers get on: passed on now and then, and a run ended that gets nowhere."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from batchproj.stall import Doing, Stalled, StallWatch

POLL_S = 0.5

T = TypeVar("T")


@dataclass(frozen=True)
class News:
    """How the workers get on: items done so far by modality, workers that died and were replaced
    so far, and what they have to say since the last time. `signs` of life there were so far, and `doing` is what
    processes are at, by the desk's clock, which says `now`."""

    done: dict[str, int]
    replaced: int
    lines: list[str]
    signs: int
    doing: list[Doing]
    now: float


OnNews = Callable[[News], None]


@contextlib.contextmanager
def polling(ask: Callable[[], T | None], on_news: Callable[[T], None]) -> Iterator[None]:
    """Pass on what `ask` gives, unless None, now and then while the body runs and once after it."""
    stop = threading.Event()

    def look() -> None:
        if (news := ask()) is not None:
            on_news(news)

    def poll() -> None:
        while not stop.wait(POLL_S):
            look()

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    look()


@contextlib.contextmanager
def noticing(patience_s: float, on_news: OnNews, waiting_for: Callable[[], str]) -> Iterator[OnNews]:
    """Passes news on, and ends the body with Stalled when there was no sign of life for too long.

    `waiting_for` says what may be the matter where no process is at anything. The body may wait inside an engine: only
    a signal gets there, and only into the main thread.
    """
    watch, stalled = StallWatch(patience_s), threading.Event()
    found: list[Stalled] = []

    def look(news: News) -> None:
        on_news(news)
        if watch.look(news.signs) and not stalled.is_set():
            found.append(watch.reason(news.doing, news.now, waiting_for()))
            stalled.set()
            if main is not None:
                signal.pthread_kill(main, signal.SIGUSR1)

    def end(*_: object) -> None:
        raise found[0]

    main = threading.get_ident() if threading.current_thread() is threading.main_thread() else None
    before = None if main is None else signal.signal(signal.SIGUSR1, end)
    try:
        yield look
    finally:
        if main is not None:
            signal.signal(signal.SIGUSR1, before)
