"""Tables and shards in a plan: rows that need not be listed again, that moved, that are there twice."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from batchproj.collection.plan import CONTAINER, LISTED, Plan
from batchproj.source.place import SOUND

DOUBLES_AT_ONCE = 1_000_000
"""Items that are grouped at once, in memory."""

_AGAIN = f"""
INSERT INTO listing BY NAME SELECT {LISTED} FROM manifest m
    JOIN unread u ON u.key = {CONTAINER}
WHERE m.place IS NOT NULL
"""

_PLACE = """
UPDATE listing SET place = m.place FROM moved m
WHERE listing.item = m.item AND listing.source_version = m.source_version
"""


def list_again(plan: Plan, keys: list[str]) -> None:
    """List the rows of these tables and shards as the loaded manifest has them: they are the same."""
    plan.db.execute("CREATE TABLE unread (key VARCHAR)")
    plan.insert("unread", pa.table({"key": pa.array(keys, pa.string())}))
    plan.db.execute(_AGAIN)


def place_anew(plan: Plan, pages: Iterable[pa.RecordBatch]) -> None:
    """Take the places of the listed items from another listing."""
    plan.db.execute("CREATE TABLE moved (item VARCHAR, source_version VARCHAR, place VARCHAR)")
    try:
        for page in pages:
            plan.insert("moved", pa.Table.from_batches([page]).select(["item", "source_version", "place"]))
    finally:  # also where the listing ends early
        plan.db.execute(_PLACE)


def has_places(plan: Plan) -> bool:
    """Whether items of the listing are rows of tables or members of shards."""
    return bool(plan.rows("SELECT 1 FROM listing WHERE place IS NOT NULL LIMIT 1"))


_MAY_BE_DOUBLE = f"(place IS NOT NULL OR suffix(uri, '{SOUND}'))"


def double(plan: Plan) -> tuple[str, str, str, str] | None:
    """URI, place and two keys of a row that is listed twice; objects are only if one is called as a sound track is."""
    placed = plan.rows(f"SELECT count(*) FROM listing WHERE {_MAY_BE_DOUBLE}")[0][0]
    number_of = placed // DOUBLES_AT_ONCE + 1
    for number in range(number_of):
        found = plan.rows(
            "SELECT min(uri), min(place), min(key), max(key) FROM listing "
            f"WHERE {_MAY_BE_DOUBLE} AND hash(item) % {number_of} = {number} "
            "GROUP BY item HAVING count(*) > 1 ORDER BY min(key) LIMIT 1"
        )
        if found:
            uri, place, first, second = found[0]
            return uri, place, first, second
    return None
