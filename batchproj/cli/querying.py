"""Commands that only read: search, explain, runs."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from batchproj.cli.console import CollectionArgument, JsonFlag, VerboseFlag, app, console, print_json
from batchproj.importing import importing
from batchproj.terminal import printable

_UNFOLDED = 10_000
"""Columns of an output that is no terminal."""

_SNIPPET_CHARS = 80

WEIGHED = ("text", "image", "audio", "video", "like", "id", "not", "unlike")
MOST_WEIGHT = 100.0


@app.command(epilog="Example: batchproj search ./photos.batchproj 'a red apple' -k 5 --modality image")
def search(
    collection: CollectionArgument,
    text: Annotated[str | None, typer.Argument(help="Words to look for.")] = None,
    image: Annotated[str | None, typer.Option(help="Search with an image file.")] = None,
    audio: Annotated[str | None, typer.Option(help="Search with a sound file.")] = None,
    video: Annotated[str | None, typer.Option(help="Search with a video file.")] = None,
    like: Annotated[
        str | None,
        typer.Option("--like", "--id", help="Search with an item that is there, by the id of a hit (--json shows it)."),
    ] = None,
    unlike: Annotated[
        list[str] | None, typer.Option("--not", "--unlike", help="Words that results are to be less like.")
    ] = None,
    weight: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=NUMBER of what is searched by, where that is several things: text, image, audio, video, like, "
            "which have 1 by themselves, or not, which has 0.5."
        ),
    ] = None,
    k: Annotated[int, typer.Option("-k", help="How many results.")] = 10,
    offset: Annotated[int, typer.Option(help="Pass over so many results.")] = 0,
    modality: Annotated[str | None, typer.Option(help="Only text, image, audio or video.")] = None,
    where: Annotated[list[str] | None, typer.Option(help="COLUMN=VALUE, or FIELD=VALUE of the metadata.")] = None,
    group: Annotated[bool, typer.Option("--group", help="One result an item: the best of its segments.")] = False,
    balance: Annotated[
        bool,
        typer.Option(
            "--balance/--no-balance",
            help="Rank kinds by scores standardised as evaluate measured them, with a part of the page for each; the "
            "score shown stays the cosine.",
        ),
    ] = False,
    hybrid: Annotated[
        bool,
        typer.Option(
            "--hybrid",
            help="Look for the words in texts and metadata as well, and rank by the places in both; the score shown "
            "stays the cosine, and why says which of them found it.",
        ),
    ] = False,
    run: Annotated[
        str | None,
        typer.Option(help="Search a run that is kept (runs lists them), by its models.", show_default="the live one"),
    ] = None,
    space: Annotated[
        str | None,
        typer.Option(help="A bridge of train --adapter: its text encoder asks.", show_default="the collection's own"),
    ] = None,
    as_json: JsonFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Find the nearest items to a text, an image, a sound or a video, of any kind."""
    weights = dict(map(_weight, weight or ()))
    # to its end: a search of seconds is over before there is garbage worth the look through all modules
    with importing():
        with console(verbose):
            from batchproj.search import Collection

            opened = Collection(collection, run=run)
            found = opened.search(
                text,
                image=image,
                audio=audio,
                video=video,
                like=like,
                unlike=unlike or (),
                weights=weights,
                k=k,
                offset=offset,
                modality=modality,
                where=where or (),
                group=group,
                balance=balance,
                hybrid=hybrid,
                space=space,
            )
        if as_json:
            print_json([{**hit.as_dict(), **({"why": hit.why} if hybrid else {})} for hit in found])
        elif found:
            _print_hits(found, hybrid)
        else:
            print(printable(_nothing(opened.run, opened.snapshot.rows, modality, where or [], offset)))


def _nothing(run: str, rows: int, modality: str | None, where: list[str], offset: int) -> str:
    """What was searched in vain, and why that may be."""
    searched = f"nothing found in the {rows:,} rows of run {run}"
    if where or modality:
        kept = " and ".join([*([f"of modality {modality}"] if modality else []), *(f"with {each}" for each in where)])
        searched += f": none is {kept}" if not offset else f" {kept}"
    hints = [
        *([f"there are no more than the --offset {offset:,} passed over"] if offset else []),
        *(["values are compared whole and upper case matters: see them by a search without --where"] if where else []),
    ]
    return "; ".join([searched, *hints])


def _weight(given: str) -> tuple[str, float]:
    """A weight as it was typed."""
    name, _, number = given.partition("=")
    try:
        weight = float(number)
    except ValueError:
        weight = -1.0
    if name not in WEIGHED or not 0 <= weight <= MOST_WEIGHT:
        raise typer.BadParameter(
            f"'{given}': expected NAME=NUMBER, one of {', '.join(WEIGHED)} and 0 to {MOST_WEIGHT:.0f}",
            param_hint="--weight",
        )
    return name, weight


