"""Curves with bands over an axis and heat maps over two, drawn by matplotlib where it is installed."""

from __future__ import annotations

import importlib.util
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnguide.ablation.axes import Axis
from attnguide.ablation.summary import Estimate, Record, estimate, grouped, metrics_of, plain_of
from attnguide.run_folder.files import replacing
from attnguide.run_folder.records import AXIS
from attnguide.sheets.colors import css, method_color
from attnguide.text.html import Color
from attnguide.types import PLAIN

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLOTS_FOLDER = "plots"
MOST_CURVES = 10
"""Most curves in one plot that can be told apart."""

_MOST_TICKS = 12
_DASHES: tuple[tuple[float, ...], ...] = ((), (4, 1.5), (1, 1), (6, 1, 1, 1))
"""Line styles in turn, so that curves on one another can be told apart."""


def can_plot() -> bool:
    """Whether matplotlib is installed (the extra ``plots``)."""
    return importlib.util.find_spec("matplotlib") is not None


@dataclass(frozen=True)
class Curve:
    """A metric along an axis.

    Attributes:
        label: Values of the other axes, as text.
        xs: Values of the axis, rising.
        points: The metric's mean and interval at each of ``xs``.
        method: Method of all its rows; empty if they have several.
    """

    label: str
    xs: tuple[float, ...]
    points: tuple[Estimate, ...]
    method: str = ""


def steered(records: Sequence[Record], axes: Sequence[Axis]) -> list[Record]:
    """Records of rows that have a value on every axis; plain rows are left out."""
    return [record for record in records if all(record.get(AXIS + axis.name) for axis in axes)]


def curves(records: Sequence[Record], axes: Sequence[Axis], over: Axis, metric: str) -> list[Curve]:
    """A metric over one axis: a curve for each combination of the other axes, or, if many, for each value of the first.

    Args:
        records: Lines of ``records.csv``.
        axes: Axes of the ablation.
        over: The numeric axis on the abscissa.
        metric: Column of the records.
    """
    others = [axis for axis in axes if axis.name != over.name]
    lines = 1
    for count, axis in enumerate(others):
        lines *= len(axis.points)
        if count and lines > MOST_CURVES:
            others = others[:1]
    columns = [AXIS + axis.name for axis in others]
    found = []
    for key, rows in grouped(steered(records, axes), columns).items():
        along = {float(x): estimate(members, metric) for (x,), members in grouped(rows, [AXIS + over.name]).items()}
        points = [(x, value) for x, value in sorted(along.items()) if value is not None]
        if points:
            label = ", ".join(f"{axis.name} = {value}" for axis, value in zip(others, key, strict=True))
            methods = {record.get("method", "") for record in rows}
            method = methods.pop() if len(methods) == 1 else ""
            found.append(Curve(label, tuple(x for x, _ in points), tuple(value for _, value in points), method))
    return found


def heat(records: Sequence[Record], axes: Sequence[Axis], across: Axis, down: Axis, metric: str) -> list[list[Estimate | None]]:
    """A metric's mean over all other axes, as rows ``down`` by columns ``across``; ``None`` where no row has it."""
    cells = grouped(steered(records, axes), [AXIS + down.name, AXIS + across.name])
    by_place = {place: estimate(members, metric) for place, members in cells.items()}
    return [[by_place.get((_text(y.value), _text(x.value))) for x in across.points] for y in down.points]


def _text(value: Any) -> str:
    """A value as ``records.csv`` has it."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


# --------------------------------------------------------------------------------------------------------------- drawing


def write_plots(folder: Path, axes: Sequence[Axis], records: Sequence[Record], strength: str | None = None) -> Iterator[Path]:
    """Draw every metric but costs over every numeric axis and every two axes, into ``plots/``; yields each file's path.

    A metric that is the same in all rows is not drawn.

    Args:
        folder: The run folder.
        axes: Axes of the ablation.
        records: Lines of ``records.csv``.
        strength: Name of the axis that gets a scale of base 2, if one does.
    """
    varied = [axis for axis in axes if len(axis.points) > 1]
    for metric in varying_metrics(records, axes):
        for axis in varied:
            if axis.is_numeric:
                figure = _line(records, axes, axis, metric, octaves=axis.name == strength)
                yield save_figure(folder / PLOTS_FOLDER / f"{slug(metric)}-over-{slug(axis.name)}.png", figure)
        for across, down in itertools.combinations(varied, 2):
            name = f"{slug(metric)}-over-{slug(across.name)}-and-{slug(down.name)}.png"
            yield save_figure(folder / PLOTS_FOLDER / name, _map(records, axes, across, down, metric))


def varying_metrics(records: Sequence[Record], axes: Sequence[Axis]) -> list[str]:
    """Metrics, costs aside, that have more than one value over all rows, plain rows included."""
    found = metrics_of(steered(records, axes), costs=False)
    return [metric for metric in found if len({float(record[metric]) for record in records if record.get(metric)}) > 1]


def slug(name: str) -> str:
    """A name as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9._]+", "_", name)


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A matplotlib figure with one plot; width and height in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")  # no pyplot: nothing global, no display
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def save_figure(path: Path, figure: Figure) -> Path:
    """Write a figure atomically; returns its path."""
    with replacing(path) as temporary:
        figure.savefig(temporary)
    return path


