"""What every kind of table gives: its rows in order, and where each is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa

from batchproj.errors import ItemFault
from batchproj.schema import Reason

UNREADABLE = (pa.ArrowException, OSError, ValueError)
"""What pyarrow raises for a damaged file; storage that is away is none of these."""

LINE_BYTES = 256 * 2**20
"""A longer line of a table is not read: it is passed over and quarantined."""


def pass_line(file: BinaryIO) -> int:
    """Read to the end of a line; how many bytes that was."""
    passed = 0
    while piece := file.readline(1 << 20):
        passed += len(piece)
        if piece.endswith(b"\n"):
            break
    return passed


_ODD_VALUES = (ValueError, OverflowError, LookupError, pa.ArrowException)
"""What pyarrow raises for a value without a counterpart in Python; zoneinfo's for a time zone is a LookupError."""


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a table: its number, from 1 on, its values by column, or what is wrong with it.

    `at` finds it again in the file that it was read from, see the kind's own file.
    """

    number: int
    at: tuple[int, int]
    values: dict[str, Any] | ItemFault


def values_of(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | ItemFault]:
    """The rows of a batch; Arrow does not check its strings, and holds dates that Python does not."""
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except _ODD_VALUES:
        yield from (_values_of_row(batch.slice(row, 1)) for row in range(batch.num_rows))
    else:
        yield from rows


def _values_of_row(row: pa.RecordBatch) -> dict[str, Any] | ItemFault:
    try:
        values: dict[str, Any] = row.to_pylist()[0]
    except MemoryError:
        raise
    except UnicodeDecodeError as error:
        return ItemFault(Reason.INVALID_UTF8, f"a string of the row is not UTF-8: {error}")
    except _ODD_VALUES as error:
        return ItemFault(Reason.BAD_ROW, f"a value of the row cannot be read: {str(error)[:200]}")
    return values


def pick(batches: Iterable[pa.RecordBatch], wanted: Sequence[tuple[int, str]]) -> list[Any]:
    """Values by row number and column of consecutive batches; LookupError if there are fewer rows."""
    found: dict[tuple[int, str], Any] = {}
    begun = 0
    for batch in batches:
        end = begun + batch.num_rows
        found |= {(row, name): batch[name][row - begun].as_py() for row, name in wanted if begun <= row < end}
        begun = end
        if len(found) == len(set(wanted)):
            break
    return [found[each] for each in wanted]
