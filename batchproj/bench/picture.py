"""The document of a benchmark as one SVG: steady speed of every contender, as a share of the ceiling's."""

from __future__ import annotations

import io

from batchproj.bench.benchmark import Document, Result
from batchproj.bench.contenders import CEILING

_INCHES_WIDE = 9.0
_BAR = 0.28
"""Inches a bar takes, with its share of the space between."""


def picture(document: Document) -> bytes | None:
    """Bars by workload, with the range of the rounds; who is left out has none.

    None without matplotlib: a picture is not worth losing the figures.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    shown = [result for result in document.results if any(one.speed for one in result.contenders.values())]
    figure = Figure((_INCHES_WIDE, 1 + sum(_BAR * (len(_bars(result)) + 1) + 0.3 for result in shown)), layout="tight")
    panels = figure.subplots(max(1, len(shown)), 1, sharex=True, squeeze=False)[:, 0]
    for panel, result in zip(panels, shown, strict=False):
        bars = _bars(result)[::-1]
        medians = [median for _, median, _, _ in bars]
        spread = [[m - low for _, m, low, _ in bars], [high - m for _, m, _, high in bars]]
        drawn = panel.barh([name for name, *_ in bars], medians, xerr=spread, ecolor="#555555", color="#1f6fb2")
        panel.bar_label(drawn, [f"{median:.2f}" for median in medians], padding=4)
        panel.axvline(1, color="#c2571a", linewidth=1)
        panel.set_title(f"{result.workload}{'' if result.valid else ' (void rounds only)'}", loc="left", fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel(f"steady speed, {CEILING} = 1: median and range of rounds")
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def _bars(result: Result) -> list[tuple[str, float, float, float]]:
    """Name, median, least and greatest ratio of those that were timed."""
    ratios = {name: one.speed for name, one in result.contenders.items() if name != CEILING}
    return [(name, ratio.median, ratio.low, ratio.high) for name, ratio in ratios.items() if ratio is not None]
