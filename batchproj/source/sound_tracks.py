"""The sound of films as items of their own, listed beside the films.

A film is whatever its name promises to be one, as an object, a row's object or bytes, or a member. Its sound
has the film's pair, metadata, size and version, and its URI with `#audio` behind it. It has no bytes of its
own: to embed it the whole film is read once more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from batchproj.schema import listing_schema
from batchproj.source.objects import item_id
from batchproj.source.place import FAULT, SOUND, SOUND_TRACK, Place, parse_place, promised_name, row_address

IsFilm = Callable[[str], bool]
"""Whether a file name promises a film."""

PROMISE = "sound.mka"
"""In the place of a file name: a sound track is sound, whatever its film is called."""

KEY = ".audio"
"""Behind the key of the film: what is before the last `#` of it stays the table's or shard's."""


def with_sound_tracks(page: pa.RecordBatch, is_film: IsFilm) -> pa.RecordBatch:
    """The page, and behind its rows one for the sound of each film among them."""
    rows = [_sound_track(row) for row in page.to_pylist() if _may_be_film(row, is_film)]
    if not rows:
        return page
    return pa.concat_batches([page, pa.RecordBatch.from_pylist(rows, schema=listing_schema())])


def _may_be_film(row: dict[str, Any], is_film: IsFilm) -> bool:
    where = row["place"]
    if where is None:
        return is_film(row["key"])
    return parse_place(where).kind != FAULT and is_film(promised_name(row["uri"], where))


def _sound_track(row: dict[str, Any]) -> dict[str, Any]:
    place = Place(SOUND_TRACK, (row["item"], row["place"] or ""), PROMISE)
    return row | {
        "item": item_id(f"{row_address(row['uri'], row['place'])}{SOUND}"),
        "uri": f"{row['uri']}{SOUND}",
        "key": f"{row['key']}{KEY}",
        "place": str(place),
    }
