"""Items that are rows of a table: what its columns mean, whatever kind of file it is.

    uri     the item is the object of that name, below the roots of the table
    bytes   the item is this value; in JSON and CSV it is base64
    text    the item is this text
    id      names the row, so that it may move; without one a row is known by its number
    pair    which items belong together
    others  go as JSON into `metadata`; so do `text` beside another payload, but bytes never

A row is one item: of `uri`, `bytes` and `text` the first that has a value. A column of structs of
`bytes` and `path`, as Hugging Face `datasets` stores images and sound, counts as `bytes` or `uri`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple
from urllib.parse import quote

from batchproj.errors import ItemFault, SourceError
from batchproj.objectstore import Listed
from batchproj.schema import Reason
from batchproj.source.metadata import to_json
from batchproj.source.place import Place, fault_place
from batchproj.source.record import Record

PAYLOADS = ("uri", "bytes", "text")
RESERVED = (*PAYLOADS, "id", "pair")

PAGE_ROWS = 1_000
PAGE_BYTES = 8 * 2**20
"""A page of rows is full when its metadata are."""

_NAMES = {"text": "row.txt", "bytes": "row"}
"""In the place of a file name: what a payload promises, if nothing else names it."""

_NAMES_CHARS = 300
"""So many are shown of the names of columns, which may be anything."""

_DETAIL_CHARS = 300
"""So many are kept of what is wrong with a row."""

_NAME_CHARS = 100
"""So many are kept of a name, from its end: the extension alone promises something."""


class Row(NamedTuple):
    """One row of a table, as far as the table alone tells.

    `address` is its own URI. If it `names` an object, size, version and place are for whoever looks that up; then
    `is_paired` says whether the table has a column for pairs.
    """

    address: str
    key: str
    pair: str | None
    size: int
    source_version: str
    metadata: str | None
    place: str
    names: str | None = None
    is_paired: bool = True


def pages(listed: Listed, kind: str, records: Iterable[Record]) -> Iterator[list[Row]]:
    """The rows of a table in its order, some at a time; `kind` is the file in `source/` that gave its records.

    Raises SourceError if it has no column to embed.
    """
    columns = _Columns(listed.uri)
    page: list[Row] = []
    held = 0
    for record in records:
        columns.see(record.values)
        page.append(row := _row(listed, kind, record))
        held += len(row.metadata or "")
        if len(page) >= PAGE_ROWS or held >= PAGE_BYTES:
            yield page
            page, held = [], 0
    columns.end()
    if page:
        yield page


class _Columns:
    """Looks for a column to embed; the columns of a row of JSON, and which structs hold media, only values tell."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._unfit = 0
        self._seen: dict[str, None] = {}
        self._found = False

    def see(self, values: dict[str, Any] | ItemFault) -> None:
        if self._found or isinstance(values, ItemFault):
            return
        self._found = any(name in values for name in PAYLOADS) or any(map(_is_media, values.values()))
        self._seen |= dict.fromkeys(values)
        self._unfit += 1
        if self._unfit == PAGE_ROWS:
            self.end()

    def end(self) -> None:
        """Raises SourceError if rows were seen and none with a column to embed."""
        if self._unfit and not self._found:
            columns = " ".join(", ".join(self._seen).split())[:_NAMES_CHARS] or "none"
            raise SourceError(f"{self._uri} has no column uri, text or bytes to embed; its columns are {columns}")


def _promised(value: Any) -> str | None:
    """The file name that a struct of media gives its bytes, if any."""
    path = value["path"] if _is_media(value) else None
    return re.split(r"[/\\]", path)[-1][-_NAME_CHARS:] if isinstance(path, str) else None


def _is_media(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"bytes", "path"}


def _row(listed: Listed, kind: str, record: Record) -> Row:
    """A record as a row of the listing; what is wrong with it becomes its place."""
    address = f"{listed.uri}#row={record.number}"
    key = f"{listed.key}#{record.number:012d}"
    if isinstance(record.values, ItemFault):
        return faulty(address, key, record.values)
    try:
        if "id" in record.values:
            address = f"{listed.uri}#id={_id(record.values['id'])}"
        return _sound(kind, record, record.values, address, key)
    except ItemFault as fault:
        return faulty(address, key, fault)
    except UnicodeEncodeError:
        half = ItemFault(Reason.INVALID_UTF8, "a value has half of a surrogate pair in it, which is no character")
        return faulty(address, key, half)


def faulty(address: str, key: str, fault: ItemFault) -> Row:
    """The row of something that cannot be embedded."""
    version = _digest(str(fault))
    if len(fault.detail) > _DETAIL_CHARS:  # a name in it is of any length; what is wrong stands before or behind it
        half = _DETAIL_CHARS // 2
        fault = ItemFault(fault.reason, f"{fault.detail[: half - 1]}…{fault.detail[-half:]}")
    return Row(address, key, None, 0, version, None, str(fault_place(fault)))


def _sound(kind: str, record: Record, values: dict[str, Any], address: str, key: str) -> Row:
    column, form, value = _payload(values)
    metadata = to_json({name: each for name, each in values.items() if name not in ("id", "pair", "bytes", column)})
    pair = values.get("pair")
    pair = None if pair is None else _plain_text("pair", pair)
    if form == "uri":
        return Row(address, key, pair, 0, "", metadata, "", value, "pair" in values)
    data = payload(value, form)
    position = list(values).index(column)
    place = Place(kind, (*record.at, position, form), _promised(value) or _NAMES[form])
    return Row(address, key, pair, len(data), hashlib.sha256(data).hexdigest(), metadata, str(place))


def _payload(values: dict[str, Any]) -> tuple[str, str, Any]:
    """Column, form (one of PAYLOADS) and value of what a row embeds."""
    media = [name for name, value in values.items() if name not in RESERVED and _is_media(value)]
    for column in ("uri", "bytes", *media, "text"):
        value: Any = values.get(column)
        if column in ("bytes", *media) and _is_media(value):
            if value["bytes"] is not None:
                return column, "bytes", value
            value, form = value["path"], "uri"
        else:
            form = column
        if value is not None:
            return column, form, value if form == "bytes" else _plain_text(column, value)
    raise ItemFault(Reason.BAD_ROW, "no value in any of the columns uri, text and bytes")


def payload(value: Any, form: str) -> bytes:
    """The bytes of an item that a row holds itself; raises ItemFault BAD_ROW if they are none."""
    if form == "text":
        return str(value).encode()
    if _is_media(value):
        value = value["bytes"]
    if isinstance(value, bytes):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise ItemFault(Reason.BAD_ROW, f"the column bytes has neither bytes nor base64: {error}") from error


def _plain_text(column: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ItemFault(Reason.BAD_ROW, f"the column {column} has a {type(value).__name__}, expected text")
    text = str(value)
    text.encode()
    return text


def _id(value: Any) -> str:
    """An id as it stands in a URI: what would be taken for a part of a path, or not be seen, is percent-encoded."""
    if value is None:
        raise ItemFault(Reason.BAD_ROW, "the column id has no value in this row")
    return re.sub(r"[%#/\0-\x20\x7f]", lambda found: quote(found[0], safe=""), _plain_text("id", value))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:32]
