"""The one package that knows fsspec: list, pinned read, write, put-if-absent, remove.

    uris.py     URIs, and the file systems behind them
    listing.py  what is there
    reading.py  one object's bytes, of the version that was listed
    folder.py   a folder of ours, to write to

Every call is retried as `batchproj.retry` says; a missing or forbidden object raises
FileNotFoundError or PermissionError at once.
"""

from batchproj.objectstore.folder import Folder
from batchproj.objectstore.listing import BAD_NAME, Listed, list_objects
from batchproj.objectstore.reading import GONE, head, read_pinned, read_range
from batchproj.objectstore.uris import canonical, filesystem, s3_needs_http, seen_from

__all__ = [
    "BAD_NAME",
    "GONE",
    "Folder",
    "Listed",
    "canonical",
    "filesystem",
    "head",
    "list_objects",
    "read_pinned",
    "read_range",
    "s3_needs_http",
    "seen_from",
]
