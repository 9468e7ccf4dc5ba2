"""A unit as one row: its description and, from who reads it to who embeds it, its tables, each as one Arrow IPC buffer
in one cell, so that no engine splits it.

Every buffer has its size from the start: one that grows is copied into memory made anew, time and again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from batchproj.collection.unit import Unit

UNIT = "unit"
"""Name of the column with the description."""


def unit_row(unit: Unit, tables: Sequence[pa.Table] = ()) -> pa.Table:
    """One row that carries whole tables; a single cell cannot be split between blocks."""
    cells = {f"table{number}": binaries([_stream(table)]) for number, table in enumerate(tables)}
    return pa.table({UNIT: [unit.model_dump_json()], **cells})


def unit_of(row: pa.Table) -> Unit:
    """Its description."""
    return Unit.model_validate_json(row[UNIT][0].as_py())


def tables_of(row: pa.Table) -> list[pa.Table]:
    """Its tables, not copied."""
    names = sorted(name for name in row.column_names if name != UNIT)
    return [pa.ipc.open_stream(_cell(row[name])).read_all() for name in names]


def binaries(values: Sequence[bytes | pa.Buffer]) -> pa.LargeBinaryArray:
    """The values as a column: copied once, a single one not at all."""
    offsets = np.zeros(len(values) + 1, np.int64)
    np.cumsum([len(value) for value in values], out=offsets[1:])
    data = values[0] if len(values) == 1 else b"".join(values)
    return pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(values), [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    )


def _cell(column: pa.ChunkedArray) -> pa.Buffer:
    """The one value of a column of large binaries; as a scalar it would be copied."""
    (chunk,) = (each for each in column.chunks if len(each))
    _, offsets, data = chunk.buffers()
    begin, end = np.frombuffer(offsets, np.int64)[chunk.offset : chunk.offset + 2].tolist()
    return data.slice(begin, end - begin)


def _stream(table: pa.Table) -> pa.Buffer:
    """A table as an Arrow IPC stream."""
    counted = pa.MockOutputStream()
    _write(table, counted)
    buffer = pa.allocate_buffer(counted.size())
    _write(table, pa.FixedSizeBufferWriter(buffer))
    return buffer


def _write(table: pa.Table, sink: pa.NativeFile) -> None:
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
