"""Tables in the listing: their rows, and what is found of the objects that these name."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from batchproj.errors import ItemFault, TryLater
from batchproj.objectstore import Listed, head
from batchproj.retry import CALLS_AT_ONCE
from batchproj.schema import Reason, listing_schema
from batchproj.source import lance
from batchproj.source.objects import item_id, pair_key
from batchproj.source.parser import Parser
from batchproj.source.place import OBJECT, Place
from batchproj.source.roots import Roots
from batchproj.source.rows import Row, faulty


@dataclass(frozen=True)
class Table:
    """One table: `listed` is its file or folder, `kind` the file in `source/` that knows its format."""

    listed: Listed
    kind: str
    roots: Roots


def list_rows(table: Table, parser: Parser) -> Iterator[pa.RecordBatch]:
    """Pages of rows, in the table's order.

    Raises SourceError if it is damaged or has no column to embed, TryLater if it is overwritten meanwhile.
    """
    look_up = partial(_looked_up, table.roots)
    with ThreadPoolExecutor(CALLS_AT_ONCE) as pool:
        for page in _pages(table, parser):
            named = any(row.names is not None for row in page)
            yield _batch(list(pool.map(look_up, page)) if named else [(row.address, row) for row in page])


def version_of(table: Table, item: str, parser: Parser) -> str | None:
    """The `source_version` that an item, whose bytes are in its row, has now; None if it is not there."""
    found = (row.source_version for page in _pages(table, parser) for row in page if item_id(row.address) == item)
    return next(found, None)


def _pages(table: Table, parser: Parser) -> Generator[list[Row]]:
    listed = table.listed
    # Lance reads by itself, in a process of its own
    found = lance.pages(listed, parser.allowed) if table.kind == "lance" else parser.pages(listed, table.kind)
    try:
        yield from found
    except ItemFault as fault:  # of the table itself
        raise TryLater(f"{listed.uri} was overwritten while it was listed; run the same command again") from fault


def _looked_up(roots: Roots, row: Row) -> tuple[str, Row]:
    """The URI of an item, and its row with size, version and place of the object that it names."""
    if row.names is None:
        return row.address, row
    try:
        target, real = roots.resolve(row.names)
        found = head(target, stay=True)
    except ItemFault as refused:
        fault = refused
    except FileNotFoundError:
        fault = ItemFault(Reason.MISSING, f"no object {target}")
    except PermissionError as error:
        fault = ItemFault(Reason.FORBIDDEN, f"{target} may not be read: {error}")
    except OSError as error:
        fault = ItemFault(Reason.BAD_ROW, f"{target} cannot be opened: {error}")
    else:
        pair = row.pair if row.is_paired else pair_key(target.removeprefix(f"{roots.folder}/"))
        place = Place(OBJECT, (row.address,) if real is None else (row.address, real))
        return target, row._replace(pair=pair, size=found.size, source_version=found.version, place=str(place))
    return row.address, faulty(row.address, row.key, fault)


def _batch(page: list[tuple[str, Row]]) -> pa.RecordBatch:
    columns = {name: [getattr(row, name) for _, row in page] for name in listing_schema().names if name in Row._fields}
    columns["item"] = [item_id(row.address) for _, row in page]
    columns["uri"] = [uri for uri, _ in page]
    return pa.RecordBatch.from_pydict(columns, schema=listing_schema())
