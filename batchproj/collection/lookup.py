"""An item of a run by what it is called: its URI, or that of the object a row of a table names."""

from __future__ import annotations

from typing import Any

import duckdb

from batchproj.errors import UsageError
from batchproj.source.objects import item_id
from batchproj.source.place import row_address

_SHOWN = 3


def find(db: duckdb.DuckDBPyConnection, rows: str, uri: str) -> dict[str, Any] | None:
    """The row of an item among a manifest's rows, given as SQL; None if there is none.

    Raises UsageError if several rows of a table name that object.
    """
    item = item_id(uri)
    query = f"SELECT * FROM ({rows}) WHERE item = ? OR uri = ? ORDER BY item = ? DESC, key LIMIT {_SHOWN + 1}"
    found: list[dict[str, Any]] = db.sql(query, params=[item, uri, item]).to_arrow_table().to_pylist()
    if len(found) > 1 and found[0]["item"] != item:
        addresses = [row_address(row["uri"], row.get("place")) for row in found[:_SHOWN]]
        more = " and more" if len(found) > _SHOWN else ""
        raise UsageError(f"several rows name {uri}; say which one: {', '.join(addresses)}{more}")
    return found[0] if found else None
