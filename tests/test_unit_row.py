"""A unit's row between stages: nothing of its tables is lost on the way, and they are not copied more than once."""

from __future__ import annotations

import pyarrow as pa
import pytest

from batchproj.collection.unit import Unit
from batchproj.schema import Modality
from batchproj.unit_row import binaries, tables_of, unit_of, unit_row

UNIT = Unit(name="u", run="1", task="embed", modality=Modality.IMAGE, items=3, bytes=9)


@pytest.mark.parametrize("values", [[], [b""], [b"one"], [b"one", b"", b"three" * 1_000]])
def test_binaries_are_a_column_of_their_bytes(values: list[bytes]) -> None:
    column = binaries(values)
    column.validate(full=True)
    assert column.equals(pa.array(values, pa.large_binary()))


def test_a_row_brings_its_unit_and_tables_of_any_kind() -> None:
    tables = [
        pa.table({"data": binaries([b"one", b"", b"three"]), "size": [3, None, 5]}),
        pa.table({"feature": pa.array([[1.0, 2.0], None], pa.list_(pa.float32()))}).replace_schema_metadata({"a": "b"}),
        pa.table({"id": pa.array([], pa.string())}),
    ]
    row = unit_row(UNIT, tables)
    assert row.num_rows == 1
    assert unit_of(row) == UNIT
    found = tables_of(row)
    assert [each.schema.metadata for each in found] == [each.schema.metadata for each in tables]
    assert found == tables
    assert tables_of(unit_row(UNIT)) == []
    others = pa.concat_tables([unit_row(UNIT, tables[1:2] * 3), row, unit_row(UNIT, tables[:1] * 3)])
    assert tables_of(others.combine_chunks().slice(1, 1)) == tables


def test_tables_are_copied_once_into_a_row_and_not_out_of_it() -> None:
    one = bytes(2**20)
    assert binaries([one]).buffers()[2].address == pa.py_buffer(one).address
    items = pa.table({"data": binaries([one] * 8)})
    row = unit_row(UNIT, [items])
    cell = row["table0"].chunk(0).buffers()[2]
    assert items.nbytes <= cell.size < items.nbytes + 2**16
    data = tables_of(row)[0]["data"].chunk(0).buffers()[2]
    assert cell.address <= data.address < cell.address + cell.size
