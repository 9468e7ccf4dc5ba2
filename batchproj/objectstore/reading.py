"""One object: what it is, and its bytes, whole or a part, of the version that was listed."""

from __future__ import annotations

import errno
import os
import stat as stat_mode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from fsspec.asyn import sync
from fsspec.implementations.local import LocalFileSystem

from batchproj.errors import ItemFault, SourceError
from batchproj.objectstore.listing import BAD_NAME, Listed, row_of
from batchproj.objectstore.uris import filesystem, retrying_at
from batchproj.retry import error_code, is_cut
from batchproj.schema import Reason

CUT_TRIES = 6
"""How often an answer may end before the object does until that is the object's fault, and not the network's."""

WITHOUT_RANGES_BYTES = 8 * 2**20
"""A larger object is not sent whole for each part of it."""

GONE = "gone since it was listed"
"""How the detail of a fault ends whose object was there when it was listed, and not when it was read."""

NO_FILE = "no file any more since it was listed"


def head(uri: str, stay: bool = False) -> Listed:
    """One object as it would be listed, its name taken literally; its `key` is the last part of the name.

    Raises FileNotFoundError or PermissionError, to `stay` where the URI says ItemFault OUTSIDE_ROOTS for a redirect.
    """
    fs, path = filesystem(uri)
    with _staying(uri, stay) as options:
        size, version = retrying_at(fs, lambda: _head(fs, path, **options), uri)
    return Listed(uri, path.rpartition("/")[2], size, version)


@contextmanager
def _staying(uri: str, stay: bool) -> Iterator[dict[str, int]]:
    """Options for fsspec's calls inside, so that over HTTP the server leads to no other URL."""
    if not (stay and uri.startswith(("http://", "https://"))):
        yield {}
        return
    try:
        yield {"max_redirects": 1}  # aiohttp refuses the first; without any it would give us its body as the object's
    except Exception as error:
        if any(type(each).__name__ == "TooManyRedirects" for each in (error, error.__cause__)):
            raise ItemFault(
                Reason.OUTSIDE_ROOTS, f"{uri} is not opened: its server redirects to another URL"
            ) from error
        raise


def _head(fs: Any, path: str, **options: int) -> tuple[int, str]:
    if isinstance(fs, LocalFileSystem):
        info = Path(path).stat()
        if not stat_mode.S_ISREG(info.st_mode):
            raise FileNotFoundError(f"{path} is no file")
        return info.st_size, f"{info.st_size}-{info.st_mtime_ns}"
    if hasattr(fs, "call_s3"):
        bucket, _, key = path.partition("/")
        answer = fs.call_s3("head_object", Bucket=bucket, Key=key)
        return int(answer["ContentLength"]), str(answer["ETag"]).strip('"')
    return row_of(path, fs.info(path, **options))[1:]


def read_range(uri: str, start: int, length: int, version: str | None = None, stay: bool = False) -> bytes:
    """Bytes of an object from `start` on, fewer at its end; ItemFault CHANGED if it has not the version given.

    `stay` as in `read_pinned`. Raises FileNotFoundError or PermissionError.
    """
    fs, path = filesystem(uri)
    with _staying(uri, stay) as options:
        return retrying_at(fs, lambda: _read_range(fs, path, start, length, version, stay, **options), uri)


def _read_range(
    fs: Any, path: str, start: int, length: int, version: str | None, stay: bool = False, **options: int
) -> bytes:
    if isinstance(fs, LocalFileSystem):
        with _open(path, stay) as file:
            data = os.pread(file.fileno(), length, start)
            info = os.fstat(file.fileno())
        if version not in (None, f"{info.st_size}-{info.st_mtime_ns}"):
            raise ItemFault(Reason.CHANGED, "written to since it was listed")
        return data
    if hasattr(fs, "call_s3"):
        return _read_s3(fs, path, version, Range=f"bytes={start}-{start + length - 1}")
    data = bytes(fs.cat_file(path, start=start, end=start + length, **options))
    if len(data) <= length:
        return data
    if len(data) > WITHOUT_RANGES_BYTES:
        raise SourceError(f"{path} is read in parts, but its server serves no ranges; copy it to where they are served")
    return data[start : start + length]  # all was sent


