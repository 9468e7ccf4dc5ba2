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


def said(error: BaseException) -> str:
    """What a library says of a damaged file: one line, of at most 200 characters; the error's name where it is mute."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def check(batch: pa.RecordBatch) -> None:
    """Raises ArrowInvalid where offsets, lengths or codes lead out of the batch: to read such values ends the process.

    Arrow files say where each value lies, and pyarrow believes them. What is wrong with a value by itself, a string
    that is not UTF-8 or a time after midnight, is not looked at: that is a matter of its row.
    """
    batch.validate()
    for column in batch.columns:
        column.view(_plain(column.type)).validate(full=True)


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type of the same layout that allows every value."""
    for text, plain in ((pa.string(), pa.binary()), (pa.large_string(), pa.large_binary())):
        if kind == text:
            return plain
    if kind == pa.string_view():
        return pa.binary_view()
    if pa.types.is_temporal(kind) or pa.types.is_decimal(kind):
        return pa.binary(kind.bit_width // 8)
    if pa.types.is_dictionary(kind):
        return pa.dictionary(kind.index_type, _plain(kind.value_type), kind.ordered)
    if pa.types.is_map(kind):
        return pa.map_(_plain(kind.key_type), _plain(kind.item_type))
    if pa.types.is_struct(kind):
        return pa.struct([each.with_type(_plain(each.type)) for each in kind])
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(_plain(kind.value_type)), kind.list_size)
    for is_list, made in ((pa.types.is_list, pa.list_), (pa.types.is_large_list, pa.large_list)):
        if is_list(kind):
            return made(kind.value_field.with_type(_plain(kind.value_type)))
    return kind


def values_of(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | ItemFault]:
    """The rows of a batch; Arrow does not check its strings, and holds dates that Python does not.

    Raises ArrowInvalid if they cannot be told apart.
    """
    check(batch)
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
        check(batch)
        end = begun + batch.num_rows
        found |= {(row, name): batch[name][row - begun].as_py() for row, name in wanted if begun <= row < end}
        begun = end
        if len(found) == len(set(wanted)):
            break
    return [found[each] for each in wanted]
