"""How a training run went, as one SVG: loss and recall on the validation slice over the steps."""

from __future__ import annotations

from collections.abc import Sequence

WIDTH, HEIGHT, MARGIN = 640, 320, 48
_LOSS, _RECALL, _CHOSEN = "#c2571a", "#1f6fb2", "#777777"

Point = tuple[float, float]


def learning_curve(
    title: str, steps: Sequence[int], loss: Sequence[float], recall: Sequence[float], chosen: int
) -> str:
    """Loss against the left axis, recall (0 to 1) against the right; `chosen` is the number of steps taken over."""
    last, top = max(steps), max(loss)
    parts = [
        _text(WIDTH / 2, 20, title, "middle", "#333333"),
        f'<path d="M{MARGIN},{MARGIN} V{HEIGHT - MARGIN} H{WIDTH - MARGIN} V{MARGIN}" fill="none" stroke="#999999"/>',
        *_ticks(last, top),
        _line([_place(step / last, value / top) for step, value in zip(steps, loss, strict=True)], _LOSS),
        _line([_place(step / last, value) for step, value in zip(steps, recall, strict=True)], _RECALL),
        _text(MARGIN, MARGIN - 10, "loss", "start", _LOSS),
        _text(WIDTH - MARGIN, MARGIN - 10, "recall on the validation slice", "end", _RECALL),
        _marked(chosen, last),
    ]
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    body = "\n".join(part for part in parts if part)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>\n{body}\n</svg>\n'
    )


def _place(across: float, up: float) -> Point:
    """Shares of the axes -> pixels."""
    return MARGIN + across * (WIDTH - 2 * MARGIN), HEIGHT - MARGIN - up * (HEIGHT - 2 * MARGIN)


def _ticks(last: int, top: float) -> list[str]:
    drawn = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = _place(share, share)
        drawn += [
            _text(x, HEIGHT - MARGIN + 18, f"{share * last:,.0f}", "middle", "#333333"),
            _text(MARGIN - 6, y + 4, f"{share * top:.2f}", "end", _LOSS),
            _text(WIDTH - MARGIN + 6, y + 4, f"{share:.2f}", "start", _RECALL),
        ]
    return [*drawn, _text(WIDTH / 2, HEIGHT - 12, "steps", "middle", "#333333")]


def _line(points: Sequence[Point], colour: str) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>{dots}'


def _marked(chosen: int, last: int) -> str:
    (x, low), (_, high) = _place(chosen / last, 0), _place(chosen / last, 1)
    return f'<path d="M{x:.1f},{low:.1f} V{high:.1f}" stroke="{_CHOSEN}" stroke-dasharray="4 3"/>'


def _text(x: float, y: float, text: str, anchor: str, colour: str) -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;")
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escaped}</text>'
