"""The commands that look at the installation: encoders, doctor."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from batchproj.cli.console import BAD_USAGE, JsonFlag, VerboseFlag, app, console, print_json, say
from batchproj.errors import TryLater
from batchproj.terminal import printable


@app.command(epilog="Example: batchproj encoders --json")
def encoders(as_json: JsonFlag = False, verbose: VerboseFlag = False) -> None:
    """List the encoder families and the shipped spaces: width, size, licence, and what is already here."""
    from batchproj.inventory import families, spaces

    with console(verbose):
        present, shipped = families(), spaces()
    if as_json:
        print_json({"families": [asdict(each) for each in present], "spaces": [_document(each) for each in shipped]})
        return
    _print_families(present)
    for space in shipped:
        _print_space(space)
    print("\nUse one: batchproj embed SOURCE COLLECTION --space NAME; your own space file may name any model.")


@app.command(epilog="Example: batchproj doctor s3://bucket/collections")
def doctor(
    places: Annotated[
        list[str] | None,
        typer.Argument(help="Folders or URLs where a collection shall be: one small file is written and removed."),
    ] = None,
    as_json: JsonFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Is this machine ready: libraries, encoders, Ray, and the stores named; exit 2 if one is not, 75 if one is away.

    Each is tried, which takes half a minute: a text, a picture and a sound are embedded, a process of Ray is started.
    """
    found = []
    with console(verbose) as stream:
        from batchproj.doctor import examine

        for finding in examine(places or [], verbose):
            found.append(finding)
            print(_line(finding), file=stream, flush=True)
    failed = [finding for finding in found if finding.state == "failed"]
    if as_json:
        print_json({"ready": not failed, "checks": [asdict(finding) for finding in found]})
    elif not failed:
        print("This machine is ready. Next: batchproj embed SOURCE COLLECTION, or batchproj demo.")
    if failed:
        names = ", ".join(finding.name or "an empty path" for finding in failed)
        say(f"error: this machine is not ready: {names}; see above what to do")
        raise typer.Exit(TryLater.exit_code if all(finding.is_later for finding in failed) else BAD_USAGE)


def _line(finding: Any) -> str:
    return printable(
        f"  {finding.state:<7}{finding.name}: {finding.found}" + f"; {finding.advice}" * bool(finding.advice)
    )


def _document(space: Any) -> dict[str, Any]:
    return {**asdict(space), "here": space.here, "download_mb": space.download_mb}


def _print_families(present: list[Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("kind", "takes", "is", box=None, pad_edge=False, title="Families", title_justify="left")
    for family in present:
        table.add_row(family.kind, ", ".join(family.modalities), family.says)
    Console().print(table)


def _print_space(space: Any) -> None:
    state = "here" if space.here else f"{space.download_mb:,} MB to fetch"
    print(f"\n{space.name}: {space.dim} dimensions, {state}\n  {space.about}")
    for member in space.members:
        made = f", {member.projector} projector" if member.projector else ""
        if member.modality in space.to_train:
            made += " to be trained"
        where = "here" if member.here else f"{member.download_mb:,} MB"
        print(
            f"  {member.modality:<6}{member.model}\n        {member.kind}, {member.dims} dims{made}, "
            f"{member.parameters_m} M parameters, {member.licence}, {where}"
        )