def _line(records: Sequence[Record], axes: Sequence[Axis], over: Axis, metric: str, *, octaves: bool) -> Figure:
    figure, plot = new_figure(7, 4.2)
    found = curves(records, axes, over, metric)
    for curve, color, dashes in zip(found, curve_colors([curve.method for curve in found]), itertools.cycle(_DASHES)):
        means = [point.mean for point in curve.points]
        plot.plot(curve.xs, means, color=color, dashes=dashes, marker="o", markersize=3.5, label=curve.label or metric)
        low, high = [point.low for point in curve.points], [point.high for point in curve.points]
        plot.fill_between(curve.xs, low, high, color=color, alpha=0.12, linewidth=0)
    plain = estimate(plain_of(records), metric)
    if plain is not None:
        plot.axhline(plain.mean, color="0.3", linestyle=(0, (4, 3)), linewidth=1, label=PLAIN)
        plot.axhspan(plain.low, plain.high, color="0.3", alpha=0.1, linewidth=0)
    if octaves and all(float(point.value) > 0 for point in over.points):
        plot.set_xscale("log", base=2)
    plain_ticks(plot, sorted(float(point.value) for point in over.points))
    plot.set_xlabel(over.name)
    plot.set_ylabel(metric)
    plot.set_title(f"{metric} over {over.name}, mean and 95 % interval", fontsize=10)
    plot.grid(alpha=0.25)
    if len(plot.get_legend_handles_labels()[0]) > 1:
        plot.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def curve_colors(methods: Sequence[str]) -> list[str]:
    """A colour for each curve: its method's, lighter for a method's further curves; matplotlib's ten if all have one method.

    Args:
        methods: Method of each curve; an empty text (several methods) gets one of matplotlib's ten as well.
    """
    if len(set(methods)) == 1 < len(methods):
        return [f"C{index % 10}" for index in range(len(methods))]
    before = [methods[:index].count(method) for index, method in enumerate(methods)]
    return [
        css(_lighter(method_color(method), count)) if method else f"C{index % 10}"
        for index, (method, count) in enumerate(zip(methods, before, strict=True))
    ]


def _lighter(color: Color, count: int) -> Color:
    """A colour mixed with white: 0.6 to the power of ``count`` of it remains."""
    red, green, blue = (round(255 - (255 - part) * 0.6**count) for part in color)
    return red, green, blue


def plain_ticks(plot: Axes, places: Sequence[float]) -> None:
    """Put ticks at ``places`` on the abscissa, unless they are too many, and write numbers without exponents."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    plot.xaxis.set_minor_locator(NullLocator())
    if 0 < len(places) <= _MOST_TICKS:
        plot.set_xticks(list(places))
    for axis in (plot.xaxis, plot.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))


def _map(records: Sequence[Record], axes: Sequence[Axis], across: Axis, down: Axis, metric: str) -> Figure:
    table = heat(records, axes, across, down, metric)
    figure, plot = new_figure(2.2 + 0.75 * len(across.points), 1.6 + 0.45 * len(down.points))
    values = [[float("nan") if cell is None else cell.mean for cell in line] for line in table]
    known = [cell.mean for line in table for cell in line if cell is not None]
    middle = min(known) + 0.6 * (max(known) - min(known))
    image = plot.imshow(values, cmap="viridis", aspect="auto")
    for y, line in enumerate(table):
        for x, cell in enumerate(line):
            if cell is not None:
                dark = cell.mean < middle
                plot.text(x, y, f"{cell.mean:.2f}", ha="center", va="center", fontsize=7, color="white" if dark else "black")
    plot.set_xticks(range(len(across.points)), [point.label for point in across.points], rotation=30, ha="right", fontsize=8)
    plot.set_yticks(range(len(down.points)), [point.label for point in down.points], fontsize=8)
    plot.set_xlabel(across.name)
    plot.set_ylabel(down.name)
    others = [axis.name for axis in axes if axis not in (across, down) and len(axis.points) > 1]
    plot.set_title(metric + (f", over all {', '.join(others)}" if others else ""), fontsize=10)
    figure.colorbar(image)
    return figure
