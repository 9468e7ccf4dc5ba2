"""A file that is searched by its address, from hosts that the operator allows, over a way that leads nowhere else.

Every address that the host's name has must be public, and the connection goes to one that was looked at: a name
that resolves otherwise a moment later (DNS rebinding) changes nothing. No redirect is followed and no proxy asked.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from urllib.parse import SplitResult, urlsplit

from batchproj.errors import UsageError

TIMEOUT_S = 10.0
"""For all of it, from the look-up of the name on, however little at a time the other side sends."""
PORT = 443

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_NAT64_LOCAL = ipaddress.ip_network("64:ff9b:1::/48")
_COMPATIBLE = ipaddress.ip_network("::/96")


def fetch(url: str, hosts: Iterable[str], most_bytes: int, context: ssl.SSLContext | None = None) -> tuple[bytes, str]:
    """The bytes at a URL and the name of the file; raises UsageError in one line for whatever is not allowed.

    `context` says which certificates are believed, by default those that the system believes.
    """
    parts = _checked(url, hosts)
    host = str(parts.hostname)
    deadline = time.monotonic() + TIMEOUT_S
    try:
        addresses = public_addresses(host, deadline)
        data = _get(host, addresses, parts, most_bytes, deadline, context or ssl.create_default_context())
    except (OSError, http.client.HTTPException, ValueError) as error:
        if time.monotonic() >= deadline:
            raise _late(host) from None
        raise UsageError(f"url: {host} did not give the file: {type(error).__name__}") from None
    return data, parts.path.rpartition("/")[2] or host


def _late(host: str) -> UsageError:
    return UsageError(f"url: {host} took longer than {TIMEOUT_S:g} s")


def _checked(url: str, hosts: Iterable[str]) -> SplitResult:
    allowed = {host.lower() for host in hosts}
    if not allowed:
        raise UsageError("url: search by URL is off here; it is for hosts that --allow-url-host names")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise UsageError("url: it is no URL; expected https://HOST/PATH") from None
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise UsageError("url: only printable ASCII is taken; expected https://HOST/PATH, percent-encoded")
    if parts.scheme != "https" or not parts.hostname:
        raise UsageError("url: only https is fetched; expected https://HOST/PATH")
    if parts.username is not None or parts.password is not None or port not in (None, PORT):
        raise UsageError(f"url: no user, no password and no port but {PORT} is taken")
    if parts.hostname not in allowed:
        raise UsageError(f"url: the host is not one of those allowed: {', '.join(sorted(allowed))}")
    return parts


def public_addresses(host: str, deadline: float) -> list[str]:
    """The addresses of a host, every one of which is public; raises UsageError otherwise, and if they are not known
    by `deadline`."""
    pool = ThreadPoolExecutor(1)  # a look-up cannot be stopped, but left
    looking = pool.submit(socket.getaddrinfo, host, PORT, type=socket.SOCK_STREAM)
    pool.shutdown(wait=False)
    try:
        found = looking.result(deadline - time.monotonic())
    except TimeoutError:
        raise _late(host) from None
    except (OSError, UnicodeError):
        raise UsageError(f"url: {host} cannot be found") from None
    addresses = [str(place[0]) for *_, place in found]
    if not addresses or not all(is_public(address) for address in addresses):
        raise UsageError(f"url: {host} leads to an address that is not public; it is not asked")
    return addresses


def is_public(text: str) -> bool:
    """Whether an address is one of the internet's, and so is the IPv4 address that it may carry inside."""
    try:
        address: Address = ipaddress.ip_address(text)
    except ValueError:  # with a zone, or none at all
        return False
    if isinstance(address, ipaddress.IPv6Address):
        inside = _inside(address)
        if inside is not None and not is_public(str(inside)):
            return False
        if address.is_site_local or address in _NAT64_LOCAL or (address in _COMPATIBLE and inside is None):
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def _inside(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 address leads to."""
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return None


def _get(
    host: str, addresses: Sequence[str], parts: SplitResult, most_bytes: int, deadline: float, context: ssl.SSLContext
) -> bytes:
    plain = _connected(addresses, deadline)
    with (
        context.wrap_socket(plain, server_hostname=host, do_handshake_on_connect=False) as secure,
        _cut_at(secure, deadline),
    ):
        secure.do_handshake()
        connection = http.client.HTTPConnection(host, PORT)
        connection.sock = secure
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request(
            "GET", path, headers={"Host": host, "User-Agent": "batchproj", "Accept-Encoding": "identity"}
        )
        with connection.getresponse() as answer:
            data = _body(answer, host, most_bytes)
            if answer.length or time.monotonic() >= deadline:  # what was cut off looks like an end
                raise http.client.IncompleteRead(data)
            return data


def _body(answer: http.client.HTTPResponse, host: str, most_bytes: int) -> bytes:
    if answer.status != 200:
        raise UsageError(f"url: {host} answered {answer.status}; redirects are not followed")
    data = bytearray()
    while piece := answer.read1(1 << 16):
        data += piece
        if len(data) > most_bytes:
            raise UsageError(f"url: the file is larger than {most_bytes:,} bytes")
    return bytes(data)


def _connected(addresses: Sequence[str], deadline: float) -> socket.socket:
    """To the first of the addresses that answers; raises the last one's OSError. Each has a part of the time left."""
    refused: OSError = TimeoutError()
    for number, address in enumerate(addresses):
        left = (deadline - time.monotonic()) / (len(addresses) - number)
        if left <= 0:
            break
        try:
            return socket.create_connection((address, PORT), timeout=left)
        except OSError as error:
            refused = error
    raise refused


@contextmanager
def _cut_at(connected: socket.socket, deadline: float) -> Iterator[None]:
    """Ends a connection at a time, whatever is being waited for: limits of single reads add up."""
    left = max(0.0, deadline - time.monotonic())
    connected.settimeout(left or None)

    def end() -> None:
        with suppress(OSError):  # it has ended by itself
            socket.socket.shutdown(connected, socket.SHUT_RDWR)  # that of TLS would change it under its reader

    timer = threading.Timer(left, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()  # so that it does not meet another socket of the same number
