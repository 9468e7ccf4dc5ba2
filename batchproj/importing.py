"""Imports of thousands of modules, in less time."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_changing = threading.Lock()
_inside = 0
_was_enabled = True


@contextmanager
def importing() -> Iterator[None]:
    """Look for no garbage meanwhile, in any thread.

    There is next to none while modules are imported and models loaded, and Python would look through all of them time
    and again: importing torch, transformers and lancedb takes 1.4 times as long then
    (`benchmarks/techniques.py imports`).
    """
    global _inside, _was_enabled
    with _changing:
        if not _inside:
            _was_enabled = gc.isenabled()
            gc.disable()
        _inside += 1
    try:
        yield
    finally:
        with _changing:
            _inside -= 1
            if not _inside and _was_enabled:
                gc.enable()
