"""Imports of thousands of modules, in less time.

importing              without a look for garbage
validators_when_used   without validators of what nobody calls
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_changing = threading.Lock()
_deferring = threading.Lock()
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


@contextmanager
def validators_when_used() -> Iterator[None]:
    """pydantic's `defer_build`, for classes and functions that are defined meanwhile, in any thread.

    For the client of a catalogue over HTTP that comes with lancedb, some 150 classes and 370 functions: to make
    validators of all of them takes three tenths of that import (`benchmarks/techniques.py lancedb`), and here nobody
    calls one.
    """
    import pydantic

    later = pydantic.ConfigDict(defer_build=True)
    with _deferring:
        config, decorator = pydantic.BaseModel.model_config, pydantic.validate_call

        def validate_call(*function: Any, **options: Any) -> Any:
            return decorator(*function, **options) if options else decorator(config=later)(*function)

        pydantic.BaseModel.model_config = {**config, **later}
        pydantic.validate_call = validate_call
        try:
            yield
        finally:
            pydantic.BaseModel.model_config = config
            pydantic.validate_call = decorator
