"""Which objects a table may name: those below its own folder and below the roots that the recipe declares."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import unquote

from batchproj.credentials import has_credentials, masked
from batchproj.errors import ItemFault
from batchproj.objectstore import canonical
from batchproj.schema import Reason

URI_CHARS = 8_192
"""No store has longer names: S3's end at 1,024 bytes, paths at 4,096. A longer `uri` of a row is not looked into."""

_HERE = re.compile(r"\A(\./+)+")
_CONTROL = re.compile(r"[\0-\x1f\x7f]")


class Target(NamedTuple):
    """What a row names: `real` is where links on the way of a local `uri` lead, None without any.

    What may be opened is `real` if there is one, over no further link: that is what was checked.
    """

    uri: str
    real: str | None


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
        # the operator's own folders, so asked for once; what a row names is followed anew each time
        self._real_roots = tuple(_real_folder(root) for root in self._roots if _is_local(root))
        self._real_exclude = _real_folder(self._exclude) if _is_local(self._exclude) else None

    def resolve(self, value: str) -> Target:
        """The canonical URI of what a row names, relative to the table's folder if it has no scheme.

        Raises ItemFault OUTSIDE_ROOTS for whatever is not plainly below a root, whether it is there or not or links
        lead out, and BAD_ROW for a URL that is too long or has a password, a token or a signature in it.
        """
        if len(value) > URI_CHARS:
            raise ItemFault(Reason.BAD_ROW, f"the uri has {len(value):,} characters, expected at most {URI_CHARS:,}")
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
        return Target(uri, self._followed(uri) if _is_local(uri) else None)

    def _followed(self, uri: str) -> str | None:
        real = f"file://{_real(uri)}"
        if not real.startswith(self._real_roots) or (self._real_exclude and real.startswith(self._real_exclude)):
            raise _refused(uri, "a link leads out of the roots")
        return None if real == uri else real

    def _absolute(self, value: str) -> str:
        if not value or _CONTROL.search(value):
            raise _refused(value, "it is empty or has control characters in it")
        if "://" in value and "::" in value.split("://", 1)[0]:
            raise _refused(value, "chained URLs are not opened")
        if "://" not in value:
            below = _HERE.sub("", value)
            return f"file://{value}" if value.startswith("/") else f"{self.folder}/{below}"
        scheme, rest = value.split("://", 1)
        return f"{'file' if scheme == 'local' else scheme.lower()}://{rest}"


def _is_local(uri: str) -> bool:
    return uri.startswith("file://")


def _real(uri: str) -> str:
    return os.path.realpath(uri.removeprefix("file://"))


def _real_folder(uri: str) -> str:
    """How the URIs of what is in a local folder begin, without links."""
    return f"file://{_real(uri).rstrip('/')}/"


def _refused(value: str, why: str) -> ItemFault:
    shown = masked(value)
    shown = shown if len(shown) <= 200 else f"{shown[:200]}…"
    return ItemFault(Reason.OUTSIDE_ROOTS, f"{shown!r} is not opened: {why}")
