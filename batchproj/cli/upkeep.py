"""Commands that look after a collection: rollback, verify, gc, forget."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from batchproj.cli.console import CollectionArgument, JsonFlag, VerboseFlag, app, console, print_json
from batchproj.progress import RunProgress


@app.command(epilog="Example: batchproj rollback ./photos.batchproj 000003")
def rollback(
    collection: CollectionArgument,
    run: Annotated[
        str | None, typer.Argument(help="The run to show again; the one before the live one without.")
    ] = None,
    as_json: JsonFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Show an earlier run again, at once; nothing is deleted, and rolling forward works the same way."""
    from batchproj.switch import rollback as run_rollback

    with console(verbose) as stream, RunProgress(stream) as progress:
        started = time.monotonic()
        left, shown = run_rollback(collection, run, progress.step)
        seconds = round(time.monotonic() - started, 3)
    if as_json:
        print_json({"run": shown, "left": left, "seconds": seconds})
    else:
        print(f"Run {shown} is live again, in {seconds:.2f} s; run {left} is kept.")
        print(f"Back to it: batchproj rollback {collection} {left}")
