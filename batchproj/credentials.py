"""Secrets that a URL may carry: it is kept in the ledger, in tables and in messages, so none may come with it."""

from __future__ import annotations

import logging
import re

_USER = re.compile(r"(?P<scheme>[\w+.:-]*)://(?P<user>[^/?#]*)@")
_ANYTHING_IS_SECRET = ("http", "https", "s3", "s3a")
"""Before the `@` of other schemes a name may stand without a password: a container, or who logs in by a key."""

_SIGNED = re.compile(
    r"(?i)(?P<name>[?&;#](?:[^=&;#]*(?:signature|credential|token|secret|passw|api-?_?key|access-?_?key)[^=&;#]*|sig|key|auth))"
    r"=[^&;#]+"
)
_HIDDEN = "***"
_TALKATIVE = ("botocore", "aiobotocore")


def has_credentials(url: str) -> bool:
    """Whether a password, a token or a signature stands in a URL; a path has none."""
    return masked(url) != url


def masked(url: str) -> str:
    """A URL as it may be shown."""
    if "://" not in url or url.startswith(("file://", "local://", "memory://")):
        return url
    found = _USER.match(url)
    if found is not None and found["user"] and _is_secret(found["scheme"], found["user"]):
        url = f"{found['scheme']}://{_HIDDEN}@{url[found.end() :]}"
    is_http = re.match(r"(?:.*::)?https?://", url)
    return _SIGNED.sub(rf"\g<name>={_HIDDEN}", url) if is_http else url


def _is_secret(scheme: str, user: str) -> bool:
    inner = scheme.rpartition("::")[2].lower()
    return inner in _ANYTHING_IS_SECRET or (":" in user and inner != "github")  # there it is `org:repo@branch`


def quiet_clients() -> None:
    """Clients that write what they send, a session's token among it, at DEBUG: not unless they are asked by name."""
    for name in _TALKATIVE:
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.INFO)
