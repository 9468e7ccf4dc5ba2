"""What goes from who reads a unit to who embeds it: one row, its description and its compressed bytes as one Arrow IPC
buffer, so that no engine splits it.

Every buffer has its size from the start: one that grows is copied and its memory made anew, again and again, which took
as long for photographs as their resizing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from batchproj.collection.unit import Unit

_UNIT = "unit"


def unit_row(unit: Unit, tables: Sequence[pa.Table] = ()) -> pa.Table:
    """One row that carries whole tables; a single cell cannot be split between blocks."""
    cells = {f"table{number}": binaries([_stream(table)]) for number, table in enumerate(tables)}
    return pa.table({_UNIT: [unit.model_dump_json()], **cells})


def unit_of(row: pa.Table) -> Unit:
    return Unit.model_validate_json(row[_UNIT][0].as_py())


def tables_of(row: pa.Table) -> list[pa.Table]:
    """Not copied."""
    names = sorted(name for name in row.column_names if name != _UNIT)
    return [pa.ipc.open_stream(row[name][0].as_buffer()).read_all() for name in names]


def binaries(values: Sequence[bytes | pa.Buffer]) -> pa.LargeBinaryArray:
    """They as a column, copied once, and a single one not at all."""
    offsets = np.zeros(len(values) + 1, np.int64)
    np.cumsum([len(value) for value in values], out=offsets[1:])
    data = values[0] if len(values) == 1 else b"".join(values)
    return pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(values), [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    )


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
