"""The one module that knows fsspec: list, pinned read, write, put-if-absent, remove.

Every URL is a canonical URI here: `file:///abs/path`, `s3://bucket/key`, never percent-encoded.
Every call is retried as `batchproj.retry` says; a missing or forbidden object raises
FileNotFoundError or PermissionError at once.
"""

from __future__ import annotations

import errno
import os
import re
import stat as stat_mode
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import fsspec
from fsspec.asyn import sync
from fsspec.implementations.local import LocalFileSystem

from batchproj.credentials import has_credentials, masked, quiet_clients
from batchproj.errors import ItemFault, SourceError, TryLater, UsageError
from batchproj.retry import CALLS_AT_ONCE, error_code, is_cut, retrying
from batchproj.schema import Reason

LIST_PAGE = 1_000
REMOVE_PAGE = 1_000
CUT_TRIES = 6
"""How often an answer may end before the object does until that is the object's fault, and not the network's."""

WITHOUT_RANGES_BYTES = 8 * 2**20
"""A larger object is not sent whole for each part of it."""

BAD_NAME = "name is not UTF-8"
"""In the place of a version: the object is there, but its URI cannot be written down."""

GONE = "gone since it was listed"
"""How the detail of a fault ends whose object was there when it was listed, and not when it was read."""

T = TypeVar("T")

_ONE_TRY = {
    "connect_timeout": 5,
    "read_timeout": 10,
    "retries": {"total_max_attempts": 1},
    "max_pool_connections": CALLS_AT_ONCE,
}
"""For botocore: `retrying` alone decides, else it and s3fs block for minutes before it sees the first error."""

_WITHIN_OTHERS = frozenset(
    {"zip", "tar", "libarchive", "reference", "simplecache", "filecache", "blockcache", "cached", "dir", "generic"}
)
"""File systems of fsspec that are led to any other file or URL by what they open, or are given."""

_renewing = threading.Lock()


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


def canonical(url: str) -> str:
    """Absolute URI of a path or URL, without a trailing slash; raises UsageError for an empty one, or one with secrets.

    Such a URL would be kept with every run, and shown to whoever reads the collection.
    """
    if not url:
        raise UsageError("an empty path; expected a folder, or a URL such as s3://bucket/folder")
    if "\0" in url:
        raise UsageError(f"{url!r} has a NUL character in it, which no file or object has in its name; take it out")
    if has_credentials(url):
        raise UsageError(
            f"{masked(url)} has credentials in it, which would be kept beside every run: take them out, and give them "
            "by the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, FSSPEC_HTTP, a role)"
        )
    if "://" not in url:
        return "file://" + os.path.abspath(os.path.expanduser(url))  # noqa: PTH100, PTH111 - keeps `*`
    scheme, rest = url.split("://", 1)
    if scheme in ("file", "local"):
        return "file://" + os.path.abspath(rest)  # noqa: PTH100
    return f"{scheme}://{rest.rstrip('/')}"


def seen_from(root: str, uri: str) -> str:
    """The URI under which a listing of `root` would meet `uri`: another one where links lead there."""
    root_uri = canonical(root)
    if not (root_uri.startswith("file://") and uri.startswith("file://")):
        return uri
    real_root = os.path.realpath(root_uri.removeprefix("file://"))
    real = os.path.realpath(uri.removeprefix("file://"))
    return root_uri + real.removeprefix(real_root) if real.startswith(real_root + "/") else uri


