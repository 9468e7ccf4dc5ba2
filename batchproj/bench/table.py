"""The document of a benchmark as one table that fits into 80 columns."""

from __future__ import annotations

from typing import Any

from batchproj.bench.benchmark import Document, Result
from batchproj.bench.contenders import CEILING
from batchproj.bench.figures import Figures, Ratio

_HEAD = (
    ("speed", "steady speed, times the ceiling's: median of the rounds, and their range"),
    ("whole", "the same with start-up and end"),
    ("x def", "steady speed, times the usual loop's"),
    ("cpu", "processor seconds of the whole machine, times the ceiling's"),
    ("start", "seconds until the model is loaded and has its first item"),
    ("items/s", "steady"),
    ("pad", "tokens computed for each of the input"),
    ("d/m/w", "waiting for decoded input, model, writing: % of the steady time; side by side they add up to more"),
    ("peak", "arithmetic that was needed, % of the machine's measured rate"),
    ("/M", "price of a million items, steady"),
)

_SHORT_S = 2.0
"""Where the ceiling is done in less, beginning and end weigh too much."""


def table(document: Document) -> Any:
    """A rich table; columns that nobody has a figure for are left out. `~` is before figures of void rounds."""
    from rich.table import Table

    timed = [one for result in document.results for one in result.contenders.values()]
    used = [any(_cells(one)[column] for one in timed) for column in range(len(_HEAD))]
    titles = [title for (title, _), is_used in zip(_HEAD, used, strict=True) if is_used]
    made = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    made.add_column("", no_wrap=True)
    for title in titles:
        made.add_column(title, justify="right", no_wrap=True)
    for result in document.results:
        made.add_row(_heading(result), style="bold")
        for name, one in result.contenders.items():
            cells = [cell for cell, is_used in zip(_cells(one), used, strict=True) if is_used]
            made.add_row(
                name.replace("sentence-", "sentence-\n"), *(["left out"] if one.missing is not None else cells)
            )
    return made


def _heading(result: Result) -> str:
    lines = [result.workload, f"{result.items:,} items"]
    if result.missing is not None:
        return "\n".join([*lines, "left out"])
    rounds = f"{result.valid} round{'s' * (result.valid != 1)}"
    return "\n".join([*lines, rounds, *([f"{result.void} void"] if result.void else [])])


def notes(document: Document) -> list[str]:
    """What the columns mean, why who is left out, and which figures are worth nothing."""
    lines = [f"{title}: {meaning}" for title, meaning in _HEAD]
    for result in document.results:
        if result.missing is not None:
            lines.append(f"{result.workload}: left out: {result.missing}")
            continue
        for name, one in result.contenders.items():
            if one.missing is not None:
                lines.append(f"{result.workload}, {name}: left out: {one.missing}")
        ceiling = result.contenders.get(CEILING)
        if ceiling is not None and ceiling.items_per_s and (steady_s := result.items / ceiling.items_per_s) < _SHORT_S:
            lines.append(
                f"{result.workload}: {CEILING} is done in {steady_s:.1f} s: where work begins and ends weighs most, "
                "these figures tell little of longer jobs"
            )
        if not result.valid:
            lines.append(f"{result.workload}: every round is void, the machine was busy: ~ figures mean little")
    return lines


def _cells(one: Figures) -> list[str]:
    shares = [one.decode, one.model, one.write]
    return [
        _ratio(one.speed, "~" if one.void else ""),
        "" if one.speed_whole is None else f"{one.speed_whole.median:.2f}",
        "" if one.over_default is None else f"{one.over_default.median:.1f}",
        "" if one.busy is None else f"{one.busy.median:.1f}",
        "" if one.start_s is None else f"{one.start_s:.1f}",
        "" if one.items_per_s is None else f"{one.items_per_s:,.{1 if one.items_per_s < 100 else 0}f}",
        "" if one.padding is None else f"{one.padding:.2f}",
        "/".join("?" if share is None else f"{100 * share:.0f}" for share in shares) if any(shares) else "",
        "" if one.of_peak is None else f"{100 * one.of_peak:.0f}",
        "" if one.per_million is None else f"{one.per_million:.2f}",
    ]


def _ratio(ratio: Ratio | None, mark: str) -> str:
    return "" if ratio is None else f"{mark}{ratio.median:.2f}\n{ratio.low:.2f}-{ratio.high:.2f}"
