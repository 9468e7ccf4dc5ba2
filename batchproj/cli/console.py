"""What all commands share: the app, its options, the terminal while libraries work, and how it ends."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, TextIO

import typer

# Only what parsing arguments needs is imported here: --help must not wait for torch.
import batchproj
from batchproj.errors import BatchprojError, UsageError
from batchproj.terminal import json_line, printable

BAD_USAGE = 2

_BadUsage: Any = typer.BadParameter.__mro__[1]
"""Of the command line itself; its class is where typer has taken it over from click."""


class _App(typer.Typer):
    """Commands whose bad usage is one line, as all our errors are, and no box."""

    def __call__(self, *given: Any, **options: Any) -> Any:
        try:
            code = super().__call__(*given, prog_name="batchproj", standalone_mode=False, **options)
        except _BadUsage as error:
            if type(error).__name__ == "NoArgsIsHelpError":
                error.show()
                raise SystemExit(BAD_USAGE) from error
            raise UsageError(_bad_usage(error)) from error
        except typer.Abort:
            raise UsageError("not confirmed, so nothing was done") from None
        raise SystemExit(code if isinstance(code, int) else 0)


def _bad_usage(error: Any) -> str:
    """What is wrong with a command line, what it should be, and where to read of it."""
    complaints = getattr(error.__cause__, "errors", None)
    if complaints is not None:  # of pydantic, which typer makes numbers by
        from batchproj.config import expected, shown

        said = f"{error.param.opts[0]} is {shown(complaints()[0]['input'])}, expected {expected(complaints()[0])}"
    else:
        said = error.format_message().rstrip(".").removeprefix("Invalid value for ")
        said = said[:1].lower() + said[1:]
    if error.ctx is None:
        return said
    usage = " ".join(error.ctx.command.get_usage(error.ctx).split()).removeprefix("Usage: ")
    return f"{said}; usage: {usage}; more by: {error.ctx.command_path} --help"


app = _App(
    help="One searchable vector space from object storage full of images, sound and text.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"batchproj {batchproj.__version__}")
        raise typer.Exit


@app.callback()
def _any_command(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """What can stand before any command."""


JsonFlag = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, nothing else there.")]
VerboseFlag = Annotated[bool, typer.Option("--verbose", "-v", help="Show Ray's own output and tracebacks.")]
SpaceOption = Annotated[
    str | None,
    typer.Option(
        "--space",
        help="A shipped space, or path or URL of a space file.",
        show_default="the one the collection was made with, builtin for a new one",
    ),
]
SingleWriterFlag = Annotated[
    bool, typer.Option("--single-writer", help="The store cannot keep two runs apart; see to it that there is one.")
]
CollectionArgument = Annotated[str, typer.Argument(help="Folder of the collection, on any fsspec URL.")]


STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_stopped_by: int | None = None
_stopping_line = "stopped; nothing half-done is visible, run the same command again"


def answer_signals() -> None:
    """Interrupt, SIGTERM and a terminal that is closed stop the command, the last unless `nohup` has it ignored."""
    has_nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    for number in STOPPING:
        if not (has_nohup and number == signal.SIGHUP):
            signal.signal(number, on_signal)


def ignore_signals() -> None:
    """From now on: what ends must neither be cut off nor be ended twice."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


def on_signal(number: int, _frame: FrameType | None) -> None:
    """Stop once, by an exception where the program is, so that everything on the way out is closed.

    It is the one exception that libraries expect to come from a signal: Ray's core drops any other.
    Further signals must not interrupt the clean-up.
    """
    global _stopped_by
    _stopped_by = _stopped_by or number
    ignore_signals()
    if (retry := sys.modules.get("batchproj.retry")) is not None:  # else nothing waits
        retry.abandon()
    raise KeyboardInterrupt


def stopped_by() -> int | None:
    """The signal that ends this process, whatever libraries have made of it on its way to the top."""
    return _stopped_by


def stopping_line(instead: str | None = None) -> str:
    """What is said when a signal ends this process; a command whose work goes on elsewhere says something else."""
    global _stopping_line
    _stopping_line = instead or _stopping_line
    return _stopping_line


def one_line(error: BaseException) -> str:
    """Its text on one line: names of objects in it come from strangers."""
    return printable(" ".join(str(error).split()))


def say(text: str) -> None:
    with suppress(OSError):  # of a terminal that is gone
        print(printable(text), file=sys.stderr)


def print_json(document: Any) -> None:
    print(json_line(document))


@contextmanager
def console(verbose: bool) -> Iterator[TextIO]:
    """The terminal for our own lines while libraries work; what they print goes to a log file.

    stdout stays clean for the result, and Ray's and Lance's native code, which writes to file
    descriptor 2 whatever Python says, does not drown the progress. With `verbose` all is shown.
    An error that is not one of ours ends as one line that names the log, which then is kept.
    """
    from batchproj import retry
    from batchproj.fetching import watch_fetching

    with _redirected(None if verbose else tempfile.mkstemp(prefix="batchproj-", suffix=".log")) as (stream, log):
        try:
            with (
                retry.watch_pauses(lambda line: print(f"  {printable(line)}", file=stream, flush=True)),
                watch_fetching(stream),
            ):
                yield stream
        except BatchprojError:
            raise
        except Exception as error:
            if log is None or stopped_by() is not None:
                raise
            log.write_text(log.read_text(errors="replace") + "".join(traceback.format_exception(error)))
            kept = log.rename(log.with_suffix(".txt"))
            raise BatchprojError(
                f"internal: {type(error).__name__}: {one_line(error)[:300]}; the traceback is in {kept}"
            ) from error


@contextmanager
def _redirected(log: tuple[int, str] | None) -> Iterator[tuple[TextIO, Path | None]]:
    """Point descriptors 1 and 2 to a log (1 to 2 without one); yields the old stderr."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved_out, saved_err = os.dup(1), os.dup(2)
    os.dup2(log[0] if log else saved_err, 1)
    if log:
        os.dup2(log[0], 2)
    try:
        with os.fdopen(os.dup(saved_err), "w") as stream:
            yield stream, Path(log[1]) if log else None
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(saved_out, 1)
        os.dup2(saved_err, 2)
        os.close(saved_out)
        os.close(saved_err)
        if log:
            os.close(log[0])
            Path(log[1]).unlink(missing_ok=True)


def parse_modality(name: str | None) -> Any:
    from batchproj.schema import Modality

    if name is not None and name not in list(Modality):
        raise typer.BadParameter(f"no '{name}'; expected one of {', '.join(Modality)}", param_hint="--modality")
    return None if name is None else Modality(name)


def parse_reason(name: str, option: str) -> Any:
    from batchproj.schema import Reason

    if name not in list(Reason):
        known = ", ".join((*(["all"] if option == "--retry-quarantined" else []), *Reason))
        raise typer.BadParameter(f"no '{name}'; expected one of {known}", param_hint=option)
    return Reason(name)
