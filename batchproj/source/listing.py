"""What a source is, and the rows of everything in it: objects, tables or shards.

.parquet .jsonl .csv    a table, or by a glob or a folder of that ending several
.tar                    WebDataset shards, likewise
.lance                  a Lance table
folder with .arrow      a dataset that Hugging Face `datasets` saved to disk
any other               a folder, prefix or glob of objects; of nothing but .parquet or .tar, those
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import TypeAlias

import pyarrow as pa

from batchproj.errors import SourceError
from batchproj.objectstore import Folder, Listed, canonical, head, list_objects
from batchproj.source import arrow, lance, objects
from batchproj.source.ended import Allowed
from batchproj.source.parser import Parser
from batchproj.source.place import Place, parse_place
from batchproj.source.roots import Roots
from batchproj.source.sound_tracks import IsFilm, with_sound_tracks
from batchproj.source.tables import Table, list_rows, version_of
from batchproj.source.tar import list_members

_TABLES = {".parquet": "parquet", ".jsonl": "jsonl", ".csv": "csv"}
_TAR = ".tar"
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_NEVER_OBJECTS = (".parquet", _TAR)
"""Folders of these are tables and shards; lines of JSON and CSV may be texts to embed as they are."""

_AT_ONCE = 8
"""Shards whose headers are read at once."""


_EPOCH = 2
"""To be raised when the rows of a table or shard that is the same are listed otherwise."""


@dataclass(frozen=True)
class Seal:
    """After all rows of a table or shard, or instead of them if it is `unread`: they follow from its content alone.

    `key` is what the keys of its rows have before the last `#`, `digest` tells one content from another.
    """

    key: str
    digest: str
    unread: bool = False


Page: TypeAlias = "pa.RecordBatch | Seal"


def list_items(
    source: str,
    exclude: str,
    roots: Sequence[str] = (),
    sealed: Mapping[str, str] = MappingProxyType({}),
    is_film: IsFilm | None = None,
    parser: Parser | None = None,
) -> Iterator[Page]:
    """Pages of rows (`schema.listing_schema`), without objects below the URI `exclude`.

    `roots` are the folders that tables may name objects in, beside their own. `sealed` are the digests
    of seals by their keys: tables and shards that still have theirs are not read. With `is_film` the
    sound of films is listed as well. `parser` has the limits of what a table may take; it stays open. Raises
    SourceError if the source is missing, forbidden or damaged, TryLater if it is overwritten meanwhile.
    """
    with nullcontext(parser) if parser else Parser() as open_parser:
        for page in _pages(source, _Where(exclude, tuple(roots), sealed, is_film is not None, open_parser)):
            yield page if is_film is None or isinstance(page, Seal) else with_sound_tracks(page, is_film)


def _pages(source: str, where: _Where) -> Iterator[Page]:
    uri = canonical(source)
    suffix = PurePosixPath(uri).suffix
    if uri.endswith(_COMPRESSED):
        raise SourceError(f"{uri} is a compressed tar, whose members cannot be read by range; decompress it to a .tar")
    if suffix == ".lance":
        yield from _of_table(lance.listed(uri, where.parser.allowed), "lance", _folder_of(uri), where)
    elif suffix in (*_TABLES, _TAR):
        yield from _of_files(_only(uri, _outside(where.exclude, list_objects(source))), where)
    else:
        yield from _of_objects(uri, _outside(where.exclude, list_objects(source)), where)


@dataclass(frozen=True)
class _Where:
    """What `list_items` was told, beside the source."""

    exclude: str
    roots: tuple[str, ...]
    sealed: Mapping[str, str]
    with_sound: bool
    parser: Parser

    def seal(self, kind: str, listed: Listed) -> Seal:
        told = [_EPOCH, kind, listed.uri, listed.version, *(["sound tracks"] if self.with_sound else [])]
        digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]
        unread = self.sealed.get(listed.key) == digest and not listed.is_told_by_size_alone
        return Seal(listed.key, digest, unread)


def _of_objects(uri: str, pages: Iterator[list[Listed]], where: _Where) -> Iterator[Page]:
    """Objects as they are, unless the first page is nothing but tables or shards, or of a saved dataset."""
    first = next(pages, [])
    suffixes = {PurePosixPath(listed.uri).suffix for listed in first if not _is_hidden(listed)}
    pages = chain([first], pages)
    if len(suffixes) == 1 and suffixes <= set(_NEVER_OBJECTS):
        yield from _of_files(pages, where)
    elif ".arrow" in suffixes and not any(char in uri for char in "*?[") and arrow.is_dataset(Folder(uri)):
        for listed in arrow.files(Folder(uri)):
            yield from _of_table(listed, "arrow", uri, where)
    else:
        yield from objects.list_items(pages)


def _of_files(pages: Iterator[list[Listed]], where: _Where) -> Iterator[Page]:
    """Rows of tables and members of shards; files whose names begin with `_` or `.` are none, as in Spark's folders."""
    files = (listed for page in pages for listed in page if not _is_hidden(listed))
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        while some := list(islice(files, _AT_ONCE)):
            shards = [listed for listed in some if listed.uri.endswith(_TAR)]
            for of_shard in pool.map(lambda shard: _of_shard(shard, where), shards):
                yield from of_shard
            for listed in some:
                if not listed.uri.endswith(_TAR):
                    yield from _of_table(listed, _kind_of(listed.uri), _folder_of(listed.uri), where)


