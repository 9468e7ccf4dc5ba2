"""Sources, collections and roots that no run is begun with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import write_words
from in_process import command, without_ray

from batchproj.errors import UsageError
from batchproj.execution import _Teller
from batchproj.objectstore import canonical
from batchproj.pipeline import News
from batchproj.run import Watch


@pytest.fixture(autouse=True)
def _no_ray() -> Iterator[None]:
    with without_ray():
        yield


@pytest.mark.parametrize("name", ["plan", "embed"])
def test_a_root_with_a_password_is_refused_whatever_the_source_is(name: str, tmp_path: Path, tiny_space: Path) -> None:
    write_words(tmp_path / "s/a.txt", 1)
    (recipe := tmp_path / "r.yaml").write_text("roots: ['https://anna:canary@example.org/x']")
    done = command(name, tmp_path / "s", tmp_path / "c", "--space", tiny_space, "--recipe", recipe)
    assert (done.returncode, "canary" in done.stderr, (tmp_path / "c").exists()) == (2, False, False)
    assert "has credentials in it" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_name_with_a_nul_says_so() -> None:
    with pytest.raises(UsageError, match=r"'s3://b/a\\x00b' has a NUL character in it, which no file or object has"):
        canonical("s3://b/a\0b")


def test_one_worker_that_died_is_told_of_as_one() -> None:
    said: list[str] = []
    teller = _Teller(Watch(step=said.append))
    for replaced in (0, 1, 1, 3):
        teller(News({}, replaced, [], 0, [], 0))
    assert said == ["1 worker died so far and was replaced", "3 workers died so far and were replaced"]
