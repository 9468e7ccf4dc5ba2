"""Nothing is looked for among garbage while modules are imported, and all is as before when they are."""

from __future__ import annotations

import gc

import pytest

from batchproj.importing import importing


def test_no_garbage_is_looked_for_while_importing_and_it_is_again_afterwards() -> None:
    before = gc.get_freeze_count()
    with importing():
        assert not gc.isenabled()
        with importing():  # of a thread beside it, say
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > before
    gc.unfreeze()


def test_an_import_that_fails_leaves_it_on() -> None:
    with pytest.raises(ModuleNotFoundError), importing():
        import no_such_module  # type: ignore[import-not-found]  # noqa: F401
    assert gc.isenabled()
    gc.unfreeze()


def test_who_has_it_off_keeps_it_off() -> None:
    gc.disable()
    try:
        with importing():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
        gc.unfreeze()
