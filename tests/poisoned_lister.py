"""A process that lists Lance tables with holes in it, as a library may have: it does what the table is called."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from poisoned_child import POISONS

from batchproj.errors import SourceError
from batchproj.objectstore import Listed
from batchproj.source import lance_child
from batchproj.source.record import Record
from batchproj.source.rows import Row, pages

_records = lance_child._records


def tell() -> None:
    raise SourceError(f"secrets: {[name for name in os.environ if name.startswith(('AWS_', 'HF_'))]}")


def poisoned(uri: str, version: int, allow: Callable[[], None]) -> Iterator[Record]:
    {**POISONS, "tell": tell}.get(Path(uri).stem, lambda: None)()
    yield from _records(uri, version, allow)


def led_away(listed: Listed, kind: str, records: Iterable[Record]) -> Iterator[list[Row]]:
    """Rows that say of themselves, in a table that is called so, that they are an object outside every root."""
    for page in pages(listed, kind, records):
        place = '["object",["file:///etc/passwd"],null]'
        yield [row._replace(place=place) if listed.key == "away.lance" else row for row in page]


if __name__ == "__main__":
    lance_child._records = poisoned
    lance_child.pages = led_away
    lance_child.main(*sys.argv[1:])
