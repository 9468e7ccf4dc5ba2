"""The document of a benchmark as one table for the terminal."""

from __future__ import annotations

from typing import Any

from batchproj.bench.benchmark import Document, Result
from batchproj.bench.figures import Figures, Ratio

_HEAD = (
    ("speed", "steady speed, times the ceiling's: median of rounds (range)"),
    ("whole", "the same with start-up and end"),
    ("x default", "times the usual loop's steady speed"),
    ("cpu", "processor seconds, times the ceiling's"),
    ("start s", "until the model is loaded and has its first item"),
    ("items/s", ""),
    ("pad", "tokens computed for each of the input"),
    ("d/m/w %", "decoding, model, writing: share of the steady time; side by side they add up to more"),
    ("peak %", "arithmetic needed, of the machine's measured rate"),
    ("per million", "at the price given"),
)


def table(document: Document) -> Any:
    """A rich table; columns that nobody has a figure for are left out."""
    from rich.table import Table

    rows = [(result, name, one) for result in document.results for name, one in result.contenders.items()]
    cells = [_cells(one) for _, _, one in rows]
    used = [any(row[column] for row in cells) for column in range(len(_HEAD))]
    made = Table(box=None, pad_edge=False)
    made.add_column("workload", overflow="fold")
    made.add_column("contender", no_wrap=True)
    for (title, _), is_used in zip(_HEAD, used, strict=True):
        if is_used:
            made.add_column(title, justify="right", no_wrap=True)
    last = None
    for (result, name, one), values in zip(rows, cells, strict=True):
        if result is not last and last is not None:
            made.add_section()
        said = [value for value, is_used in zip(values, used, strict=True) if is_used]
        if one.missing is not None:
            said = ["left out", *[""] * (len(said) - 1)] if said else []
        made.add_row(_workload(result) if result is not last else "", name, *said)
        last = result
    return made


def _workload(result: Result) -> str:
    void = f", {result.void} void" if result.void else ""
    return f"{result.workload} ({result.items:,}; {result.valid} rounds{void})"


def notes(document: Document) -> list[str]:
    """What the columns mean, why who is left out, and which figures are worth nothing."""
    lines = [f"{title}: {meaning}" for title, meaning in _HEAD if meaning]
    for result in document.results:
        if result.missing is not None:
            lines.append(f"{result.workload}: left out: {result.missing}")
            continue
        for name, one in result.contenders.items():
            if one.missing is not None:
                lines.append(f"{result.workload}, {name}: left out: {one.missing}")
        if not result.valid:
            lines.append(f"{result.workload}: every round is void, the machine was busy: ~ figures mean little")
    return lines


def _cells(one: Figures) -> list[str]:
    mark = "~" if one.void else ""
    shares = [one.decode, one.model, one.write]
    return [
        _ratio(one.speed, mark),
        "" if one.speed_whole is None else f"{mark}{one.speed_whole.median:.2f}",
        "" if one.over_default is None else f"{mark}{one.over_default.median:.1f}",
        "" if one.busy is None else f"{mark}{one.busy.median:.2f}",
        "" if one.start_s is None else f"{mark}{one.start_s:.1f}",
        "" if one.items_per_s is None else f"{mark}{one.items_per_s:,.{1 if one.items_per_s < 100 else 0}f}",
        "" if one.padding is None else f"{one.padding:.2f}",
        "/".join("?" if share is None else f"{100 * share:.0f}" for share in shares) if any(shares) else "",
        "" if one.of_peak is None else f"{mark}{100 * one.of_peak:.1f}",
        "" if one.per_million is None else f"{mark}{one.per_million:.2f}",
    ]


def _ratio(ratio: Ratio | None, mark: str) -> str:
    if ratio is None:
        return ""
    return f"{mark}{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