def read_pinned(uri: str, size: int, version: str, stay: bool = False) -> bytes:
    """The bytes that were listed, or ItemFault CHANGED if the object is no longer that one.

    `stay` as in `head`; and a local path is then followed over no link: whoever lists has resolved them.
    """
    if version == BAD_NAME:
        raise ItemFault(Reason.BAD_NAME, "the file's name is not UTF-8; rename it")
    fs, path = filesystem(uri)
    data: bytes | None = None
    if isinstance(fs, LocalFileSystem):
        with suppress(OSError):  # a disk rarely fails, and to be ready for it takes as long as to read a small file
            data = _read_version(fs, path, version, stay)
    if data is None or len(data) < size:
        cuts = 0 if data is None else 1
        try:
            with _staying(uri, stay) as options:
                read = _not_cut(lambda: _read_version(fs, path, version, stay, **options), size, cuts)
                data = retrying_at(fs, read, uri)
        except (FileNotFoundError, NotADirectoryError):
            raise ItemFault(Reason.CHANGED, GONE) from None
        except IsADirectoryError:
            raise ItemFault(Reason.CHANGED, NO_FILE) from None
        except PermissionError as error:
            raise ItemFault(Reason.FORBIDDEN, f"may not be read: {error}") from None
    if len(data) != size:
        raise ItemFault(Reason.CHANGED, f"{len(data)} bytes read, {size} listed")
    return data


def _not_cut(read: Callable[[], bytes], size: int, cuts: int) -> Callable[[], bytes]:
    """The same for `retrying`, which gives up an answer that was cut short often, where it would wait for the store.

    Answers that are short and do not say so are asked for again at once; `cuts` of them were before.
    """

    def once() -> bytes:
        nonlocal cuts
        while True:
            try:
                data = read()
            except Exception as error:
                if not is_cut(error):
                    raise
                cuts += 1
                if cuts < CUT_TRIES:
                    raise
                raise ItemFault(
                    Reason.CHANGED, f"{size} bytes listed, the answer was cut short {cuts} times"
                ) from error
            cuts += len(data) < size
            if len(data) >= size or cuts >= CUT_TRIES:
                return data

    return once


def _read_version(fs: Any, path: str, version: str, stay: bool, **options: int) -> bytes:
    if isinstance(fs, LocalFileSystem):
        with _open(path, stay) as file:
            data = file.read()
            info = os.fstat(file.fileno())
        if f"{info.st_size}-{info.st_mtime_ns}" != version:
            raise ItemFault(Reason.CHANGED, "written to since it was listed")
        return data
    if hasattr(fs, "call_s3"):
        return _read_s3(fs, path, version)
    return bytes(fs.cat_file(path, **options))


_FOLDER = os.O_DIRECTORY | os.O_NOFOLLOW | getattr(os, "O_PATH", os.O_RDONLY)  # O_PATH: no right to list is needed


def _open(path: str, stay: bool) -> BinaryIO:
    """Open a local file; raises ItemFault CHANGED for what is none by now.

    A pipe would be waited for, and a device has no end.
    """
    # without a buffer and a Path: they take longer than to read a small file (measured)
    file = _open_unlinked(path) if stay else open(path, "rb", buffering=0, opener=_at_once)  # noqa: SIM115
    if not stat_mode.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ItemFault(Reason.CHANGED, NO_FILE)
    return file


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _open_unlinked(path: str) -> BinaryIO:
    """Open a file by an absolute path; raises ItemFault CHANGED if any part of it is a link by now.

    Part by part, for whoever may write there can put a link in the place of a folder at any moment.
    """
    *parts, name = path.strip("/").split("/")
    folder = os.open("/", _FOLDER)
    try:
        for part in parts:
            inside = os.open(part, _FOLDER, dir_fd=folder)
            os.close(folder)
            folder = inside
        # not to wait for the writer of what is a pipe by now
        return os.fdopen(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder), "rb")
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise ItemFault(Reason.CHANGED, "a link is in its path since it was listed") from None
        raise
    finally:
        os.close(folder)


def _read_s3(fs: Any, path: str, etag: str | None, **options: str) -> bytes:
    bucket, _, key = path.partition("/")
    if etag is not None:
        options["IfMatch"] = f'"{etag}"'

    async def get() -> bytes:
        answer = await fs._call_s3("get_object", Bucket=bucket, Key=key, **options)
        async with answer["Body"] as body:
            return bytes(await body.read())

    try:
        return bytes(sync(fs.loop, get))
    except OSError as error:
        if error_code(error) in ("PreconditionFailed", "412"):
            raise ItemFault(Reason.CHANGED, "overwritten since it was listed") from None
        if error_code(error) in ("InvalidRange", "416"):
            raise ItemFault(Reason.CHANGED, "shorter than it was listed") from None
        raise
