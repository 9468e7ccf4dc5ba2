"""Imports of thousands of modules, in less time."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Look for no garbage meanwhile, and never again among what is there at the end.

    Modules and models are none, and Python would look through all of them time and again: importing torch,
    transformers and lancedb takes 1.4 times as long then (`benchmarks/techniques.py imports`).
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
