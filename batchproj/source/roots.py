"""Which objects a table may name: those below its own folder and below the roots that the recipe declares."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from urllib.parse import unquote

from batchproj.credentials import has_credentials, masked
from batchproj.errors import ItemFault
from batchproj.objectstore import canonical
from batchproj.schema import Reason

_CONTROL = re.compile(r"[\0-\x1f\x7f]")


class Roots:
    """The folders that the URIs of one table may lie below.

    `exclude` is the folder of the collection, which embeds nothing of itself.
    """

    def __init__(self, folder: str, declared: Sequence[str], exclude: str) -> None:
        self.folder = folder
        # the whole disk, `file:///`, has no name that a slash could end
        roots = (folder, *map(canonical, declared))
        self._roots = [root if root == "file:///" else f"{root.rstrip('/')}/" for root in roots]
        self._exclude = exclude.rstrip("/") + "/"

    def resolve(self, value: str) -> str:
        """The canonical URI of what a row names, relative to the table's folder if it has no scheme.

        Raises ItemFault OUTSIDE_ROOTS for whatever is not plainly below a root, whether it is there or not, and
        BAD_ROW for a URL with a password, a token or a signature in it.
        """
        uri = self._absolute(value)
        if has_credentials(uri):
            why = "has credentials in it, which would be kept in every table: take them out"
            raise ItemFault(Reason.BAD_ROW, f"{masked(uri)!r} {why}")
        segments = uri.split("://", 1)[1].split("/")
        if uri.startswith(("http://", "https://")):
            segments = [part for segment in segments for part in re.split(r"[/\\]", unquote(segment))]
        if ".." in segments or "." in segments:
            raise _refused(value, "a path with '.' or '..' in it")
        if not any(uri.startswith(root) and len(uri) > len(root) for root in self._roots):
            below = ", ".join(self._roots)
            raise _refused(value, f"it is not below {below}; declare `roots` in the recipe if it may be")
        if uri.startswith(self._exclude):
            raise _refused(value, "it is a part of the collection itself")
        self.followed(uri)
        return uri

    def followed(self, uri: str) -> str | None:
        """The URI of the file itself, where links on the way of a local one lead; None without any.

        Raises ItemFault OUTSIDE_ROOTS where they lead out: what it gives may be opened, over no further link.
        """
        if not _is_local(uri):
            return None
        real = f"file://{_real(uri)}"
        if not self._holds(real):
            raise _refused(uri, "a link leads out of the roots")
        return None if real == uri else real

    def _absolute(self, value: str) -> str:
        if not value or _CONTROL.search(value):
            raise _refused(value, "it is empty or has control characters in it")
        if "://" in value and "::" in value.split("://", 1)[0]:
            raise _refused(value, "chained URLs are not opened")
        if "://" not in value:
            return f"file://{value}" if value.startswith("/") else f"{self.folder}/{value}"
        scheme, rest = value.split("://", 1)
        return f"{'file' if scheme == 'local' else scheme.lower()}://{rest}"

    def _holds(self, real: str) -> bool:
        """Whether the URI of a local file, without links, is below a root and not in the collection."""
        places = [f"file://{_real(root).rstrip('/')}/" for root in self._roots if _is_local(root)]
        inside = f"file://{_real(self._exclude)}/" if _is_local(self._exclude) else None
        return real.startswith(tuple(places)) and not (inside and real.startswith(inside))


def _is_local(uri: str) -> bool:
    return uri.startswith("file://")


def _real(uri: str) -> str:
    return os.path.realpath(uri.removeprefix("file://"))


def _refused(value: str, why: str) -> ItemFault:
    shown = masked(value)
    shown = shown if len(shown) <= 200 else f"{shown[:200]}…"
    return ItemFault(Reason.OUTSIDE_ROOTS, f"{shown!r} is not opened: {why}")
