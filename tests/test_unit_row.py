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


def test_tables_are_copied_once_into_a_row_and_not_out_of_it() -> None:
    items = pa.table({"data": binaries([bytes(2**20)] * 8)})
    before = pa.total_allocated_bytes()
    row = unit_row(UNIT, [items])
    assert items.nbytes <= pa.total_allocated_bytes() - before < items.nbytes + 2**16
    filled = pa.total_allocated_bytes()
    tables = tables_of(row)
    assert pa.total_allocated_bytes() - filled < 2**16
    assert tables[0].equals(items)
