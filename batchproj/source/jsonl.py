"""Tables with one JSON object a line; `at` of a row is the byte its line begins at, and the line's length."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from batchproj.errors import ItemFault
from batchproj.objectstore import Listed
from batchproj.schema import Reason
from batchproj.source.pinned import RangedFile, buffered
from batchproj.source.record import LINE_BYTES, Record, pass_line


def records(_: Listed, file: RangedFile) -> Iterator[Record]:
    """Rows are numbered by lines; blank lines are none."""
    with buffered(file) as opened:
        at = number = 0
        while line := opened.readline(LINE_BYTES):
            number += 1
            begun, length = at, len(line)
            at += length
            if length == LINE_BYTES and not line.endswith(b"\n"):
                at += pass_line(opened)
                detail = f"line {number} is longer than {LINE_BYTES} bytes"
                yield Record(number, (begun, 0), ItemFault(Reason.TOO_LARGE, detail))
            elif not line.isspace():
                yield Record(number, (begun, length), _parsed(line, number))


def value(line: bytes, column: int) -> Any:
    """One value of a row by the number of its column; raises ValueError or IndexError for other bytes."""
    return list(json.loads(line).values())[column]


def _parsed(line: bytes, number: int) -> dict[str, Any] | ItemFault:
    try:
        found = json.loads(line.decode("utf-8-sig"), object_pairs_hook=_unambiguous)
    except UnicodeDecodeError as error:
        return ItemFault(Reason.INVALID_UTF8, f"line {number}: byte {error.start} is not UTF-8")
    except (ValueError, RecursionError) as error:
        return ItemFault(Reason.BAD_ROW, f"line {number} is not JSON: {error}")
    except MemoryError:  # a byte of brackets makes a list of fifty
        return ItemFault(Reason.TOO_LARGE, f"line {number} takes more memory than a table may")
    if not isinstance(found, dict):
        return ItemFault(Reason.BAD_ROW, f"line {number} is no JSON object but {type(found).__name__}")
    return found


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of two values under one key every reader takes another one."""
    found: dict[str, Any] = {}
    for name, each in pairs:
        if name in found:
            raise ValueError(f"key {name!r} is there twice")
        found[name] = each
    return found