def s3_needs_http() -> bool:
    """Whether the S3 endpoint is plain http, which Lance must be told to allow."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    return endpoint.startswith("http://")


def filesystem(uri: str) -> tuple[Any, str]:
    """The fsspec file system of a URI, and the path in it; raises SourceError for one that is none by itself."""
    scheme = uri.split("://", 1)[0]
    if scheme == "file":
        return _disk(), str(_disk()._strip_protocol(uri))
    if "::" in scheme or scheme in _WITHIN_OTHERS:
        raise SourceError(f"cannot open {uri}: a file system within another is not opened; expected file, s3, gs …")
    options: dict[str, Any] = {}
    if uri.startswith(("s3://", "s3a://")):
        quiet_clients()
        # boto reads AWS_DEFAULT_REGION only; Lance and the AWS SDKs of other languages AWS_REGION
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        # listings and objects change beside us: no cache of directories
        options = {
            "use_listings_cache": False,
            "client_kwargs": {"region_name": region} if region else {},
            "config_kwargs": _ONE_TRY,
        }
    try:
        # not url_to_fs: it takes `::` in a name for a chain of file systems
        fs = fsspec.filesystem(scheme, **options)
    except (ValueError, ImportError) as error:
        raise SourceError(f"cannot open {uri}: {error}") from error
    if hasattr(fs, "call_s3"):
        fs.retries = 1  # s3fs's own, around botocore's
    return fs, str(fs._strip_protocol(uri))


@cache
def _disk() -> LocalFileSystem:
    """For all threads: it keeps nothing, and fsspec takes longer to find one than to read a small file."""
    return LocalFileSystem()


def _renewal(fs: Any) -> Callable[[], None] | None:
    """What gets new credentials for the calls from here on; None where the store keeps none.

    A new session reads the environment, ~/.aws and the machine's role again. Threads that were
    refused together share one.
    """
    if not hasattr(fs, "call_s3"):
        return None
    refused = fs._s3

    def renew() -> None:
        with _renewing:
            if refused is None or fs._s3 is refused:
                fs.connect(refresh=True)

    return renew


def _retrying(fs: Any, call: Callable[[], T], uri: str) -> T:
    return retrying(call, uri, _renewal(fs))


# --- listing ---------------------------------------------------------------------------------


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
    pages = _pages(fs, root, is_prefix=not pattern and not wants_folder)
    matches = fsspec.utils.glob_translate(path) if pattern else None
    base = root if not pattern or root.endswith("/") or not root else root + "/"
    for page in pages:
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


def _pages(fs: Any, root: str, is_prefix: bool) -> Iterator[list[_Row]]:
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


def _s3_names(fs: Any, folder: str) -> list[str]:
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
        answer = _retrying(fs, lambda: fs.call_s3("list_objects_v2", **where), f"s3://{bucket}/{prefix}")
        yield answer
        if not answer.get("IsTruncated"):
            return
        where["ContinuationToken"] = answer["NextContinuationToken"]


def _list_any(fs: Any, root: str) -> Iterator[list[_Row]]:
    if fs.isfile(root):
        yield [_row(root, fs.info(root))]
        return
    found = False
    for _, folders, files in fs.walk(root, detail=True):
        found = found or bool(folders or files)
        yield [_row(info["name"], info) for info in files.values()]
    if not found:
        raise FileNotFoundError(root)


_CHANGED = ("mtime", "last_modified", "created", "Last-Modified")


def _row(name: str, info: dict[str, Any]) -> _Row:
    version = info.get("ETag") or info.get("etag") or info.get("sha256")
    changed = next((info[name] for name in _CHANGED if info.get(name)), "")
    return name, int(info["size"] or 0), str(version) if version else f"{info['size']}-{changed}"


# --- one object --------------------------------------------------------------------------------


def head(uri: str, stay: bool = False) -> Listed:
    """One object as it would be listed, its name taken literally; its `key` is the last part of the name.

    Raises FileNotFoundError or PermissionError, to `stay` where the URI says ItemFault OUTSIDE_ROOTS for a redirect.
    """
    fs, path = filesystem(uri)
    with _staying(uri, stay) as options:
        size, version = _retrying(fs, lambda: _head(fs, path, **options), uri)
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
    return _row(path, fs.info(path, **options))[1:]


def read_range(uri: str, start: int, length: int, version: str | None = None, stay: bool = False) -> bytes:
    """Bytes of an object from `start` on, fewer at its end; ItemFault CHANGED if it has not the version given.

    `stay` as in `read_pinned`. Raises FileNotFoundError or PermissionError.
    """
    fs, path = filesystem(uri)
    with _staying(uri, stay) as options:
        return _retrying(fs, lambda: _read_range(fs, path, start, length, version, stay, **options), uri)


def _read_range(
    fs: Any, path: str, start: int, length: int, version: str | None, stay: bool = False, **options: int
) -> bytes:
    if isinstance(fs, LocalFileSystem):
        with _open_unlinked(path) if stay else Path(path).open("rb") as file:
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
    try:
        with _staying(uri, stay) as options:
            data = _retrying(fs, _not_cut(lambda: _read_version(fs, path, version, stay, **options), size), uri)
    except FileNotFoundError:
        raise ItemFault(Reason.CHANGED, GONE) from None
    except PermissionError as error:
        raise ItemFault(Reason.FORBIDDEN, f"may not be read: {error}") from None
    if len(data) != size:
        raise ItemFault(Reason.CHANGED, f"{len(data)} bytes read, {size} listed")
    return data


def _not_cut(read: Callable[[], bytes], size: int) -> Callable[[], bytes]:
    """The same for `retrying`, which gives up an answer that was cut short often, where it would wait for the store.

    Answers that are short and do not say so are asked for again at once.
    """
    cuts = 0

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
        # without a buffer and a Path: they take longer than to read a small file (measured)
        with _open_unlinked(path) if stay else open(path, "rb", buffering=0) as file:  # noqa: PTH123
            data = file.read()
            info = os.fstat(file.fileno())
        if f"{info.st_size}-{info.st_mtime_ns}" != version:
            raise ItemFault(Reason.CHANGED, "written to since it was listed")
        return data
    if hasattr(fs, "call_s3"):
        return _read_s3(fs, path, version)
    return bytes(fs.cat_file(path, **options))


_FOLDER = os.O_DIRECTORY | os.O_NOFOLLOW | getattr(os, "O_PATH", os.O_RDONLY)  # O_PATH: no right to list is needed


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


class Folder:
    """A folder in any object store; names are paths below it."""

    def __init__(self, url: str) -> None:
        self.uri = canonical(url)
        self._fs, self._root = filesystem(self.uri)

    def __reduce__(self) -> tuple[type[Folder], tuple[str]]:
        return Folder, (self.uri,)

    def path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def arrow(self) -> Any:
        """The same store for libraries that take file systems of pyarrow; `path` gives the paths in it."""
        import pyarrow.fs

        if isinstance(self._fs, LocalFileSystem):
            return pyarrow.fs.LocalFileSystem()
        return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(self._fs))

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError if it is not there."""
        path = self.path(name)
        return bytes(self._call(lambda: self._fs.cat_file(path)))

    def write(self, name: str, data: bytes) -> None:
        """Write whole: readers see the old bytes or the new, never a part."""
        path = self.path(name)
        if isinstance(self._fs, LocalFileSystem):
            self._call(lambda: _write_local(Path(path), data))
        else:
            self._call(lambda: self._fs.pipe_file(path, data))

    def create(self, name: str, data: bytes) -> bool:
        """Put if absent; False if somebody else's bytes are there already.

        Bytes that are exactly ours count as ours: the answer to our put may have been lost and a second
        try refused. Where two writers might put the same bytes, `data` needs a token of its own.
        """
        path = self.path(name)
        try:
            if isinstance(self._fs, LocalFileSystem):
                self._call(lambda: _create_local(Path(path), data))
            else:
                self._call(lambda: self._fs.pipe_file(path, data, mode="create"))
        except OSError as error:
            if not isinstance(error, FileExistsError) and error_code(error) not in ("PreconditionFailed", "412"):
                raise
            return self._holds(name, data)
        return True

    def _holds(self, name: str, data: bytes) -> bool:
        try:
            return self.read(name) == data
        except FileNotFoundError:
            return False

    def check_create(self) -> bool:
        """Whether the store keeps the first bytes of a name and refuses to create it again, tried out."""
        name = _part_name()
        first, second = f"{name} 1".encode(), f"{name} 2".encode()
        try:
            keeps_first = self.create(name, first) and not self.create(name, second) and self.read(name) == first
        except OSError as error:
            if error_code(error) not in ("NotImplemented", "501"):
                raise
            keeps_first = False
        self.remove([name])
        return keeps_first

    def exists(self, name: str) -> bool:
        path = self.path(name)
        return bool(self._call(lambda: self._fs.exists(path)))

    def names(self, folder: str) -> list[str]:
        """Names of the files directly in a sub-folder; empty if it is not there."""
        path = self.path(folder)
        try:
            if hasattr(self._fs, "call_s3"):
                with _explained(self.uri):
                    found = _s3_names(self._fs, path)
            else:
                found = self._call(lambda: self._fs.ls(path, detail=False))
        except FileNotFoundError:
            return []
        last = (str(name).rstrip("/").rpartition("/")[2] for name in found)
        return sorted(name for name in last if not name.startswith("."))  # ours, of writes that were killed

    def files(self, folder: str = "") -> Iterator[tuple[str, int]]:
        """Name below the Folder and size of every file below a sub-folder; none if it is not there.

        What killed writes have left (`.….part`) is among them.
        """
        root = self.path(folder).rstrip("/")
        try:
            with _explained(self.uri):
                for page in _pages(self._fs, root, is_prefix=False):
                    for path, size, _ in page:
                        yield path[len(self._root) :].lstrip("/"), size
        except FileNotFoundError:
            return

    def remove(self, names: Iterable[str]) -> None:
        """Delete; a name that is not there is no error. On disk, folders that become empty go too."""
        rest = iter(names)
        while page := list(islice(rest, REMOVE_PAGE)):
            self._call(partial(_remove, self._fs, self._root, [self.path(name) for name in page]))

    def download(self, name: str, target: Path) -> None:
        path = self.path(name)
        with _explained(str(target.parent)):
            _retrying(self._fs, lambda: self._fs.get_file(path, str(target)), self.uri)

    def upload(self, source: Path, name: str) -> None:
        """Write a local file whole, as `write` does."""
        path = self.path(name)
        if isinstance(self._fs, LocalFileSystem):
            self._call(lambda: _write_local(Path(path), source.read_bytes()))
        else:
            self._call(lambda: self._fs.put_file(str(source), path))

    def _call(self, call: Callable[[], T]) -> T:
        with _explained(self.uri):
            return _retrying(self._fs, call, self.uri)


