"""Hits in a notebook: thumbnails, players and texts, all inside the page, and everything escaped."""

from __future__ import annotations

import base64
import html

import filetype

from batchproj.collection.snapshot import Snapshot
from batchproj.errors import BatchprojError
from batchproj.hits import Hit, Hits
from batchproj.items import Items
from batchproj.objectstore import Folder
from batchproj.schema import Modality
from batchproj.thumbnails import MOST_BYTES, Thumbnails

SHOWN = 50
"""Of the hits: their files become a part of the notebook."""

PLAYER_BYTES = 5 * 2**20
"""A larger sound or film is shown without a player."""

_TEXT_CHARS = 300
_STYLES = {
    "box": "display:flex;flex-wrap:wrap;gap:8px",
    "hit": "margin:0;width:180px;border:1px solid #8886;border-radius:6px;padding:6px;font:13px/1.35 sans-serif",
    "media": "display:block;width:100%;max-height:180px;object-fit:contain",
    "name": "overflow-wrap:anywhere",
}


def html_of(hits: Hits, folder: Folder, snapshot: Snapshot) -> str:
    """The first hits as a part of a page; of a file that cannot be read only what the table knows is shown."""
    items, thumbnails = Items(folder, snapshot), Thumbnails()
    drawn = "".join(_figure(hit, items, thumbnails) for hit in hits[:SHOWN])
    more = f"<p>and {len(hits) - SHOWN:,} more</p>" if len(hits) > SHOWN else ""
    return f'<div style="{_STYLES["box"]}">{drawn}</div>{more}'


def _figure(hit: Hit, items: Items, thumbnails: Thumbnails) -> str:
    name = html.escape(hit.uri.rpartition("/")[2])
    try:
        media = _media(hit, items, thumbnails)
    except BatchprojError as error:
        media = f"<em>{html.escape(str(error)[:_TEXT_CHARS])}</em>"
    why = f" · {hit.why}" if hit.why != "vector" else ""
    return (
        f'<figure style="{_STYLES["hit"]}">{media}<figcaption style="{_STYLES["name"]}">{name}<br>'
        f"{html.escape(hit.modality)} · {hit.score:.3f}{why}</figcaption></figure>"
    )


def _media(hit: Hit, items: Items, thumbnails: Thumbnails) -> str:
    modality = Modality(hit.modality)
    if modality is Modality.TEXT:
        return f"<blockquote>{html.escape((hit.text or '')[:_TEXT_CHARS])}</blockquote>"
    data = items.find(hit.item, hit.uri).whole(MOST_BYTES)
    style = f'style="{_STYLES["media"]}"'
    if modality is not Modality.IMAGE and len(data) <= PLAYER_BYTES:
        tag = "audio" if modality is Modality.AUDIO else "video"
        kind = filetype.guess_mime(data[:8192]) or "application/octet-stream"
        at = f"#t={hit.start:g}" if hit.start else ""
        return f'<{tag} controls preload="none" {style} src="{_data_url(kind, data)}{at}"></{tag}>'
    picture, kind = thumbnails.draw(data, modality, hit.start, hit.end)
    return f'<img alt="" {style} src="{_data_url(kind, picture)}">'


def _data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
