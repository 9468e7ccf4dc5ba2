"""The JSON of an item's metadata, written so that a field can be found in it by plain text.

Fields stand at the top without a space before their colon, and what is nested in them with one. Quotes
inside strings are escaped, so `{"colour":"red",` and the like stand there for the field and for
nothing else.
"""

from __future__ import annotations

import datetime
import decimal
import json
import math
import re
import sys
from collections.abc import Mapping
from typing import Any

from batchproj.errors import ItemFault
from batchproj.schema import Reason

_MOST_FLOAT = sys.float_info.max

METADATA_BYTES = 1 << 20
"""More than this is no description of an item."""


def to_json(fields: Mapping[str, Any]) -> str | None:
    """The fields that have a value, in order of their names; None without any.

    Bytes are left out. Raises ItemFault: TOO_LARGE, BAD_ROW (nested too deeply), and UnicodeEncodeError
    for half of a surrogate pair.
    """
    try:
        plain = {str(name): _plain(value) for name, value in fields.items()}
        written = [f"{_dump(name)}:{_dump(plain[name])}" for name in sorted(plain) if plain[name] is not None]
    except RecursionError:
        raise ItemFault(Reason.BAD_ROW, "its metadata are nested too deeply") from None
    if not written:
        return None
    document = "{" + ",".join(written) + "}"
    if (size := len(document.encode())) > METADATA_BYTES:
        raise ItemFault(Reason.TOO_LARGE, f"{size} bytes of metadata, the limit is {METADATA_BYTES}")
    return document


def patterns(name: str, value: str) -> list[str]:
    """Texts of which the JSON has one exactly if the field has that value, as a string, a number or true or false."""
    return [f"{before}{_dump(name)}:{written}{after}" for written in _forms(value) for before in "{," for after in ",}"]


def typed_patterns(name: str, value: str | bool | int | float) -> list[str]:
    """Texts of which the JSON has one exactly if the field has that value, and its kind; numbers are of one kind."""
    if isinstance(value, str | bool):
        forms = {_dump(value)}
    else:
        forms = {_dump(value)}
        if abs(value) < _MOST_FLOAT:
            forms |= {_dump(float(value)), *([str(int(value))] if float(value).is_integer() else [])}
    return [f"{before}{_dump(name)}:{form}{after}" for form in sorted(forms) for before in "{," for after in ",}"]


def name_patterns(name: str) -> list[str]:
    """Texts of which the JSON has one exactly if it has that field."""
    return [f"{before}{_dump(name)}:" for before in "{,"]


KINDS = {"text": ('"',), "number": tuple("-0123456789"), "truth value": ("true", "false")}
"""Of plain values, each with what its JSON begins with."""


def kind_of(value: str | bool | int | float) -> str:
    """The kind of a plain value."""
    return "text" if isinstance(value, str) else "truth value" if isinstance(value, bool) else "number"


def kind_patterns(name: str, kind: str) -> list[str]:
    """Texts of which the JSON has one exactly if the field has a value of that kind."""
    return [field + begin for field in name_patterns(name) for begin in KINDS[kind]]


def _forms(value: str) -> list[str]:
    """How a value that was typed may be written."""
    forms = [_dump(value)]
    if value in ("true", "false"):
        forms.append(value)
    if re.fullmatch(r"-?\d+", value, re.ASCII):
        forms += [str(int(value)), _dump(float(value))]
    elif re.fullmatch(r"-?\d+(\.\d*)?(e[+-]?\d+)?", value, re.ASCII | re.IGNORECASE):
        number = float(value)
        forms += [_dump(number), *([str(int(number))] if number.is_integer() else [])]
    return forms


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(", ", " : "))


def _plain(value: Any) -> Any:
    """What JSON can hold of a value; None for bytes, NaN and infinity."""
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal | datetime.timedelta):
        return str(value)
    return value if value is None or isinstance(value, str | int | bool) else None
