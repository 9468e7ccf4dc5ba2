"""How Lance's own S3 client is told to behave, and what its errors mean to us."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from batchproj.errors import TryLater
from batchproj.objectstore import s3_needs_http
from batchproj.retry import patience_s

# Lance reads this once, when it is first imported; its warnings are for Lance's developers
os.environ.setdefault("LANCE_LOG", "error")

_NETWORK = re.compile(
    r"(?i)timed? ?out|connection|connect error|error sending request|\b503\b|slow ?down|\bdns\b|"
    r"credential|expired ?token"
)
_DISK_FULL = re.compile(r"(?i)no space left|disk quota exceeded")


def storage_options() -> dict[str, str]:
    """How Lance's own S3 client behaves; the standard AWS variables are read by itself."""
    # it gives up after three tries by itself, which are over in a second
    options = {"client_max_retries": "1000", "client_retry_timeout": f"{patience_s():.0f}"}
    if s3_needs_http():
        options["allow_http"] = "true"
    return options


@contextmanager
def lance_faults(uri: str) -> Iterator[None]:
    """A full disk and network faults of Lance's own S3 client as TryLater: nothing shows yet, a rerun is safe."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if _DISK_FULL.search(str(error)):
            raise TryLater(f"no space left under {uri}; make room and run the same command again") from error
        if not _NETWORK.search(str(error).replace(uri.partition("://")[2], "")):
            raise
        raise TryLater(f"storage is away: {uri} ({str(error)[:120]}); run the same command again") from error
