"""Where the bytes of an item are that is no object of its own: a row of a table, a member of a shard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from batchproj.errors import ItemFault
from batchproj.schema import Reason

OBJECT = "object"
"""Of a row that names an object: the item's bytes are that object's; `at` is the row's address, and where links on
the way to a local file lead."""

SOUND_TRACK = "sound_track"
"""Of the sound of a film: `at` is the film's item, and the film's own place, "" of an object (`sound_tracks`)."""

SOUND = "#audio"
"""What the URI of a sound track has behind that of its film."""

FAULT = "fault"
"""Of what cannot be read at all: `at` is the reason and what is wrong."""


@dataclass(frozen=True, slots=True)
class Place:
    """`kind` is the file in `source/` that reads it, or OBJECT, SOUND_TRACK or FAULT, and `at` what finds it.

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


def film_row(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Item, URI and place of the film in the row of its sound track, whose bytes are the film's; others as they are."""
    place = parse_place(row["place"]) if row.get("place") else None
    if place is None or place.kind != SOUND_TRACK:
        return row
    item, where = place.at
    return {**row, "item": item, "uri": row["uri"].removesuffix(SOUND), "place": where or None}


def is_sound_track(place: str | None) -> bool:
    return place is not None and parse_place(place).kind == SOUND_TRACK


def row_address(uri: str, place: str | None) -> str:
    """The URI that names an item and no other: that of its row, where rows name objects."""
    if is_sound_track(place):
        film = film_row({"uri": uri, "place": place})
        return f"{row_address(film['uri'], film['place'])}{SOUND}"
    where = None if place is None else parse_place(place)
    return str(where.at[0]) if where is not None and where.kind == OBJECT else uri
