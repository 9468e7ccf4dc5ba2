"""Settings read strictly: what cannot be read is one line, and no exception of a library's."""

from __future__ import annotations

import pytest

from batchproj.config import read_yaml, validate
from batchproj.errors import SpaceError
from batchproj.recipe import Recipe


@pytest.mark.parametrize(
    "data",
    [
        b"name: Kr\xf6te",
        b"a: [1",
        b"a: 2024-99-99",
        b"a: !!timestamp x",
        b"a: !!int x",
        b"a: !!python/object/apply:os.system [x]",
        b"a: " + b"[" * 3_000,
    ],
)
def test_what_is_no_yaml_is_said_in_one_line(data: bytes) -> None:
    with pytest.raises(SpaceError, match=r"recipe r\.yaml is not YAML: [^\n]+$"):
        read_yaml(data, "recipe r.yaml")


def test_of_a_long_key_the_beginning_is_shown() -> None:
    with pytest.raises(SpaceError, match=r"^recipe: unknown key 'x{100}'; known are "):
        validate(Recipe, {"x" * 5_000: 1}, "recipe")
