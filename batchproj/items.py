"""The bytes behind the rows of a run: where they lie says its manifest, that they are the ones says their version.

Nothing is opened by a name from outside: an item is found by its row, and read as a run reads it.
Of the sound of a film the bytes are the film's.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import weakref
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb

from batchproj.bounded_cache import BoundedCache
from batchproj.collection import manifest
from batchproj.collection.snapshot import Snapshot
from batchproj.errors import ItemFault
from batchproj.objectstore import GONE, Folder, read_range
from batchproj.schema import Reason
from batchproj.source.place import FAULT, OBJECT, Place, fault_at, film_row, is_sound_track, parse_place, promised_name
from batchproj.source.reading import read_items

INLINE_BYTES = 64 * 2**20
"""A larger value in a row of a table is not held to be looked at."""

_PLACES_BYTES = 8 * 2**20
_ROW_BYTES = 2_000


class Item:
    """The bytes of one item; every read raises ItemFault: CHANGED, FORBIDDEN, OUTSIDE_ROOTS, or TOO_LARGE."""

    def __init__(self, row: Mapping[str, Any], values: BoundedCache[bytes]) -> None:
        """`row` is the item's in the manifest."""
        film = film_row(row)
        self.name = promised_name(row["uri"], row["place"])
        self.is_sound_track = is_sound_track(row["place"])
        self.size: int = film["size"]
        self.version: str = film["source_version"]
        self._row, self._values = film, values
        self._place: Place | None = parse_place(film["place"]) if film["place"] else None

    def read(self, start: int, length: int) -> bytes:
        """Bytes from `start` on, fewer at the end."""
        place = self._place
        length = min(length, self.size - start)
        if place is not None and place.kind == FAULT:
            raise fault_at(place)
        if length <= 0:
            return b""
        if place is None:
            return self._range(self._row["uri"], start, length, self.version)
        if place.kind == OBJECT:  # a row must not lead out of its table's roots
            uri = str(place.at[1]) if len(place.at) > 1 else self._row["uri"]
            return self._range(uri, start, length, self.version, stay=True)
        if place.kind == "tar":
            begun, _, version, *_ = place.at
            container = self._row["uri"].rpartition("#")[0]
            return self._range(container, int(begun) + start, length, str(version))
        return self._value()[start : start + length]

    def whole(self, most_bytes: int) -> bytes:
        if self.size > most_bytes:
            raise ItemFault(Reason.TOO_LARGE, f"{self.size:,} bytes, the limit is {most_bytes:,}")
        return self.read(0, self.size)

    def _range(self, uri: str, start: int, length: int, version: str, stay: bool = False) -> bytes:
        try:
            data = read_range(uri, start, length, version, stay)
        except FileNotFoundError:
            raise ItemFault(Reason.MISSING, f"{uri} is {GONE}") from None
        except PermissionError as error:
            raise ItemFault(Reason.FORBIDDEN, f"may not be read: {error}") from None
        if len(data) != length:
            raise ItemFault(Reason.CHANGED, f"{uri} ends before it did when it was listed")
        return data

    def _value(self) -> bytes:
        """A value in a row of a table."""
        key = (self._row["item"], self.version)
        if (kept := self._values.get(key)) is None:
            kept_or_fault = read_items([self._row], INLINE_BYTES, 1)[0]
            if isinstance(kept_or_fault, ItemFault):
                raise kept_or_fault
            kept = kept_or_fault
            self._values.put(key, kept, len(kept))
        return kept


class Items:
    """The items of one run; threads may share it."""

    def __init__(self, folder: Folder, snapshot: Snapshot) -> None:
        self._folder, self._snapshot = folder, snapshot
        self._values: BoundedCache[bytes] = BoundedCache(2 * INLINE_BYTES)
        self._found: BoundedCache[Item] = BoundedCache(_PLACES_BYTES)
        self._opening = threading.Lock()

    def find(self, item: str, uri: str) -> Item:
        """An item by its row's `item` and `uri`; raises ItemFault MISSING if the run has none, which is not so of rows
        of the same run, and CollectionError if the manifest is damaged."""
        if (kept := self._found.get(item)) is not None:
            return kept
        with self._opening:  # one of the requests for a page downloads it
            db, rows = self._manifest
        # by the URI as well: files are sorted by it, so most of them need not be read
        query = f"SELECT * FROM ({rows}) WHERE uri = ? AND item = ?"
        found = db.cursor().sql(query, params=[uri, item]).to_arrow_table().to_pylist()
        if not found:
            raise ItemFault(Reason.MISSING, f"run {self._snapshot.run} has no item {item}")
        self._found.put(item, made := Item({"place": None, **found[0]}, self._values), _ROW_BYTES)
        return made

    @cached_property
    def _manifest(self) -> tuple[duckdb.DuckDBPyConnection, str]:
        scratch = Path(tempfile.mkdtemp(prefix="batchproj-items-"))
        weakref.finalize(self, shutil.rmtree, scratch, ignore_errors=True)
        return duckdb.connect(), manifest.rows(manifest.fetch(self._folder, self._snapshot, scratch))
