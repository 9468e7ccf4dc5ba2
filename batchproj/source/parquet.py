"""Parquet tables; `at` of a row is its row group and its number in that, from 0 on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow.parquet as pq

from batchproj.errors import SourceError
from batchproj.objectstore import Listed, head
from batchproj.source.pinned import RangedFile, open_pinned
from batchproj.source.record import UNREADABLE, Record, pick, said, values_of

BATCH_ROWS = 256
"""Rows that are decoded at once: payloads may be megabytes each."""

BUFFER_BYTES = 4 * 2**20
"""Of each column: read at once, and all that is held of a column chunk."""


def records(table: Listed, file: RangedFile) -> Iterator[Record]:
    """Raises SourceError if it is damaged."""
    try:
        with _opened(file) as opened:
            names = opened.schema_arrow.names
            if double := [name for name in names if names.count(name) > 1]:
                raise SourceError(f"{table.uri} has two columns {double[0]}; expected different names")
            number = 0
            for group in range(opened.num_row_groups):
                at = 0
                for batch in opened.iter_batches(BATCH_ROWS, row_groups=[group], use_threads=False):
                    for values in values_of(batch):
                        number += 1
                        yield Record(number, (group, at), values)
                        at += 1
    except MemoryError:  # pyarrow's is one of its own as well
        raise
    except UNREADABLE as error:
        raise SourceError(f"{table.uri} is no sound Parquet file: {said(error)}; write it again") from error


def read_block(uri: str, group: int, wanted: Sequence[tuple[int, int]]) -> list[Any]:
    """Values by row number and column number, of one row group; only the columns' chunks of that are read."""
    with _opened(open_pinned(head(uri))) as file:
        names = file.schema_arrow.names
        columns = [names[column] for column in sorted({column for _, column in wanted})]
        batches = file.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False)
        return pick(batches, [(row, names[column]) for row, column in wanted])


def _opened(file: RangedFile) -> pq.ParquetFile:
    return pq.ParquetFile(file, buffer_size=BUFFER_BYTES, pre_buffer=False)