def _of_shard(shard: Listed, where: _Where) -> list[Page]:
    seal = where.seal("tar", shard)
    return [*([] if seal.unread else list_members(shard)), seal]


def _of_table(listed: Listed, kind: str, folder: str, where: _Where) -> Iterator[Page]:
    seal = where.seal(kind, listed)
    if seal.unread:
        yield seal
        return
    alone = True
    for page in list_rows(Table(listed, kind, Roots(folder, where.roots, where.exclude)), where.parser):
        kinds = {parse_place(place).kind for place in page["place"].to_pylist()}
        alone = alone and kinds == {kind}  # objects change beside it, and what is faulty may be one's fault
        yield page
    if alone:
        yield seal


def version_now(item: str, uri: str, place: Place) -> str | None:
    """The `source_version` of a row or member as it is now; None if it is not there.

    Raises FileNotFoundError if its table or shard is gone. Reads all of that.
    """
    container = uri.rpartition("#")[0]
    listed = lance.listed(container, Allowed()) if place.kind == "lance" else head(container)
    if place.kind == "tar":
        pages = (page.to_pylist() for page in list_members(listed))
        return next((row["source_version"] for page in pages for row in page if row["item"] == item), None)
    roots = Roots(_folder_of(container), (), container)  # of no account: what rows name is not looked at
    with Parser() as parser:
        return version_of(Table(listed, place.kind, roots), item, parser)


def _kind_of(uri: str) -> str:
    suffix = PurePosixPath(uri).suffix
    if suffix not in _TABLES:
        expected = ", ".join((*_TABLES, _TAR))
        raise SourceError(f"{uri} is neither table nor shard; expected {expected}; name the tables by a glob")
    return _TABLES[suffix]


def _outside(folder: str, pages: Iterator[list[Listed]]) -> Iterator[list[Listed]]:
    below = folder.rstrip("/") + "/"
    for page in pages:
        if kept := [listed for listed in page if not listed.uri.startswith(below)]:
            yield kept


def _only(uri: str, pages: Iterator[list[Listed]]) -> Iterator[list[Listed]]:
    """The object of that very name, if there is one: a store also lists those whose names begin like it."""
    first = next(pages, [])
    named = [listed for listed in first if listed.uri == uri]
    return iter([named]) if named else chain([first], pages)


def _folder_of(uri: str) -> str:
    return uri.rpartition("/")[0]


def _is_hidden(listed: Listed) -> bool:
    return listed.uri.rpartition("/")[2].startswith(("_", "."))
