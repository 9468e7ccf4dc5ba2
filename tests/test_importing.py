"""Nothing is looked for among garbage while modules are imported, and all is as before when they are."""

from __future__ import annotations

import gc
from contextlib import ExitStack

import pytest

from batchproj.importing import importing


def test_no_garbage_is_looked_for_while_importing_and_it_is_again_afterwards() -> None:
    one, other = ExitStack(), ExitStack()
    one.enter_context(importing())
    assert not gc.isenabled()
    other.enter_context(importing())  # a thread beside it, that ends later
    one.close()
    assert not gc.isenabled()
    other.close()
    assert gc.isenabled()


def test_an_import_that_fails_leaves_it_on() -> None:
    with pytest.raises(ModuleNotFoundError), importing():
        import no_such_module  # type: ignore[import-not-found]  # noqa: F401
    assert gc.isenabled()


def test_who_has_it_off_keeps_it_off() -> None:
    gc.disable()
    try:
        with importing():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
