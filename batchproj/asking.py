"""What a search is given in Python, made one `Search`: of the right types, or refused in a line that names it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from batchproj.conditions import Filter
from batchproj.config import in_words, shown
from batchproj.errors import UsageError
from batchproj.queries import Example, Search, file_example, weight_of
from batchproj.schema import Modality

FILES = (Modality.IMAGE, Modality.AUDIO, Modality.VIDEO)

_OTHER_NAMES = {"id": "like", "unlike": "not"}
"""Of weights: as HTTP has them, or as the argument is called."""


def search_of(
    *,
    text: Any = None,
    image: Any = None,
    audio: Any = None,
    video: Any = None,
    like: Any = None,
    unlike: Any = (),
    weights: Any = None,
    where: Any = (),
    filters: Any = (),
    **how: Any,
) -> Search:
    """The arguments of `Collection.search`; `how` are those that a `Search` has as they are. Raises UsageError."""
    files = dict(zip(FILES, (image, audio, video), strict=True))
    subtracted = _listed("unlike", unlike, str, "a text, or a list of texts")
    by = {"text": _text("text", text), **files, "like": _text("like", like), "not": subtracted}
    given = _weights(weights, {str(name) for name, value in by.items() if value})
    examples = [
        *([Example(Modality.TEXT, text, weight=weight_of(given, "text"))] if text else []),
        *(_file(kind, file, weight_of(given, kind)) for kind, file in files.items() if file is not None),
        *([Example(None, id=like, name=like, weight=weight_of(given, "like"))] if like else []),
        *(Example(Modality.TEXT, each, weight=-weight_of(given, "not")) for each in subtracted),
    ]
    checked: dict[str, Any] = {name: _HOW[name](name, value) for name, value in how.items()}
    return Search(
        tuple(examples),
        where=_listed("where", where, str, "COLUMN=VALUE, or a list of these"),
        filters=tuple(map(_filter, _listed("filters", filters, Filter | Mapping, "a list of filters"))),
        **checked,
    )


def _text(name: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise UsageError(f"{name} is {shown(value)}; expected a text")
    return value


def _whole(name: str, value: Any) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise UsageError(f"{name} is {shown(value)}; expected a whole number")
    return int(value)


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise UsageError(f"{name} is {shown(value)}; expected True or False")
    return bool(value)


_HOW: dict[str, Callable[[str, Any], Any]] = {
    **{"k": _whole, "offset": _whole, "modality": _text, "space": _text},
    **dict.fromkeys(("group", "balance", "hybrid"), _flag),
}


def _listed(name: str, value: Any, kind: Any, expected: str) -> tuple[Any, ...]:
    """The values of a list, or of one value that stands for a list of it."""
    if value is None:
        return ()
    is_list = isinstance(value, Iterable) and not isinstance(value, Mapping)  # of one the keys would be taken
    values = (value,) if isinstance(value, kind) else tuple(value) if is_list else (None,)
    for each in values:
        if not isinstance(each, kind):
            raise UsageError(f"{name} is {shown(value)}; expected {expected}")
    return values


def _filter(given: Filter | Mapping[str, Any]) -> Filter:
    """One as HTTP has it, too."""
    if isinstance(given, Filter):
        return given
    try:
        return Filter.model_validate(given)
    except ValidationError as error:
        raise UsageError(f"filter {shown(given)}: {in_words(error.errors())}") from None


def _file(kind: Modality, file: Any, weight: float) -> Example:
    """A file by its path, or the bytes of one."""
    if isinstance(file, bytes):
        return Example(kind, data=file, name=f"the {kind} given", weight=weight)
    if not isinstance(file, str | Path) or not str(file):
        raise UsageError(f"{kind} is {shown(file)}; expected the path of a file, or its bytes")
    return file_example(str(file), kind, weight)


def _weights(given: Any, searched: set[str]) -> dict[str, float]:
    """By the names of what is searched by."""
    if given is not None and not isinstance(given, Mapping):
        raise UsageError(f"weights is {shown(given)}; expected numbers by the names of what is searched by")
    weights: dict[str, Any] = {str(_OTHER_NAMES.get(name, name)): weight for name, weight in (given or {}).items()}
    for name, weight in weights.items():
        is_number = isinstance(weight, int | float | np.number) and not isinstance(weight, bool)
        fits = is_number and 0 <= weight < math.inf
        if name not in searched or not fits:
            raise UsageError(
                f"weight {name}={shown(weight)}: expected a number from 0 on, for one of "
                f"{', '.join(sorted(searched)) or 'none'}"
            )
    return weights