@contextmanager
def _explained(place: str) -> Iterator[None]:
    """What the machine or the rights are to blame for becomes an error of ours."""
    try:
        yield
    except PermissionError as error:
        raise UsageError(f"{place} may not be read or written: {error}; check the rights") from error
    except NotADirectoryError as error:
        raise UsageError(f"{place} cannot be a folder: there is a file of that name; choose another") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise TryLater(f"no space left under {place}; make room and run the same command again") from error
        raise


def _write_local(path: Path, data: bytes) -> None:
    part = _write_part(path, data)
    part.replace(path)


def _create_local(path: Path, data: bytes) -> None:
    """link(2) is atomic and refuses to replace: the whole file appears, or FileExistsError."""
    part = _write_part(path, data)
    try:
        os.link(part, path)
    finally:
        part.unlink()


def _part_name() -> str:
    return f".{uuid.uuid4().hex}.part"


def _write_part(path: Path, data: bytes) -> Path:
    """A hidden file beside `path` with its bytes safely on disk."""
    part = path.with_name(_part_name())
    with _open_part(part) as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            part.unlink(missing_ok=True)
            raise
    return part


def _open_part(part: Path) -> BinaryIO:
    while True:
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot make the folder {part.parent}: {error.strerror}; choose another place") from error
        with suppress(FileNotFoundError):  # a `remove` elsewhere took the folder while it was empty
            return part.open("wb")


def _remove(fs: Any, root: str, paths: list[str]) -> None:
    if isinstance(fs, LocalFileSystem):
        _remove_local(Path(root), paths)
    elif hasattr(fs, "call_s3"):
        _remove_s3(fs, paths)
    else:
        for path in paths:
            with suppress(FileNotFoundError):
                fs.rm_file(path)


def _remove_local(root: Path, paths: list[str]) -> None:
    for path in map(Path, paths):
        path.unlink(missing_ok=True)
        with suppress(OSError):  # not empty
            for folder in path.parents:
                if root not in folder.parents:
                    break
                folder.rmdir()


def _remove_s3(fs: Any, paths: list[str]) -> None:
    """One request; the keys that its answer, a 200, lists as not deleted are asked for singly, which raises."""
    bucket = paths[0].partition("/")[0]
    keys = [{"Key": path.partition("/")[2]} for path in paths]
    answer = fs.call_s3("delete_objects", Bucket=bucket, Delete={"Objects": keys, "Quiet": True})
    for fault in answer.get("Errors", []):
        fs.call_s3("delete_object", Bucket=bucket, Key=fault["Key"])
