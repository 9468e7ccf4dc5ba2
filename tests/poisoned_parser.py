"""A parser of tables with holes in it, as a library may have: a table of lines does what its first line says."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from poisoned_child import POISONS

from batchproj.objectstore import Listed
from batchproj.source import jsonl, parser_child
from batchproj.source.pinned import RangedFile
from batchproj.source.record import Record
from batchproj.source.rows import Row, pages


def poisoned(listed: Listed, file: RangedFile) -> Iterator[Record]:
    POISONS.get(file.readline().strip().decode(), lambda: None)()
    file.seek(0)
    yield from jsonl.records(listed, file)


def led_away(listed: Listed, kind: str, records: Iterator[Record]) -> Iterator[list[Row]]:
    """Rows that say of themselves, in a table that is called so, that they are an object outside every root."""
    for page in pages(listed, kind, records):
        place = '["object",["file:///etc/passwd"],null]'
        yield [row._replace(place=place) if listed.key == "away.jsonl" else row for row in page]


if __name__ == "__main__":
    parser_child._RECORDS["jsonl"] = poisoned
    parser_child.pages = led_away
    parser_child.main(*sys.argv[1:])
