"""A folder of ours: read, write whole, put if absent, list, remove."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from fsspec.implementations.local import LocalFileSystem

from batchproj.errors import TryLater, UsageError
from batchproj.objectstore.listing import listed_pages, s3_names
from batchproj.objectstore.uris import canonical, filesystem, retrying_at
from batchproj.retry import error_code

REMOVE_PAGE = 1_000

T = TypeVar("T")


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
            return self.create(name, first) and not self.create(name, second) and self.read(name) == first
        except OSError as error:
            if error_code(error) not in ("NotImplemented", "501"):
                raise
            return False
        finally:
            with suppress(OSError):  # what went wrong before is what to say
                self.remove([name])

    def exists(self, name: str) -> bool:
        path = self.path(name)
        return bool(self._call(lambda: self._fs.exists(path)))

    def names(self, folder: str) -> list[str]:
        """Names of the files directly in a sub-folder; empty if it is not there."""
        path = self.path(folder)
        try:
            if hasattr(self._fs, "call_s3"):
                with _explained(self.uri):
                    found = s3_names(self._fs, path)
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
                for page in listed_pages(self._fs, root, is_prefix=False):
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
            retrying_at(self._fs, lambda: self._fs.get_file(path, str(target)), self.uri)

    def upload(self, source: Path, name: str) -> None:
        """Write a local file whole, as `write` does."""
        path = self.path(name)
        if isinstance(self._fs, LocalFileSystem):
            self._call(lambda: _write_local(Path(path), source.read_bytes()))
        else:
            self._call(lambda: self._fs.put_file(str(source), path))

    def _call(self, call: Callable[[], T]) -> T:
        with _explained(self.uri):
            return retrying_at(self._fs, call, self.uri)


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
