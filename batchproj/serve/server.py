"""The service on uvicorn, on one address of this machine."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import uvicorn

from batchproj.errors import UsageError
from batchproj.serve.app import create_app
from batchproj.serve.connection import Connection
from batchproj.serve.service import Service
from batchproj.serve.settings import LOOPBACK, Settings

KEEP_ALIVE_S = 10
SHUTDOWN_S = 10
CONNECTIONS = 1_000
"""Beyond these a request is told to come again, whoever opened the others: a proxy limits them by their addresses."""

TOKEN_CHARS = 16
_WILDCARDS = ("0.0.0.0", "::")


def read_token(path: str | None) -> str | None:
    """The token in a file, without the space around it; raises UsageError if it is short or not there."""
    if path is None:
        return None
    try:
        token = Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--token-file {path} cannot be read: {type(error).__name__}") from None
    if len(token) < TOKEN_CHARS or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(
            f"--token-file {path}: expected one word of at least {TOKEN_CHARS} ASCII characters; make one with: "
            "python -c 'import secrets; print(secrets.token_urlsafe())'"
        )
    return token


def check_host(host: str, token: str | None) -> None:
    """Raises UsageError where anybody could reach the service without a token."""
    if host not in LOOPBACK and token is None:
        raise UsageError(f"--host {host} can be reached from other machines: give --token-file FILE, or leave it out")


def run(uri: str, host: str, port: int, settings: Settings, say: Callable[[str], None]) -> None:
    """Serve until a signal ends it; raises UsageError if the address cannot be had."""
    check_host(host, settings.token)
    if host not in (*LOOPBACK, *_WILDCARDS):
        settings = settings.model_copy(update={"hosts": (*settings.hosts, host)})
    with _listening(host, port) as listening:
        service = Service(uri, settings)
        server = make_server(service, host, port)
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        say(f"run {service.live.view.run} of {uri} at {address} (Ctrl-C ends it)")
        server.run(sockets=[listening])


def _listening(host: str, port: int) -> socket.socket:
    """Before the models are loaded: a port that is taken is known at once."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, UnicodeError) as error:
        if not isinstance(error, OSError) or (error.errno or 0) < 0:  # of the look-up of a name, which has own numbers
            raise UsageError(f"--host {host}: no such name or address here; give one of this machine's") from None
        told = (error.strerror or type(error).__name__).partition(" (")[0].lower()
        raise UsageError(f"--host {host} --port {port}: {told}; give another --port, or --host") from None


def make_server(service: Service, host: str, port: int) -> uvicorn.Server:
    """A server that is still to be run; it closes the service when it ends."""
    return uvicorn.Server(
        uvicorn.Config(
            create_app(service),
            host=host,
            port=port,
            http=Connection,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=CONNECTIONS,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=SHUTDOWN_S,
        )
    )
