"""YAML and settings read strictly: an unknown key is an error that names the nearest known one."""

from __future__ import annotations

import difflib
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from batchproj.errors import SpaceError

_KEY_CHARS = 100
"""So many are shown of a key that nobody knows."""

M = TypeVar("M", bound=BaseModel)


def read_yaml(data: bytes, where: str) -> dict[str, Any]:
    """Parse one YAML mapping; SpaceError names the line that is not YAML, or the byte that is not UTF-8."""
    try:
        document = yaml.safe_load(data)
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
    return f"'{'.'.join(path)}': {first['msg']}"


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
