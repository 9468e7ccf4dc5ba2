"""Bytes of items for a browser: by ranges, under a media type that nothing can be run as."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import NamedTuple
from urllib.parse import quote

import anyio.to_thread
import filetype
from fastapi import HTTPException
from starlette.responses import Response, StreamingResponse

from batchproj.errors import ItemFault
from batchproj.items import Item
from batchproj.objectstore import GONE
from batchproj.schema import Modality, Reason
from batchproj.serve.guards import FILE_POLICY

CHUNK_BYTES = 1 << 20
HEAD_BYTES = 8_192
KEPT = "private, max-age=60"
"""How long a browser may show again what it has seen; it asks by the content's own digest afterwards."""

_SHOWN = {
    *("image/png", "image/apng", "image/jpeg", "image/gif", "image/webp", "image/bmp"),
    *("audio/mpeg", "audio/aac", "audio/mp4", "audio/ogg", "audio/x-flac", "audio/x-wav", "audio/x-aiff"),
    *("video/mp4", "video/webm", "video/x-matroska", "video/quicktime", "video/mpeg", "video/x-m4v", "video/3gpp"),
}
"""What is shown under its own name. SVG, HTML and whatever else could run is handed over as a file."""

_NAMED = {"audio/x-flac": "audio/flac", "audio/x-wav": "audio/wav", "audio/x-aiff": "audio/aiff"}
_ANY = "application/octet-stream"
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_STATUS = {
    Reason.MISSING: 404,
    Reason.CHANGED: 409,
    Reason.FORBIDDEN: 409,
    Reason.OUTSIDE_ROOTS: 409,
    Reason.TOO_LARGE: 413,
}


def refused(fault: ItemFault) -> HTTPException:
    """404 for an object that is gone, 409 for one that is another by now; what is no picture has none: 404."""
    gone = fault.detail.endswith(GONE)
    return HTTPException(404 if gone else _STATUS.get(fault.reason, 404), f"{fault.detail[:300]}")


def media_type(head: bytes, modality: Modality) -> str:
    """By the first bytes, and for a text by what it was embedded as."""
    if modality is Modality.TEXT:
        return "text/plain; charset=utf-8"
    found = filetype.guess_mime(head)
    if found == "audio/ogg" and modality is Modality.VIDEO:
        return "video/ogg"
    return _NAMED.get(found, found) if found in _SHOWN else _ANY


def wanted_range(header: str | None, size: int) -> tuple[int, int] | None:
    """First byte and length of a `Range`, None for all; several at once, and other units, are passed over as RFC 9110
    allows. Raises HTTPException 416 for one that lies outside."""
    found = _RANGE.fullmatch((header or "").strip())
    if found is None or found.groups() == ("", ""):
        return None
    first, last = found.groups()
    begin = int(first) if first else max(0, size - int(last))
    end = min(size - 1, int(last)) if first and last else size - 1
    if begin >= size or (first and last and int(last) < begin) or (not first and int(last) == 0):
        raise HTTPException(416, f"the item has {size} bytes", headers={"Content-Range": f"bytes */{size}"})
    return begin, end - begin + 1


class Wanted(NamedTuple):
    """Headers of a request for bytes: `Range`, `If-Range` and `If-None-Match`; and whether headers alone are wanted."""

    range: str | None
    if_range: str | None
    known: str | None
    is_head: bool = False


def media(item: Item, row: dict[str, object], wanted: Wanted) -> Response:
    """The answer with an item's bytes, or a range of them; its first bytes are read before it begins."""
    tag = f'"{row["content_id"]}"'
    modality = Modality(str(row["modality"]))
    headers = {"ETag": tag, "Accept-Ranges": "bytes", "Cache-Control": KEPT}
    headers["Content-Security-Policy"] = FILE_POLICY
    if wanted.known is not None and tag in wanted.known:
        return Response(status_code=304, headers=headers)
    # who has a part of other bytes gets all of these
    has_range = wanted.if_range in (None, tag) and not wanted.is_head  # which is for GET alone
    part = wanted_range(wanted.range, item.size) if has_range else None
    begin, length = part or (0, item.size)
    first = item.read(begin, min(length, CHUNK_BYTES))
    has_head = begin == 0 and len(first) >= min(HEAD_BYTES, item.size)
    head = first if has_head else item.read(0, HEAD_BYTES)
    kind = media_type(head[:HEAD_BYTES], modality)
    name = quote(item.name.rpartition("/")[2][-100:], safe="")
    headers["Content-Disposition"] = f"{'attachment' if kind == _ANY else 'inline'}; filename*=UTF-8''{name}"
    headers["Content-Length"] = str(length)
    if part is not None:
        headers["Content-Range"] = f"bytes {begin}-{begin + length - 1}/{item.size}"
    status = 206 if part else 200
    if wanted.is_head:
        return Response(status_code=status, headers=headers, media_type=kind)
    return StreamingResponse(_chunks(item, begin, length, first), status, headers=headers, media_type=kind)


async def _chunks(item: Item, begin: int, length: int, first: bytes) -> AsyncIterator[bytes]:
    """Read as it is sent: who takes it slowly holds one piece, and no thread. Ends where the item does."""
    yield first
    done = len(first)
    while done < length:
        piece = await anyio.to_thread.run_sync(item.read, begin + done, min(CHUNK_BYTES, length - done))
        if not piece:
            return
        done += len(piece)
        yield piece
