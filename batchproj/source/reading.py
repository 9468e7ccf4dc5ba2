"""The bytes of listed items, wherever they are: objects, rows of tables, members of shards.

Items that lie together are read together: of a Parquet or Arrow file only the row groups or record
batches that are needed, of a file of lines or a tar only the ranges.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from batchproj.errors import BatchprojError, DiskFault, ItemFault
from batchproj.objectstore import GONE, read_pinned, read_range
from batchproj.schema import Reason
from batchproj.source import arrow, csv, jsonl, lance, parquet
from batchproj.source.place import FAULT, OBJECT, Place, fault_at, film_row, parse_place
from batchproj.source.record import UNREADABLE
from batchproj.source.rows import payload

ASKED = ("uri", "source_version", "size", "place")
"""Columns of a unit's inputs by which its items are read."""

GAP_BYTES = 64 * 1024
"""Ranges that are no further apart are read by one request."""

DISK_FAILS = "its disk fails over it, and not over what is beside it"
"""How the detail of a fault begins whose object a disk does not give."""

FAILING_ITEMS = 3
"""So many objects of a unit may be at fault that their disk does not give them; each is waited for."""

FILES_AT_ONCE = 32
SMALL_BYTES = 64 * 1024
"""Small files of this machine that a thread reads one after the other: to hand one over takes longer than to read it
(measured)."""

QUICK_S = 200e-6
"""A small file that takes no longer is in memory or on a disk of this machine; over a network it takes longer."""

SPAN_BYTES = 8 * 2**20
"""What is read by one request, unless a single item is larger."""

_BLOCKS: dict[str, Callable[[str, int, Sequence[tuple[int, int]]], list[Any]]] = {
    "parquet": parquet.read_block,
    "arrow": arrow.read_block,
    "lance": lance.read_block,
}
_LINES: dict[str, Callable[[bytes, int], Any]] = {"jsonl": jsonl.value, "csv": csv.value}

Read = bytes | ItemFault


@dataclass(frozen=True)
class _Item:
    """An item to read, by its number among those asked for."""

    number: int
    uri: str
    size: int
    version: str
    place: Place | None

    @property
    def is_small_file(self) -> bool:
        """Of this machine, and all of it the item."""
        is_whole = self.place is None or self.place.kind == OBJECT
        return is_whole and self.size <= SMALL_BYTES and self.uri.startswith("file:")

    @property
    def container(self) -> str:
        """The file that holds it."""
        return self.uri.rpartition("#")[0]

    @property
    def at(self) -> tuple[Any, ...]:
        assert self.place is not None, self
        return self.place.at


def read_items(rows: Sequence[Mapping[str, Any]], most_bytes: int, threads: int) -> list[Read]:
    """Bytes of each row (`ASKED`), or why there are none; none is larger than `most_bytes`.

    What a disk fails over (EIO), again and again while objects beside it are read, is the object's fault: FORBIDDEN. So
    are at most `FAILING_ITEMS` of these rows, and fewer than are read well; with more it is the disk's. Raises TryLater
    if that, or any storage, is away.
    """
    found: dict[int, Read] = {}
    items = []
    for number, row in enumerate(map(film_row, rows)):
        place = None if row["place"] is None else parse_place(row["place"])
        if row["size"] > most_bytes:
            found[number] = ItemFault(Reason.TOO_LARGE, f"{row['size']} bytes, limit {most_bytes}")
        elif place is not None and place.kind == FAULT:
            found[number] = fault_at(place)
        else:
            items.append(_Item(number, row["uri"], row["size"], row["source_version"], place))
    with ThreadPoolExecutor(threads) as pool:
        failing: dict[int, DiskFault] = {}
        tasks = _tasks(items, threads)
        while tasks:
            left: list[_Task] = []
            for task, read in _read_tasks(tasks, pool):
                failing |= {number: each for number, each in read.items() if isinstance(each, DiskFault)}
                found |= {number: each for number, each in read.items() if not isinstance(each, DiskFault)}
                _check_failing(failing, FAILING_ITEMS)
                left += [[items] for items in task if items[0].number not in read]
            tasks = left
    _check_failing(failing, sum(isinstance(each, bytes) for each in found.values()) - 1)
    for number, fault in failing.items():
        found[number] = ItemFault(Reason.FORBIDDEN, f"{DISK_FAILS}: {fault.__cause__}")
    return [found[number] for number in range(len(rows))]


def _check_failing(failing: dict[int, DiskFault], most: int) -> None:
    if len(failing) > max(0, most):
        raise next(iter(failing.values()))


_Task = list[list[_Item]]
"""What a thread is handed at once: a few requests, each for items that are read together."""


def _tasks(items: list[_Item], threads: int) -> list[_Task]:
    """Small files together, so that all threads have some; the rest one request at a time."""
    together = list(_together(items))
    files = [each for each in together if each[0].is_small_file]
    count = min(FILES_AT_ONCE, math.ceil(len(files) / threads)) or 1
    groups = [files[at : at + count] for at in range(0, len(files), count)]
    return groups + [[each] for each in together if not each[0].is_small_file]


