"""URIs, and the file systems of fsspec behind them.

Every URL is a canonical URI here: `file:///abs/path`, `s3://bucket/key`, never percent-encoded.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from batchproj.credentials import has_credentials, masked, quiet_clients
from batchproj.errors import SourceError, UsageError
from batchproj.retry import CALLS_AT_ONCE, retrying

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
    """The fsspec file system of a canonical URI, and the path in it; raises SourceError for one of none by itself."""
    scheme = uri.split("://", 1)[0]
    if scheme == "file":
        # as fsspec would have it, whose own function takes longer than to read a small file
        return _disk(), uri.removeprefix("file://").rstrip("/") or "/"
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


def retrying_at(fs: Any, call: Callable[[], T], uri: str) -> T:
    """`retrying`, and new credentials where the store asks for them."""
    return retrying(call, uri, _renewal(fs))