def _print_hits(hits: list[Any], hybrid: bool = False) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("score", justify="right")
    has_metadata = any(hit.metadata for hit in hits)
    for name in (
        "modality",
        *(["why"] if hybrid else []),
        "at",
        "uri",
        "text",
        *(["metadata"] if has_metadata else []),
    ):
        table.add_column(name, overflow="fold" if name == "uri" else "ellipsis", no_wrap=name != "uri")
    for hit in hits:
        told = [_snippet(hit.text or ""), *([_snippet(_fields(hit.metadata))] if has_metadata else [])]
        why = [hit.why] if hybrid else []
        table.add_row(f"{hit.score:.3f}", hit.modality, *why, _place(hit), *map(Text, [printable(hit.uri), *told]))
    terminal = Console()
    # what is read by a program, or copied, is not folded
    (terminal if terminal.is_terminal else Console(width=_UNFOLDED)).print(table)


def _snippet(text: str) -> str:
    return printable(" ".join(text.split()))[:_SNIPPET_CHARS]


def _fields(metadata: str | None) -> str:
    """Fields as `--where` takes them; nested ones as JSON."""
    fields = json.loads(metadata) if metadata else {}
    plain = {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}
    return " ".join(f"{name}={value}" for name, value in plain.items())


def _place(hit: Any) -> str:
    """Where in its item a hit is: times of a sound or video, characters of a text of several pieces."""
    if hit.start is None or hit.end is None:
        return ""
    if hit.modality == "text":
        return "" if hit.id == hit.item else f"{hit.start:.0f}-{hit.end:.0f}"
    return f"{_clock(hit.start)}-{_clock(hit.end)}"


def _clock(seconds: float) -> str:
    """mm:ss, from an hour on h:mm:ss; a second begun counts as it does in a player."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes:02d}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


@app.command(epilog="Example: batchproj explain ./photos.batchproj s3://bucket/photos/frog.jpg")
def explain(
    collection: CollectionArgument,
    uri: Annotated[str, typer.Argument(help="URI or path of the item.")],
    as_json: JsonFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Which bytes, model, projector and run made an item's vectors, or why it has none."""
    from batchproj.explain import explain as run_explain
    from batchproj.explain import lines

    with console(verbose):
        found = run_explain(collection, uri)
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        print("\n".join(printable(line) for line in lines(found)))


@app.command(epilog="Example: batchproj runs ./photos.batchproj")
def runs(collection: CollectionArgument, as_json: JsonFlag = False, verbose: VerboseFlag = False) -> None:
    """The ledger: who ran what and when, what changed, what came of it; the live run has a star."""
    from batchproj.search import runs_of

    with console(verbose):
        entries, live = runs_of(collection)
    if as_json:
        print_json([{**entry, "live": entry["run"] == live, "died": _died(entry)} for entry in entries])
    else:
        from batchproj.collection.lease import is_free
        from batchproj.objectstore import Folder

        if entries[-1]["state"] == "running" and is_free(Folder(collection)):
            entries[-1]["state"] = "ended early"  # the next run goes on with it
        _print_runs(entries, live)


def _died(entry: dict[str, Any]) -> int:
    """Processes of a run that were killed and made up for: earlier attempts that were not paused, and workers."""
    return int(entry["attempts"] - 1 - entry["pauses"] + entry["restarts"])


def _print_runs(entries: list[dict[str, Any]], live: str | None) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    counts = ("embedded", "copied", "reprojected", "unchanged", "deleted", "quarantined", "rows")
    for name in ("", "run", "state", "started (UTC)", "by", *counts, "s", "died", "what changed"):
        table.add_column(
            name,
            justify="right" if name in (*counts, "s", "died") else "left",
            no_wrap=name != "what changed",
            overflow="fold",
        )
    for entry in entries:
        changed = ", ".join(f"{each['modality']} {each['field']}" for each in entry["differences"])
        table.add_row(
            "*" if entry["run"] == live else "",
            entry["run"],
            entry["state"],
            entry["started"].removesuffix("+00:00").replace("T", " "),
            printable(f"{entry['user']}@{entry['host']}"),
            *(f"{entry[name]:,}" for name in counts),
            f"{entry['seconds']:,.1f}",
            str(_died(entry)),
            printable(changed or ("objects" if entry["command"].startswith("embed") else entry["command"].split()[0])),
        )
    # a ledger whose names are cut off is no use: rather lines that wrap
    Console(width=max(Console().width, 160)).print(table)
