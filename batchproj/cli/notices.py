"""Hooks around a command: called when it ends, whichever way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from batchproj.cli.console import one_line, say, stopped_by

HOOK = "A command, which gets the run's summary as JSON on stdin, or a URL, to which that is posted; "
OnSuccessOption = Annotated[
    str | None, typer.Option("--on-success", metavar="CMD_OR_URL", help=HOOK + "when the run ends well.")
]
OnFailureOption = Annotated[
    str | None,
    typer.Option(
        "--on-failure",
        metavar="CMD_OR_URL",
        help=HOOK + "when it does not. Another run that holds the collection is no failure.",
    ),
]


@dataclass
class Summary:
    """What a hook is told: `report` as the command's --json has it, None where it came to none."""

    command: str
    source: str
    collection: str
    outcome: str = "success"
    exit_code: int = 0
    error: str | None = None
    report: dict[str, Any] | None = None


@contextmanager
def notices(summary: Summary, on_success: str | None, on_failure: str | None) -> Iterator[Summary]:
    """Call one of the hooks when the body has ended; whoever the body lets through goes on."""
    from batchproj.errors import LeaseHeld
    from batchproj.hooks import check_hook

    for hook, option in ((on_success, "--on-success"), (on_failure, "--on-failure")):
        if hook is not None:
            check_hook(hook, option)
    try:
        yield summary
    except LeaseHeld:  # the other one has hooks of its own
        raise
    except BaseException as error:
        number = stopped_by()
        summary.outcome = "failure"
        summary.exit_code = 128 + number if number else getattr(error, "exit_code", 1)
        summary.error = summary.error or ("stopped by a signal" if number else one_line(error)[:500])
        _call(on_failure, summary)
        raise
    _call(on_success, summary)


def _call(hook: str | None, summary: Summary) -> None:
    if hook is None:
        return
    from batchproj.hooks import call_hook

    if said := call_hook(hook, vars(summary)):
        say(f"warning: {said}")
