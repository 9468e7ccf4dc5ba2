"""The command that measures this machine: bench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from batchproj.cli.console import JsonFlag, VerboseFlag, app, console, print_json, say, stopping_line

OutOption = Annotated[Path, typer.Option(help="Folder for the dated JSON and the picture.")]


@app.command(epilog="Example: batchproj bench text-short image-small --items 500 --price 0.4")
def bench(
    workloads: Annotated[
        list[str] | None,
        typer.Argument(
            help="text-short, text-long, image-small, image-camera, audio-short, audio-long, many-small-objects, "
            "reproject",
            show_default="all of them",
        ),
    ] = None,
    contenders: Annotated[
        str | None,
        typer.Option(
            help="With commas between: batchproj, bare-default, ray-data, ray-data-equal, daft-udf, daft-equal, "
            "daft-embed, sentence-transformers; bare-best, the ceiling, is always there.",
            show_default="all",
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Valid rounds of each workload.", min=1)] = 5,
    items: Annotated[int | None, typer.Option(help="Items of a workload at most.", min=8, show_default="all")] = None,
    price: Annotated[float | None, typer.Option(help="Of an hour of this machine, in your currency.", min=0)] = None,
    out: OutOption = Path("batchproj-bench"),
    as_json: JsonFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Compare speeds on this machine: batchproj, the best loop by hand, the usual one, Ray Data, Daft and others.

    Hours for all of it. Each runs in fresh processes with the same weights, rounds interleaved, and only if it gives
    the right vectors. Let nothing else run beside it: rounds in which the machine was busy are void.
    """
    from batchproj.bench import contenders as known
    from batchproj.bench import workloads as present
    from batchproj.bench.benchmark import Settings, benchmark, require_writable, save
    from batchproj.bench.picture import picture

    wanted = present.chosen(workloads or [])
    taking_part = known.chosen(contenders.split(",") if contenders is not None else [])
    require_writable(out)
    settings = Settings(rounds=rounds, items=items, price=price)
    stopping_line("stopped; no workload was done yet, nothing is kept")
    with console(verbose) as stream:
        for document in benchmark(wanted, taking_part, settings, lambda line: print(line, file=stream, flush=True)):
            file = save(document, out)
            stopping_line(f"stopped; the workloads done before are in {file}, the rounds of the one under way are lost")
        drawn = picture(document)
        if drawn is not None:
            file.with_suffix(".svg").write_bytes(drawn)
    if as_json:
        print_json(document.model_dump(mode="json"))
        return
    from rich.console import Console

    from batchproj.bench.table import notes, table

    Console().print(table(document))
    for line in notes(document):
        say(f"  {line}")
    beside = "its picture beside it" if drawn else "for a picture: pip install 'batchproj[bench]'"
    print(f"All that was measured is in {file}, {beside}.")
    print("Next: the same with --rounds 9, where nothing else runs; ratios of two machines do not compare.")
