"""Where the bytes of an item are that is no object of its own: a row of a table, a member of a shard."""

from __future__ import annotations

import json
from dataclasses import dataclass

from batchproj.errors import ItemFault
from batchproj.schema import Reason

OBJECT = "object"
"""Of a row that names an object: the item's bytes are that object's; `at` is the row's address."""

FAULT = "fault"
"""Of what cannot be read at all: `at` is the reason and what is wrong."""


@dataclass(frozen=True, slots=True)
class Place:
    """`kind` is the file in `source/` that reads it, or OBJECT or FAULT, and `at` what that needs to find it.

    `name` is a file name that promises what the item is; None where its URI does.
    """

    kind: str
    at: tuple[int | str, ...]
    name: str | None = None

    def __str__(self) -> str:
        return json.dumps([self.kind, self.at, self.name], separators=(",", ":"))


def parse_place(text: str) -> Place:
    """The reverse of `str`."""
    kind, at, name = json.loads(text)
    return Place(kind, tuple(at), name)


def fault_place(fault: ItemFault) -> Place:
    return Place(FAULT, (str(fault.reason), fault.detail))


def beginning(reason: Reason) -> str:
    """How the text of such a place begins."""
    return f'["{FAULT}",["{reason}",'


def fault_at(place: Place) -> ItemFault:
    reason, detail = place.at
    return ItemFault(Reason(str(reason)), str(detail))


def promised_name(uri: str, place: str | None) -> str:
    """The name whose extension promises what an item is."""
    name = None if place is None else parse_place(place).name
    return uri if name is None else name


def row_address(uri: str, place: str | None) -> str:
    """The URI that names an item and no other: that of its row, where rows name objects."""
    where = None if place is None else parse_place(place)
    return str(where.at[0]) if where is not None and where.kind == OBJECT else uri
