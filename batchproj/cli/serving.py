"""The command serve: the collection over HTTP."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from batchproj.cli.console import CollectionArgument, VerboseFlag, app, console, stopping_line
from batchproj.terminal import printable


@app.command(epilog="Example: batchproj serve ./photos.batchproj --port 8080")
def serve(
    collection: CollectionArgument,
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on; beyond this machine only with a token, behind a proxy that limits connections."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65_535)] = 8000,
    token_file: Annotated[
        str | None, typer.Option(help="File with a token that every request must carry: Authorization: Bearer TOKEN.")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A name that the service is called by, as in the Host header.")
    ] = None,
    allow_url_host: Annotated[
        list[str] | None, typer.Option(help="A host whose https URLs may be searched by; without one none are.")
    ] = None,
    verbose: VerboseFlag = False,
) -> None:
    """Search over HTTP, and a page to search with; follows the live run."""
    stopping_line("stopped; nothing is served any more")
    from batchproj.serve.server import check_host, read_token, run
    from batchproj.serve.settings import Settings

    token = read_token(token_file)
    check_host(host, token)
    settings = Settings(token=token, hosts=tuple(allow_host or ()), url_hosts=tuple(allow_url_host or ()))
    with console(verbose) as stream:
        log = logging.getLogger("batchproj.serve")
        log.addHandler(shown := logging.StreamHandler(stream))
        try:
            run(collection, host, port, settings, lambda line: print(printable(line), file=stream, flush=True))
        finally:
            log.removeHandler(shown)