def _read_tasks(tasks: list[_Task], pool: Executor) -> Iterator[tuple[_Task, dict[int, Read | DiskFault]]]:
    """Small files by one thread as long as they are there at once: more of them wait for each other's turn at Python,
    and took twice as long (measured). From the first that has to be waited for, all at once."""
    quick = 0
    first: list[Future[dict[int, Read | DiskFault]]] = []
    while quick < len(tasks) and tasks[quick][0][0].is_small_file:
        task = tasks[quick]
        first = [pool.submit(_read_each, task)]
        if wait(first, QUICK_S * len(task)).not_done:
            break
        yield task, first.pop().result()
        quick += 1
    rest = tasks[quick:]
    left = [*first, *(pool.submit(_read_each, task) for task in rest[len(first) :])]
    yield from zip(rest, (each.result() for each in left), strict=True)


def _read_each(task: _Task) -> dict[int, Read | DiskFault]:
    """To the first that its disk does not give: it was waited for, and what comes after it must not wait as well."""
    found: dict[int, Read | DiskFault] = {}
    for items in task:
        found |= _read_together(items)
        if isinstance(found[items[0].number], DiskFault):
            break
    return found


def _together(items: list[_Item]) -> Iterator[list[_Item]]:
    """Items that are read at once: an object, the rows of one block of a file, or ranges close to each other."""
    inside = [item for item in items if item.place is not None and item.place.kind != OBJECT]
    yield from ([item] for item in items if item.place is None or item.place.kind == OBJECT)
    inside.sort(key=lambda item: (item.container, item.at[:2]))
    for _, of_file in groupby(inside, lambda item: item.container):
        rows = list(of_file)
        if rows[0].place is not None and rows[0].place.kind in _BLOCKS:
            yield from (list(block) for _, block in groupby(rows, lambda item: item.at[0]))
        else:
            yield from _spans(rows)


def _spans(items: list[_Item]) -> Iterator[list[_Item]]:
    span: list[_Item] = []
    for item in items:
        begun, length = item.at[:2]
        if span:
            end = span[-1].at[0] + span[-1].at[1]
            if begun - end > GAP_BYTES or begun + length - span[0].at[0] > SPAN_BYTES:
                yield span
                span = []
        span.append(item)
    if span:
        yield span


def _read_together(items: list[_Item]) -> Mapping[int, Read | DiskFault]:
    first = items[0]
    try:
        if first.place is None or first.place.kind == OBJECT:
            stay = first.place is not None  # a row must not lead out of its table's roots
            uri = str(first.at[1]) if stay and len(first.at) > 1 else first.uri  # as the roots have allowed it
            return {first.number: read_pinned(uri, first.size, first.version, stay)}
        if first.place.kind in _BLOCKS:
            return _from_block(first.place.kind, items)
        return _from_span(first.place.kind, items)
    except ItemFault as fault:
        return {item.number: fault for item in items}
    except FileNotFoundError:
        gone = ItemFault(Reason.CHANGED, f"{first.container} is {GONE}")
        return {item.number: gone for item in items}
    except PermissionError as error:
        return {item.number: ItemFault(Reason.FORBIDDEN, f"may not be read: {error}") for item in items}
    except DiskFault as fault:
        return {item.number: fault for item in items}


def _from_block(kind: str, items: list[_Item]) -> dict[int, Read]:
    """Rows of one row group, record batch or version."""
    try:
        values = _BLOCKS[kind](items[0].container, items[0].at[0], [(item.at[1], item.at[2]) for item in items])
    except (FileNotFoundError, PermissionError, MemoryError, BatchprojError):  # pyarrow's MemoryError is its own too
        raise
    except (*UNREADABLE, LookupError, TypeError) as error:  # another file than was listed
        return {item.number: _changed(item, error) for item in items}
    return {item.number: _checked(item, value) for item, value in zip(items, values, strict=True)}


def _from_span(kind: str, items: list[_Item]) -> dict[int, Read]:
    """Rows or members from one range."""
    begun = items[0].at[0]
    end = max(item.at[0] + item.at[1] for item in items)
    version = str(items[0].at[2]) if kind == "tar" else None  # a row's own digest says whether it is the same
    data = read_range(items[0].container, begun, end - begun, version) if end > begun else b""
    found: dict[int, Read] = {}
    for item in items:
        piece = data[item.at[0] - begun : item.at[0] - begun + item.at[1]]
        if kind == "tar":
            found[item.number] = piece if len(piece) == item.size else _changed(item, "it ends before")
            continue
        try:
            found[item.number] = _checked(item, _LINES[kind](piece, item.at[2]))
        except (ValueError, LookupError, AttributeError, RecursionError) as error:
            found[item.number] = _changed(item, error)
    return found


def _checked(item: _Item, value: Any) -> Read:
    """The bytes of a row, if they are the ones that were listed."""
    try:
        data = payload(value, str(item.at[3]))
    except (ItemFault, UnicodeEncodeError) as error:
        return _changed(item, error)
    if hashlib.sha256(data).hexdigest() != item.version:
        return _changed(item, "the row has another content")
    return data


def _changed(item: _Item, why: object) -> ItemFault:
    return ItemFault(Reason.CHANGED, f"{item.container} was written to since it was listed: {str(why)[:200]}")
