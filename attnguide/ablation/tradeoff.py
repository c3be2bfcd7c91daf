"""Plot of control against quality along a method's strengths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attnguide.ablation.axes import Axis, Tradeoff
from attnguide.ablation.plots import PLOTS_FOLDER, curve_colors, new_figure, plain_ticks, save_figure, slug
from attnguide.ablation.stability import QUALITY_LOSS, Climb, climbs, counted
from attnguide.ablation.summary import Estimate, Record, estimate, plain_of
from attnguide.types import PLAIN

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def write_tradeoff(folder: Path, axes: Sequence[Axis], records: Sequence[Record], tradeoff: Tradeoff) -> Iterator[Path]:
    """Draw ``plots/<control>-against-<quality>.png``, if any record has both metrics; yields the file's path.

    Quality is the abscissa and control the ordinate; for both higher is better, so the best corner is the upper right. Every
    curve joins the strengths of one way of steering, with 95 % intervals; its strongest point is labelled.
    """
    records = counted(records, (tradeoff.control, tradeoff.quality))
    found = [(climb, points) for climb in climbs(records, axes, tradeoff.strength) if (points := _points(climb, tradeoff))]
    if found:
        figure = _draw(found, _point(plain_of(records), tradeoff), tradeoff)
        name = f"{slug(tradeoff.control)}-against-{slug(tradeoff.quality)}.png"
        yield save_figure(folder / PLOTS_FOLDER / name, figure)


_STYLES = ("-o", "--s", ":^", "-.D")
"""Line and marker styles in turn, so that overlapping curves can be told apart."""

_Point = tuple[Estimate, Estimate]
"""Quality and control of one strength."""


def _point(records: Sequence[Record], tradeoff: Tradeoff) -> _Point | None:
    quality, control = estimate(records, tradeoff.quality), estimate(records, tradeoff.control)
    return None if quality is None or control is None else (quality, control)


def _points(climb: Climb, tradeoff: Tradeoff) -> list[tuple[float, _Point]]:
    """Each strength of a curve with its quality and control; strengths without either metric are left out."""
    places = ((strength, _point(rows, tradeoff)) for strength, rows in zip(climb.strengths, climb.records, strict=True))
    return [(strength, place) for strength, place in places if place is not None]


def _draw(found: Sequence[tuple[Climb, Sequence[tuple[float, _Point]]]], plain: _Point | None, tradeoff: Tradeoff) -> Figure:
    figure, plot = new_figure(8, 5.2)
    colors = curve_colors([_method(climb) for climb, _ in found])
    for index, ((climb, points), color) in enumerate(zip(found, colors, strict=True)):
        places = [place for _, place in points]
        drawn = _with_whiskers(plot, places, climb.label, _STYLES[index % len(_STYLES)], color)
        strongest, (quality, control) = points[-1]
        place = (quality.mean, control.mean)
        plot.annotate(f"{strongest:g}", place, xytext=(3, 3), textcoords="offset points", fontsize=8, color=drawn)
    if plain is not None:
        _with_whiskers(plot, [plain], PLAIN, "*", "black")
        plot.axvline(plain[0].mean - QUALITY_LOSS, color="0.3", linestyle=(0, (4, 3)), linewidth=0.8)
    plain_ticks(plot, ())
    plot.set_xlabel(f"{tradeoff.quality} (quality)")
    plot.set_ylabel(f"{tradeoff.control} (control)")
    plot.set_title(
        f"{tradeoff.control} against {tradeoff.quality} along {tradeoff.strength}, means and 95 % intervals", fontsize=10
    )
    plot.grid(alpha=0.25)
    plot.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def _method(climb: Climb) -> str:
    """Method of all rows of a curve; empty if they have several."""
    methods = {record.get("method", "") for records in climb.records for record in records}
    return methods.pop() if len(methods) == 1 else ""


def _with_whiskers(plot: Axes, places: Sequence[_Point], label: str, style: str, color: str) -> str:
    """Draw one curve with error bars; returns its colour."""
    quality, control = zip(*places, strict=True)
    spreads = [[[e.mean - e.low for e in along], [e.high - e.mean for e in along]] for along in (quality, control)]
    _, _, whiskers = plot.errorbar(
        [e.mean for e in quality],
        [e.mean for e in control],
        xerr=spreads[0],
        yerr=spreads[1],
        fmt=style,
        color=color,
        label=label,
        markersize=9 if style == "*" else 3.5,
        linewidth=1.2,
        elinewidth=0.5,
    )
    for bars in whiskers:
        bars.set_alpha(0.45)
    return color
