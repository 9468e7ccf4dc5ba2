"""Tables of comma-separated values with a header, RFC 4180; `at` of a row is its first byte and its length."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any, BinaryIO

from batchproj.errors import ItemFault, SourceError
from batchproj.objectstore import Listed
from batchproj.schema import Reason
from batchproj.source.pinned import RangedFile, buffered
from batchproj.source.record import LINE_BYTES, Record, pass_line

csv.field_size_limit(LINE_BYTES)  # of the process; by itself it refuses fields from 128 KiB on


def records(table: Listed, file: RangedFile) -> Iterator[Record]:
    """Rows are numbered without the header; an empty field is no value.

    Raises SourceError for a header that is not UTF-8 or names a column twice, and for a quote that is never closed.
    """
    with buffered(file) as opened:
        lines = _Lines(opened, table.uri)
        reader = csv.reader(lines, strict=True)
        header = _header(reader, table.uri)
        number = 0
        while True:
            begun, first_line = lines.at, lines.number + 1
            lines.bad_line = lines.long_line = None
            try:
                fields = next(reader, None)
            except csv.Error as error:
                fields = [str(error)]
                found: dict[str, Any] | ItemFault = _not_csv(error, table.uri, first_line)
            else:
                found = _values(header, fields or [], first_line, lines.bad_line)
            if lines.long_line is not None:
                found = ItemFault(Reason.TOO_LARGE, f"line {lines.long_line} is longer than {LINE_BYTES} bytes")
            if fields is None:
                return
            if fields:  # not a blank line
                number += 1
                yield Record(number, (begun, lines.at - begun), found)


def value(record: bytes, column: int) -> Any:
    """One value of a row by the number of its column; raises ValueError or IndexError for other bytes."""
    try:
        return next(csv.reader(io.StringIO(record.decode(), newline="\n"), strict=True))[column]
    except (csv.Error, StopIteration) as error:
        raise ValueError(str(error)) from error


def _header(reader: Iterator[list[str]], uri: str) -> list[str]:
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise SourceError(f"{uri}: its first line is not CSV: {error}; expected the names of the columns") from error
    if "" in header or len(set(header)) != len(header):
        raise SourceError(f"{uri}: its first line names a column twice or not at all; expected different names")
    return header


def _not_csv(error: csv.Error, uri: str, line: int) -> ItemFault:
    if "unexpected end" in str(error):  # with it all the rows behind it are lost, which is no matter of one row
        raise SourceError(f"{uri}: a quote in the row at line {line} is never closed; close it") from error
    return ItemFault(Reason.BAD_ROW, f"line {line} is not CSV: {error}")


def _values(header: list[str], fields: list[str], line: int, bad_line: int | None) -> dict[str, Any] | ItemFault:
    if bad_line is not None:
        return ItemFault(Reason.INVALID_UTF8, f"line {bad_line} is not UTF-8")
    if len(fields) != len(header):
        return ItemFault(Reason.BAD_ROW, f"line {line} has {len(fields)} fields, the header {len(header)}")
    return {name: field or None for name, field in zip(header, fields, strict=True)}


class _Lines:
    """Lines as the `csv` module wants them, with the byte that the next one begins at."""

    def __init__(self, file: BinaryIO, uri: str) -> None:
        self._file = file
        self._uri = uri
        self.at = self.number = 0
        self.bad_line: int | None = None
        self.long_line: int | None = None

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._file.readline(LINE_BYTES)
        if not line:
            raise StopIteration
        self.at += len(line)
        self.number += 1
        if len(line) == LINE_BYTES and not line.endswith(b"\n"):
            if self.number == 1:
                raise SourceError(f"{self._uri}: its first line is longer than {LINE_BYTES} bytes; is it CSV?")
            self.at += pass_line(self._file)
            self.long_line = self.number
            return "too long\n"
        try:
            return line.decode("utf-8-sig" if self.number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            if self.number == 1:
                raise SourceError(f"{self._uri}: its first line is not UTF-8; save it as UTF-8") from error
            self.bad_line = self.number
            return line.decode("utf-8", "replace")
