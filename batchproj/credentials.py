"""Secrets that a URL may carry: it is kept in the ledger, in tables and in messages, so none may come with it."""

from __future__ import annotations

import logging
import re
from urllib.parse import unquote_plus

_CHAINED = re.compile(r"::(?=[^:/]*://)")
_LOCAL = ("file", "local", "memory")
_HTTP = ("http", "https")
_BUCKETS = ("s3", "s3a", "s3n", "gs", "gcs", "oss")
"""Behind their `://` stands a bucket, whose name holds neither `@` nor `:`; what does is a secret, slashes and all."""

_ACCESS_POINT = re.compile(r"arn:[\w-]+:s3[\w-]*:[^@]*")
_PARAMETER = re.compile(r"[?&;#](?P<name>[^=?&;#]*)=")
_VALUE = re.compile(r"[^&#]*")
_NAMES = {
    *("sig", "token", "secret", "password", "passwd", "passphrase", "pwd", "hmac", "credential", "credentials"),
    *("api_key", "apikey", "x_api_key", "subscription_key", "access_key", "accesskey", "secret_key", "secretkey"),
    *("access_key_id", "accesskeyid", "awsaccesskeyid", "ossaccesskeyid", "secret_access_key"),
    *("accesstoken", "authtoken", "idtoken", "refreshtoken", "sastoken", "securitytoken", "sessiontoken"),
}
"""Of parameters that are secret, in small letters and with `_` for `-`."""

_ENDS = ("_token", "signature", "_credential", "_secret", "_password")
_PLACES = ("page_token", "next_token", "continuation_token")
"""Tokens that tell where a listing goes on."""

_HIDDEN = "***"
_TALKATIVE = ("botocore", "aiobotocore")


def has_credentials(url: str) -> bool:
    """Whether a password, a token or a signature stands in a URL; a path has none."""
    return masked(url) != url


def masked(url: str) -> str:
    """A URL as it may be shown; takes time in proportion to its length, for a row may hold any."""
    return "::".join(_masked_link(link) for link in _CHAINED.split(url))


def _masked_link(url: str) -> str:
    """One URL of a chain."""
    before, marks, rest = url.partition("://")
    scheme = before.rpartition("::")[2].strip().lower()
    if not marks or scheme in _LOCAL:
        return url
    rest = _without_user(scheme, rest)
    return f"{before}://{_without_parameters(rest) if scheme in _HTTP else rest}"


def _without_user(scheme: str, rest: str) -> str:
    if scheme in _BUCKETS:
        bucket = rest.partition("/")[0]
        if "@" in bucket or (":" in bucket and not _ACCESS_POINT.fullmatch(bucket)):
            return f"{_HIDDEN}{rest[rest.rindex('@') :] if '@' in rest else ''}"
        return rest
    user = re.split(r"[/?#]", rest, maxsplit=1)[0].rpartition("@")[0]
    # before the `@` of other schemes a name may stand without a password (a container, or who logs in by a key), and
    # `org:repo` before a branch of GitHub's
    is_secret = scheme in _HTTP or (":" in user and scheme != "github")
    return f"{_HIDDEN}{rest[len(user) :]}" if user and is_secret else rest


def _without_parameters(rest: str) -> str:
    shown, at = [], 0
    for found in _PARAMETER.finditer(rest):
        value = found.end()
        if value < at or not _is_secret(unquote_plus(found["name"])):
            continue
        end = _VALUE.match(rest, value).end()  # type: ignore[union-attr] # it matches nothing, too
        if end > value:
            shown += [rest[at:value], _HIDDEN]
            at = end
    return "".join([*shown, rest[at:]])


def _is_secret(name: str) -> bool:
    name = name.strip().lower().replace("-", "_")
    return name in _NAMES or (name.endswith(_ENDS) and not name.endswith(_PLACES))


def quiet_clients() -> None:
    """Clients that write what they send, a session's token among it, at DEBUG: not unless they are asked by name."""
    for name in _TALKATIVE:
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.INFO)
