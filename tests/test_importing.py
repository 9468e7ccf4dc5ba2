"""Nothing is looked for among garbage while modules are imported, and all is as before when they are."""

from __future__ import annotations

import gc
import subprocess
import sys
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


def test_lancedb_comes_without_the_validators_of_a_client_nobody_calls_which_are_made_when_it_is_called() -> None:
    script = """if True:
        import pydantic
        from batchproj.importing import validators_when_used

        before = dict(pydantic.BaseModel.model_config), pydantic.validate_call
        with validators_when_used():
            import lance_namespace

            @pydantic.validate_call(config={"strict": True})
            def doubled(number: int) -> int:
                return 2 * number

        assert doubled(2) == 4

        assert (dict(pydantic.BaseModel.model_config), pydantic.validate_call) == before

        class Ours(pydantic.BaseModel):
            number: int

        assert Ours.__pydantic_complete__

        from lance_namespace_urllib3_client.api.table_api import TableApi
        from lance_namespace_urllib3_client.models.add_columns_entry import AddColumnsEntry

        assert not AddColumnsEntry.__pydantic_complete__
        assert AddColumnsEntry(name="n").name == "n"
        for refused in (lambda: AddColumnsEntry(name=3), lambda: TableApi().count_table_rows(3, 4)):
            try:
                refused()
            except pydantic.ValidationError as error:
                print(error.error_count())
        try:
            doubled("2")
        except pydantic.ValidationError as error:
            print(error.error_count())
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 3
