"""YAML and settings read strictly: an unknown key is an error that names the nearest known one, a key twice one too."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from batchproj.errors import SpaceError

_KEY_CHARS = 100
"""So many are shown of a key that nobody knows."""

_VALUE_CHARS = 60
"""So many are shown of a value that does not fit."""

M = TypeVar("M", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe one, which takes the last of two equal keys without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines:
                lines_told = f"lines {lines[name]} and {line}" if lines[name] != line else f"line {line}"
                raise SpaceError(f"key '{name[:_KEY_CHARS]}' is there twice, in {lines_told}; remove one")
            lines[name] = line
        return dict(super().construct_mapping(node, deep))


def read_yaml(data: bytes, where: str) -> dict[str, Any]:
    """Parse one YAML mapping; SpaceError names the line that is not YAML or has a key again, or the byte not UTF-8."""
    try:
        document = _Loader(data).get_single_data()
    except SpaceError as error:
        raise SpaceError(f"{where}: {error}") from error
    except yaml.YAMLError as error:
        raise SpaceError(f"{where} is not YAML: {' '.join(str(error).split())}") from error
    except Exception as error:  # what makes values raises anything: `2024-99-99`, `!!timestamp x`, `[` a thousand times
        raise SpaceError(f"{where} is not YAML: {type(error).__name__}: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise SpaceError(f"{where}: expected a mapping of keys to values, found {type(document).__name__}")
    return document


def validate(model: type[M], fields: Any, where: str) -> M:
    """Build `model` from `fields`; SpaceError in one line for whatever does not fit."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise SpaceError(f"{where}: {_explain(error, model)}") from error


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    """The first complaint, with the nearest known key where a key is unknown."""
    # a misspelt key is also a missing one: the misspelling is what to tell
    first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    path = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        known = _known_keys(model, path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}"
        place = f" in '{'.'.join(path[:-1])}'" if path[:-1] else ""
        return f"unknown key '{path[-1][:_KEY_CHARS]}'{place}; {hint}"
    if first["type"] == "missing":
        return f"key '{'.'.join(path)}' is missing"
    place = f"'{'.'.join(path)}'"
    if first["type"] == "value_error":  # of a check of ours
        said = str(first["ctx"]["error"])
        return f"{place}: {said}" if path else said
    return f"{place} is {shown(first['input'])}, expected {expected(first)}"


def shown(value: Any) -> str:
    """A value that does not fit, as its beginning."""
    if value is None:
        return "empty"
    text = " ".join(str(value).split())
    text = text if len(text) <= _VALUE_CHARS else f"{text[:_VALUE_CHARS]}…"
    return f"'{text}'" if isinstance(value, str) else text


_EXPECTED = {
    "string": "text: put it in quotes",
    "float": "a number",
    "int": "a whole number",
    "bool": "true or false",
    "model": "keys and values below it: give some, or leave it out",
    "dict": "keys and values below it: give some, or leave it out",
    "list": "a list, such as [a, b]",
    "tuple": "a list, such as [a, b]",
}
"""By how the name of pydantic's complaint begins."""

_LENGTHS = {
    "string_too_short": "a length of at least {min_length:,}",
    "string_too_long": "a length of at most {max_length:,}",
    "too_long": "at most {max_length:,} of them",
    "too_short": "at least {min_length:,} of them",
    "json_invalid": "JSON ({error})",
}

_BOUNDS = {"greater_than": "more than", "greater_than_equal": "at least", "less_than": "less than"}
_BOUNDS |= {"less_than_equal": "at most", "finite_number": "a finite number"}


def expected(complaint: Mapping[str, Any]) -> str:
    """What one of pydantic's complaints misses, in words of ours."""
    kind, told = complaint["type"], complaint.get("ctx", {})
    if kind in _BOUNDS:
        return " ".join([_BOUNDS[kind], *(f"{bound:,g}" for bound in told.values())])
    if kind in _LENGTHS:
        return _LENGTHS[kind].format(**told)
    if kind in ("literal_error", "enum"):
        return f"one of {told['expected'].replace(' or ', ', ')}"
    begin = kind.split("_")[0]
    return _EXPECTED.get(begin) or complaint["msg"].removeprefix("Input should be ")


_COMPLAINTS = 3
"""So many things are told to be wrong with one document."""

_COMPLAINT_CHARS = 300


def in_words(complaints: Sequence[Mapping[str, Any]], known: Iterable[str] = ()) -> str:
    """What pydantic found wrong with a JSON document, by the places in it, on one line; `known` are its fields."""
    told = dict.fromkeys(_in_words(each, list(known)) for each in complaints)
    return "; ".join(list(told)[:_COMPLAINTS])


def _in_words(complaint: Mapping[str, Any], known: list[str]) -> str:
    kind, value = complaint["type"], complaint["input"]
    place = ".".join(str(part) for part in complaint["loc"] if part != "[key]")[:_KEY_CHARS] or "the document"
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(complaint["loc"][-1]), known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}" if known else "leave it out"
        return f"{place}: there is no such field; {hint}"[:_COMPLAINT_CHARS]
    if kind == "missing":
        return f"{place}: it is missing"
    wanted = "an object with fields" if kind.startswith(("model", "dict")) else expected(complaint)
    instead = f", not {shown(value)}" if isinstance(value, str | int | float) and kind != "json_invalid" else ""
    return f"{place}: expected {wanted}{instead}"[:_COMPLAINT_CHARS]


def _known_keys(model: type[BaseModel], path: list[str]) -> list[str]:
    """Field names of the (nested) model a path of keys leads to."""
    for key in path:
        field = model.model_fields.get(key)
        if field is None:
            break
        nested = [
            part
            for part in (field.annotation, *getattr(field.annotation, "__args__", ()))
            if isinstance(part, type) and issubclass(part, BaseModel)
        ]
        if nested:
            model = nested[0]
    return list(model.model_fields)
