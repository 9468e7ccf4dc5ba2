"""What is there: pages of objects, as their store lists them."""

from __future__ import annotations

import errno
import os
import re
import stat as stat_mode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from batchproj.errors import SourceError
from batchproj.objectstore.uris import canonical, filesystem, retrying_at

LIST_PAGE = 1_000

BAD_NAME = "name is not UTF-8"
"""In the place of a version: the object is there, but its URI cannot be written down."""


@dataclass(frozen=True, slots=True)
class Listed:
    """One object as listed; `version` is its ETag, or size and mtime where there is none."""

    uri: str
    key: str
    size: int
    version: str

    @property
    def is_told_by_size_alone(self) -> bool:
        """Whether its store says nothing else of it: bytes written over it may have the same version."""
        return self.version.endswith("-")


def list_objects(url: str) -> Iterator[list[Listed]]:
    """Pages of objects under a folder, prefix, glob or single object; never the whole list.

    `key` is the path below the folder, or below the part before the first wildcard.
    Raises SourceError if nothing is there or it may not be read.
    """
    uri = canonical(url)
    try:
        yield from _list_checked(uri, wants_folder=url.endswith("/"))
    except FileNotFoundError as error:
        raise SourceError(f"source not found: {url}; expected an existing folder, prefix or glob") from error
    except PermissionError as error:
        raise SourceError(f"source may not be listed: {url} ({error}); check the credentials") from error
    except OSError as error:
        raise SourceError(f"source cannot be listed: {url} ({error})") from error


def _list_checked(uri: str, wants_folder: bool) -> Iterator[list[Listed]]:
    fs, path = filesystem(uri)
    scheme = uri.split("://", 1)[0]
    is_literal = isinstance(fs, LocalFileSystem) and Path(path).exists()  # a folder may be called `[1]`
    root, pattern = (path, "") if is_literal else _split_glob(path)
    matches = fsspec.utils.glob_translate(path) if pattern else None
    base = root if not pattern or root.endswith("/") or not root else root + "/"
    for page in listed_pages(fs, root, is_prefix=not pattern and not wants_folder):
        kept = page
        if matches is not None:
            kept = [row for row in page if re.match(matches, row[0])]
        rows = [row if _is_utf8(row[0]) else _unreadable(row) for row in kept]
        before = "" if scheme in ("http", "https") else f"{scheme}://"  # over HTTP fsspec's names are whole URLs
        yield [Listed(before + name, _below(name, base), size, version) for name, size, version in rows]


def _split_glob(path: str) -> tuple[str, str]:
    """Split at the folder before the first wildcard: ("data/a", "*.png"); no wildcard: (path, "")."""
    for position, char in enumerate(path):
        if char in "*?[":
            folder = path[:position].rpartition("/")[0]
            return folder, path[len(folder) :]
    return path, ""


def _below(name: str, root: str) -> str:
    """Path of `name` below `root`; the last part where `root` is the object itself or a prefix."""
    folder = root.rstrip("/") + "/"
    if name.startswith(folder):
        return name[len(folder) :]
    return name[len(root.rpartition("/")[0]) :].lstrip("/")


_Row = tuple[str, int, str]


def listed_pages(fs: Any, root: str, is_prefix: bool) -> Iterator[list[_Row]]:
    """Paths, sizes and versions below a folder, or of one object; with `is_prefix` what begins like it, on S3."""
    if isinstance(fs, LocalFileSystem):
        return _list_local(root)
    if hasattr(fs, "call_s3"):
        return _list_s3(fs, root, is_prefix)
    return _list_any(fs, root)


def _list_local(root: str) -> Iterator[list[_Row]]:
    if not Path(root).exists():
        raise FileNotFoundError(root)
    if not Path(root).is_dir():
        info = Path(root).stat()
        yield [(root, info.st_size, f"{info.st_size}-{info.st_mtime_ns}")]
        return
    page: list[_Row] = []
    folders = [root]
    while folders:
        try:
            found = os.scandir(folders.pop())
        except FileNotFoundError:
            continue  # removed meanwhile
        with found as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                    continue
                try:
                    info = entry.stat()
                except OSError as error:
                    if error.errno not in (errno.ENOENT, errno.ELOOP):
                        raise
                    continue  # removed meanwhile, or a link to nothing, or to itself
                if stat_mode.S_ISREG(info.st_mode):  # no sockets, pipes, devices or links to folders
                    page.append((entry.path, info.st_size, f"{info.st_size}-{info.st_mtime_ns}"))
                if len(page) >= LIST_PAGE:
                    yield page
                    page = []
    yield page


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _unreadable(row: _Row) -> _Row:
    """A row whose name no table can hold, under a readable name and a version that is never read."""
    return os.fsencode(row[0]).decode("utf-8", "backslashreplace"), row[1], BAD_NAME


def _list_s3(fs: Any, path: str, is_prefix: bool) -> Iterator[list[_Row]]:
    """Pages of a folder, or else of the objects whose name begins like this, as object stores do.

    s3fs's own `find` would hold the whole listing.
    """
    bucket, _, key = path.partition("/")
    pages = _s3_pages(fs, bucket, f"{key}/" if key else "")
    first = next(pages)
    if not first and is_prefix and key:
        yield from _s3_pages(fs, bucket, key)
        return
    yield first
    yield from pages


def _s3_pages(fs: Any, bucket: str, prefix: str) -> Iterator[list[_Row]]:
    for answer in _s3_answers(fs, bucket, prefix):
        yield [
            (f"{bucket}/{info['Key']}", int(info["Size"]), str(info["ETag"]).strip('"'))
            for info in answer.get("Contents", [])
            if not info["Key"].endswith("/")  # the consoles' empty "folder" objects
        ]


def s3_names(fs: Any, folder: str) -> list[str]:
    """Paths directly in a folder, those of its sub-folders too, as `ls` gives them."""
    bucket, _, key = folder.partition("/")
    found = []
    for answer in _s3_answers(fs, bucket, f"{key}/" if key else "", Delimiter="/"):
        found += [info["Key"] for info in answer.get("Contents", []) if not info["Key"].endswith("/")]
        found += [info["Prefix"] for info in answer.get("CommonPrefixes", [])]
    return found


def _s3_answers(fs: Any, bucket: str, prefix: str, **options: str) -> Iterator[dict[str, Any]]:
    """One request a page, so that a retry repeats the page and not the listing."""
    where = {"Bucket": bucket, "Prefix": prefix, "MaxKeys": LIST_PAGE, **options}
    while True:
        answer = retrying_at(fs, lambda: fs.call_s3("list_objects_v2", **where), f"s3://{bucket}/{prefix}")
        yield answer
        if not answer.get("IsTruncated"):
            return
        where["ContinuationToken"] = answer["NextContinuationToken"]


def _list_any(fs: Any, root: str) -> Iterator[list[_Row]]:
    if fs.isfile(root):
        yield [row_of(root, fs.info(root))]
        return
    found = False
    for _, folders, files in fs.walk(root, detail=True):
        found = found or bool(folders or files)
        yield [row_of(info["name"], info) for info in files.values()]
    if not found:
        raise FileNotFoundError(root)


_CHANGED = ("mtime", "last_modified", "created", "Last-Modified")


def row_of(name: str, info: dict[str, Any]) -> _Row:
    """Of what fsspec tells of an object, for stores that have no code of their own here."""
    version = info.get("ETag") or info.get("etag") or info.get("sha256")
    changed = next((info[name] for name in _CHANGED if info.get(name)), "")
    return name, int(info["size"] or 0), str(version) if version else f"{info['size']}-{changed}"
