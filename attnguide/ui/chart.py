"""Chart of losses over steps as SVG, which the page updates after each step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from html import escape

Loss = tuple[int, float, str]
"""Step, loss and the name of the row."""

_WIDE, _HIGH, _LEFT, _BELOW = 560, 240, 56, 34
_DASHES = ("none", "6 3", "2 2", "8 3 2 3")
"""Dash patterns in turn of the rows' lines, which all have the method's colour."""


def loss_chart(losses: Sequence[Loss], steps: int, color: str) -> str:
    """HTML of a chart with a line for each row and a legend; a sentence if there is no finite loss yet.

    Args:
        losses: Loss of every update, in order.
        steps: Number of steps of the schedule, which the abscissa spans.
        color: CSS colour of the lines.
    """
    points = [(step, loss, row) for step, loss, row in losses if math.isfinite(loss)]
    if not points:
        return "<p>no loss so far; a method without a gradient has none</p>"
    low, high = min(0.0, *(loss for _, loss, _ in points)), max(loss for _, loss, _ in points)
    high = high if high > low else low + 1
    across = (_WIDE - _LEFT - 8) / max(steps - 1, 1)
    up = (_HIGH - _BELOW - 8) / (high - low)

    def place(step: float, loss: float) -> tuple[float, float]:
        return _LEFT + step * across, _HIGH - _BELOW - (loss - low) * up

    drawn = [*_axes(low, high, steps, place), *_lines(points, color, place)]
    return (
        f'<svg viewBox="0 0 {_WIDE} {_HIGH}" role="img" aria-label="loss over the steps" '
        f'style="width:100%;max-width:{_WIDE}px;font-size:12px" fill="currentColor">{"".join(drawn)}</svg>'
        f"<div>{''.join(_legend(points, color))}</div>"
    )


_Place = Callable[[float, float], tuple[float, float]]


def _axes(low: float, high: float, steps: int, place: _Place) -> Iterator[str]:
    """SVG of horizontal grid lines with their losses, step labels and axis titles."""
    for loss in ticks(low, high):
        x, y = place(0, loss)
        yield f'<line x1="{x:.1f}" x2="{_WIDE - 8}" y1="{y:.1f}" y2="{y:.1f}" stroke="currentColor" stroke-opacity="0.15"/>'
        yield f'<text x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{loss:.6g}</text>'
    for step in ticks(0, steps - 1, whole=True):
        yield f'<text x="{place(step, low)[0]:.1f}" y="{_HIGH - _BELOW + 16}" text-anchor="middle">{step:.6g}</text>'
    yield f'<text x="{(_LEFT + _WIDE) / 2}" y="{_HIGH - 2}" text-anchor="middle">step</text>'
    middle = (_HIGH - _BELOW) / 2
    yield f'<text x="12" y="{middle}" transform="rotate(-90 12 {middle})" text-anchor="middle">loss</text>'


def _lines(points: Sequence[Loss], color: str, place: _Place) -> Iterator[str]:
    for index, row in enumerate(dict.fromkeys(row for _, _, row in points)):
        along = " ".join("{:.1f},{:.1f}".format(*place(step, loss)) for step, loss, whose in points if whose == row)
        x, y = place(*next((step, loss) for step, loss, whose in reversed(points) if whose == row))
        yield f'<polyline points="{along}" fill="none" stroke-width="2" {_look(index, color)}/>'
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>'


def _legend(points: Sequence[Loss], color: str) -> Iterator[str]:
    for index, row in enumerate(dict.fromkeys(row for _, _, row in points)):
        line = f'<line x1="0" x2="24" y1="6" y2="6" stroke-width="2" {_look(index, color)}/>'
        sample = f'<svg width="24" height="12" style="display:inline">{line}</svg>'
        yield f'<span style="margin-right:1em;font-size:12px">{sample} {escape(row)}</span>'


def _look(index: int, color: str) -> str:
    faint = max(0.35, 1 - 0.15 * index)
    return f'stroke="{color}" stroke-dasharray="{_DASHES[index % len(_DASHES)]}" stroke-opacity="{faint:.2f}"'


def ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Three to eight round numbers from ``low`` to ``high``.

    Args:
        low: Lower end.
        high: Upper end.
        whole: Whether to give whole numbers only, possibly fewer.

    Example:
        >>> ticks(0, 0.7), ticks(0, 3, whole=True)
        ([0.0, 0.2, 0.4, 0.6], [0, 1, 2, 3])
    """
    span = high - low
    if span <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(span / 3))
    apart = max(factor * power for factor in (1, 2, 5) if factor == 1 or factor * power <= span / 3)
    apart = max(1, round(apart)) if whole else apart
    first, last = math.ceil(low / apart - 1e-9), math.floor(high / apart + 1e-9)
    return [index * apart if whole else round(index * apart, 12) for index in range(first, last + 1)]
