"""Settings read strictly: what cannot be read is one line, and no exception of a library's."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchproj.config import read_yaml, validate
from batchproj.errors import SpaceError
from batchproj.recipe import Recipe
from batchproj.space import open_space, resolve


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


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("limits:", "'limits' is empty, expected keys and values below it: give some, or leave it out"),
        ("limits: 5", "'limits' is 5, expected keys and values below it: give some, or leave it out"),
        ("roots: 2024", "'roots' is 2024, expected a list, such as [a, b]"),
        ("roots: [7]", "'roots.0' is 7, expected text: put it in quotes"),
        ("retry_s: soon", "'retry_s' is 'soon', expected a number"),
        ("retry_s: 0", "'retry_s' is 0, expected more than 0"),
        ("units: {max_items: 3.5}", "'units.max_items' is 3.5, expected a whole number"),
        ("units: {max_items: 5000}", "'units.max_items' is 5000, expected at most 1,024"),
        ("sound_tracks: 7", "'sound_tracks' is 7, expected true or false"),
        ("pools: {smell: {}}", "'pools.smell.[key]' is 'smell', expected one of 'text', 'image', 'audio', 'video'"),
    ],
)
def test_what_does_not_fit_is_named_with_what_would(recipe: str, said: str) -> None:
    with pytest.raises(SpaceError) as found:
        validate(Recipe, read_yaml(recipe.encode(), "recipe r.yaml"), "recipe r.yaml")
    assert str(found.value) == f"recipe r.yaml: {said}"


def test_a_revision_of_digits_wants_quotes(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("dim: 24\ntext: {encoder: {kind: clip, model: a/b, revision: 12345678}}")
    with pytest.raises(SpaceError) as found:
        resolve(open_space(str(tmp_path / "s.yaml")))
    assert str(found.value).endswith("'revision' is 12345678, expected text: put it in quotes")


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("a: 1\nb: 2\na: 3", "key 'a' is there twice, in lines 1 and 3; remove one"),
        ("x:\n  a: 1\n  'a': 3", "key 'a' is there twice, in lines 2 and 3; remove one"),
        ("x: {a: 1, a: 1}", "key 'a' is there twice, in line 1; remove one"),
        ("x: [{a: 1}, {b: 1, b: 2}]", "key 'b' is there twice, in line 1; remove one"),
    ],
)
def test_a_key_that_is_there_twice_is_refused(document: str, said: str) -> None:
    with pytest.raises(SpaceError) as found:
        read_yaml(document.encode(), "recipe r.yaml")
    assert str(found.value) == f"recipe r.yaml: {said}"
    assert read_yaml(b"x: {a: 1}\ny: {a: 1}\nz: &z {b: 1}\nw: {<<: *z, b: 2}", "")["w"] == {"b": 2}
