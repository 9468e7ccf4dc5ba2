"""The command that looks at the installation: encoders."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from batchproj.cli.console import JsonFlag, VerboseFlag, app, console, print_json


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
