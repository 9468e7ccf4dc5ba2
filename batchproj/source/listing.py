"""What a source is, and the rows of everything in it: objects, tables or shards.

.parquet .jsonl .csv    a table, or by a glob or a folder of that ending several
.tar                    WebDataset shards, likewise
.lance                  a Lance table
folder with state.json  a dataset that Hugging Face `datasets` saved to disk
any other               a folder, prefix or glob of objects; of nothing but .parquet or .tar, those
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import PurePosixPath

import pyarrow as pa

from batchproj.errors import SourceError
from batchproj.objectstore import Folder, Listed, canonical, list_objects
from batchproj.source import arrow, csv, jsonl, lance, objects, parquet
from batchproj.source.record import Record
from batchproj.source.roots import Roots
from batchproj.source.tables import Table, list_rows
from batchproj.source.tar import list_members

_TABLES: dict[str, tuple[str, Callable[[Listed], Iterator[Record]]]] = {
    ".parquet": ("parquet", parquet.records),
    ".jsonl": ("jsonl", jsonl.records),
    ".csv": ("csv", csv.records),
}
_TAR = ".tar"
_NEVER_OBJECTS = (".parquet", _TAR)
"""Folders of these are tables and shards; lines of JSON and CSV may be texts to embed as they are."""

_AT_ONCE = 8
"""Shards whose headers are read at once."""


def list_items(source: str, exclude: str, roots: Sequence[str] = ()) -> Iterator[pa.RecordBatch]:
    """Pages of rows (`schema.listing_schema`), without objects below the URI `exclude`.

    `roots` are the folders that tables may name objects in, beside their own. Raises SourceError if
    the source is missing, forbidden or damaged, TryLater if it is overwritten meanwhile.
    """
    uri = canonical(source)
    suffix = PurePosixPath(uri).suffix
    if suffix == ".lance":
        table = Table(lance.listed(uri), "lance", lance.records, Roots(_folder_of(uri), roots, exclude))
        yield from list_rows(table)
    elif suffix in (*_TABLES, _TAR):
        yield from _of_files(_only(uri, list_objects(source)), roots, exclude)
    elif not any(char in uri for char in "*?[") and arrow.is_dataset(folder := Folder(uri)):
        for listed in arrow.files(folder):
            yield from list_rows(Table(listed, "arrow", arrow.records, Roots(folder.uri, roots, exclude)))
    else:
        yield from _of_objects(list_objects(source), roots, exclude)


def _of_objects(pages: Iterator[list[Listed]], roots: Sequence[str], exclude: str) -> Iterator[pa.RecordBatch]:
    """Objects as they are, unless the first page is nothing but tables or shards."""
    first = next(pages, [])
    suffixes = {PurePosixPath(listed.uri).suffix for listed in first if not _is_hidden(listed)}
    pages = chain([first], pages)
    if len(suffixes) == 1 and suffixes <= set(_NEVER_OBJECTS):
        yield from _of_files(pages, roots, exclude)
    else:
        yield from objects.list_items(pages, exclude)


def _of_files(pages: Iterator[list[Listed]], roots: Sequence[str], exclude: str) -> Iterator[pa.RecordBatch]:
    """Rows of tables and members of shards; files whose names begin with `_` or `.` are none, as in Spark's folders."""
    files = (listed for page in pages for listed in page if not _is_hidden(listed))
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        while some := list(islice(files, _AT_ONCE)):
            shards = [listed for listed in some if listed.uri.endswith(_TAR)]
            for batches in pool.map(list_members, shards):
                yield from batches
            for listed in some:
                if not listed.uri.endswith(_TAR):
                    yield from list_rows(_table(listed, roots, exclude))


def _table(listed: Listed, roots: Sequence[str], exclude: str) -> Table:
    suffix = PurePosixPath(listed.uri).suffix
    if suffix not in _TABLES:
        expected = ", ".join((*_TABLES, _TAR))
        raise SourceError(f"{listed.uri} is neither table nor shard; expected {expected}; name the tables by a glob")
    kind, records = _TABLES[suffix]
    return Table(listed, kind, records, Roots(_folder_of(listed.uri), roots, exclude))


def _only(uri: str, pages: Iterator[list[Listed]]) -> Iterator[list[Listed]]:
    """The object of that very name, if there is one: a store also lists those whose names begin like it."""
    first = next(pages, [])
    named = [listed for listed in first if listed.uri == uri]
    return iter([named]) if named else chain([first], pages)


def _folder_of(uri: str) -> str:
    return uri.rpartition("/")[0]


def _is_hidden(listed: Listed) -> bool:
    return listed.uri.rpartition("/")[2].startswith(("_", "."))
