"""Commands that look after a collection: quarantine, rollback, verify, gc, forget."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import typer

from batchproj.cli.console import (
    CollectionArgument,
    JsonFlag,
    SpaceOption,
    VerboseFlag,
    app,
    console,
    parse_modality,
    parse_reason,
    print_json,
    say,
)
from batchproj.errors import UsageError
from batchproj.progress import RunProgress
from batchproj.terminal import nonzero, printable

SHOWN = 20
"""Damaged or removed files that are named; --json has all of them."""

DAMAGED = 1


@app.command(epilog="Example: batchproj quarantine ./photos.batchproj --reason corrupt -n 20")
def quarantine(
    collection: CollectionArgument,
    reason: Annotated[str | None, typer.Option(help="Only this one.")] = None,
    modality: Annotated[str | None, typer.Option(help="Only text, image, audio or video.")] = None,
    examples: Annotated[int, typer.Option("-n", help="How many examples of each reason.", min=0)] = 3,
    as_json: JsonFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """What could not be embedded, by reason: what each means, what to do, and examples."""
    wanted = None if reason is None else parse_reason(reason, "--reason"), parse_modality(modality)
    from batchproj.quarantine import lines, quarantined

    with console(verbose):
        found = quarantined(collection, examples, *wanted)
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    print("".join(f"{printable(line)}\n" for line in lines(found)), end="")


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
        left, shown = run_rollback(collection, run.zfill(6) if run and run.isdecimal() else run, progress.step)
        seconds = round(time.monotonic() - started, 3)
    if as_json:
        print_json({"run": shown, "left": left, "seconds": seconds})
    else:
        print(f"Run {shown} is live again, in {seconds:.2f} s; run {left} is kept.")
        print(f"Back to it: batchproj rollback {collection} {left}")


@app.command(epilog="Example: batchproj verify ./photos.batchproj --repair")
def verify(
    collection: CollectionArgument,
    repair: Annotated[
        bool, typer.Option("--repair", help="Run embed again for what is damaged of the live run.")
    ] = False,
    space: SpaceOption = None,
    recipe: Annotated[str | None, typer.Option(help="YAML file, as for embed; with --repair.")] = None,
    as_json: JsonFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Read everything of every kept run and name each damaged file; exit 1 if there is any."""
    from batchproj.progress import RunProgress
    from batchproj.verify import verify as run_verify

    with console(verbose) as stream, RunProgress(stream) as progress:
        if repair:
            outcome: Any = _repaired(collection, space, recipe, verbose, progress)
            found = outcome.now
        else:
            outcome = found = run_verify(collection, progress.step)
    if as_json:
        print_json(outcome.model_dump(mode="json"))
    else:
        _print_verification(found, outcome.report if repair else None, collection)
    if found.damaged:
        raise typer.Exit(DAMAGED)


def _repaired(collection: str, space: str | None, recipe: str | None, verbose: bool, progress: Any) -> Any:
    from batchproj.embed import Options, Watch
    from batchproj.recipe import load_recipe
    from batchproj.repair import repair
    from batchproj.space import open_space, resolve

    options = Options(load_recipe(recipe), verbose=verbose)
    watch = Watch(progress.step, progress.totals, progress.progress)
    return repair(collection, options, watch, resolve(open_space(space)) if space else None)


def _print_verification(found: Any, report: Any, collection: str) -> None:
    if report is not None:
        named = {
            "embedded": report.embedded,
            "copied from equal bytes": report.copied,
            "projected again": report.reprojected,
            "left as they were": report.unchanged,
        }
        print(f"Repaired by run {report.run}: {nonzero(named) or 'nothing was left to do'}.")
    print(
        f"Read {found.files:,} files ({found.bytes:,} bytes) and compared {found.rows:,} rows of "
        f"{len(found.runs)} runs: {'nothing' if not found.damaged else f'{len(found.damaged):,} things'} damaged."
    )
    for damage in found.damaged[:SHOWN]:
        print(f"  {printable(str(damage))}")
    if not found.damaged:
        return
    if found.of(found.live):
        print(f"Do it again: batchproj verify {collection} --repair")
    else:
        print(f"The live run {found.live} is sound; drop the others: batchproj gc {collection} --keep 1 --apply")


@app.command(epilog="Example: batchproj gc ./photos.batchproj --keep 3 --apply")
def gc(
    collection: CollectionArgument,
    keep: Annotated[int, typer.Option(help="How many runs stay: the live one and the newest others.", min=1)] = 3,
    apply: Annotated[bool, typer.Option("--apply", help="Remove; without it only say what would be removed.")] = False,
    as_json: JsonFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Remove what no kept run refers to: earlier runs, their files, leftovers of killed processes."""
    from batchproj.gc import gc as run_gc
    from batchproj.progress import RunProgress

    with console(verbose) as stream, RunProgress(stream) as progress:
        outcome = run_gc(collection, progress.step, keep, apply)
    if as_json:
        print_json(outcome.model_dump(mode="json"))
        return
    what = f"{outcome.files:,} files ({outcome.bytes:,} bytes)"
    runs = f"of runs {', '.join(outcome.runs)}" if outcome.runs else "that no run needs any more"
    print(f"{'Removed' if outcome.applied else 'Would remove'} {what} {runs}; kept: {', '.join(outcome.kept)}.")
    if not outcome.applied and outcome.files:
        print(f"Do it: batchproj gc {collection} --keep {keep} --apply")


@app.command(epilog="Example: batchproj forget s3://bucket/photos.batchproj s3://bucket/photos/anna.jpg --yes")
def forget(
    collection: CollectionArgument,
    uri: Annotated[str, typer.Argument(help="URI or path of the item, as it was embedded.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Erase an item from every part, feature, table version and earlier run, and prove it; for good."""
    from batchproj.forget import forget as run_forget
    from batchproj.progress import RunProgress

    if not yes and not sys.stdin.isatty():
        raise UsageError("forget erases for good and nobody can be asked here; say that it is meant with --yes")
    if not yes:
        say("this erases the item for good, and all earlier runs, since they hold it; runs cannot be rolled back then")
        typer.confirm("go on?", abort=True, err=True)
    with console(verbose) as stream, RunProgress(stream) as progress:
        outcome = run_forget(collection, uri, progress.step)
    if as_json:
        print_json(outcome.model_dump(mode="json"))
        return
    print(
        f"Erased {outcome.rows:,} rows of item {outcome.item}; run {outcome.run} is live, no earlier run is kept. "
        f"{outcome.searched:,} Parquet files and table versions were searched afterwards: not a trace."
    )
    print(f"The object itself is where it was; under this name it is not embedded again: {outcome.marker}.")
