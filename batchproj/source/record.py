"""What every kind of table gives: its rows in order, and where each is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from batchproj.errors import ItemFault
from batchproj.schema import Reason

UNREADABLE = (pa.ArrowException, OSError, ValueError)
"""What pyarrow raises for a damaged file; storage that is away is none of these."""


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a table: its number, from 1 on, its values by column, or what is wrong with it.

    `at` finds it again in the file that it was read from, see the kind's own file.
    """

    number: int
    at: tuple[int, int]
    values: dict[str, Any] | ItemFault


def values_of(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | ItemFault]:
    """The rows of a batch; Arrow does not check that its strings are UTF-8."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:  # before anything was yielded
        for row in range(batch.num_rows):
            try:
                yield batch.slice(row, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                yield ItemFault(Reason.INVALID_UTF8, f"a string of the row is not UTF-8: {error}")


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
