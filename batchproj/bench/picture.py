"""The document of a benchmark as one SVG: steady speed of every contender, as a share of the ceiling's."""

from __future__ import annotations

from typing import Any

from batchproj.bench.benchmark import Document
from batchproj.bench.contenders import CEILING


def picture(document: Document) -> bytes | None:
    """Bars by workload; who is left out has none. None without pygal: it is not worth losing the figures."""
    try:
        import pygal
    except ImportError:
        return None
    names = {name: None for result in document.results for name in result.contenders if name != CEILING}
    chart: Any = pygal.HorizontalBar(
        js=[],  # it would fetch a script from elsewhere
        title=f"Steady speed, {CEILING} = 1 (medians of rounds)",
        legend_at_bottom=True,
        print_values=True,
        value_formatter=lambda value: f"{value:.2f}",
        width=900,
        height=160 + 26 * len(names) * len(document.results),
    )
    chart.x_labels = [f"{result.workload}{'' if result.valid else ' (void)'}" for result in document.results]
    for name in names:
        chart.add(name, [_speed(result.contenders.get(name)) for result in document.results])
    rendered: bytes = chart.render()
    return rendered


def _speed(one: Any) -> float | None:
    return None if one is None or one.speed is None else one.speed.median
