"""Matplotlib figures for papers: sheets of pictures, maps over steps, losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from attnguide.figures.watch import Watch, Watched
from attnguide.prompt.regions import rasterise
from attnguide.sheets.colors import css, method_color
from attnguide.text.html import region_colors
from attnguide.types import SampleResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Kind = Literal["sheet", "maps", "loss"]
KINDS: tuple[Kind, ...] = ("sheet", "maps", "loss")

_LINES = ("-", "--", ":", "-.")
"""Line styles in turn of the rows of one method, which share a colour."""

_CELL = 1.6
"""Side of a picture in inches."""

_MASK = 128
"""Side in cells at which masks, polygons and blobs are rasterised before they are outlined."""


def plot(
    what: Watch | Watched | SampleResult | Sequence[SampleResult],
    kind: Kind | None = None,
    *,
    steps: int = 6,
    cell: float = _CELL,
) -> Figure:
    """Draw results, or the maps or losses of watched rows.

    Args:
        what: Results for a ``sheet``; a :class:`~attnguide.figures.watch.Watch`, or one of its rows, for ``maps`` and ``loss``.
        kind: ``sheet``: pictures, a row a seed and a column a method, regions outlined. ``maps``: the attention of each phrase
            over the picture, a row a phrase and a column a step, one scale for all. ``loss``: every update's loss over the
            steps, a line a row. When ``None``: ``sheet`` for results, ``maps`` for watched rows.
        steps: Columns of ``maps``, evenly spread over the steps.
        cell: Side of a picture in inches.

    Returns:
        A matplotlib figure, which notebooks show and ``savefig`` writes (``.pdf`` for papers).

    Raises:
        ValueError: If ``what`` has no pictures, maps or losses to draw, or matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ValueError("plot needs matplotlib: pip install 'attnguide[plots]'.") from error
    watched = list(what.rows) if isinstance(what, Watch) else [what] if isinstance(what, Watched) else []
    kind = kind or ("maps" if watched else "sheet")
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}.")
    if kind == "sheet":
        results = [row.result for row in watched] or ([what] if isinstance(what, SampleResult) else list(what))  # type: ignore[arg-type]
        return _sheet(results, cell)
    if not watched:
        raise ValueError(f"kind {kind!r} needs an attnguide.Watch that observed at least one row; got {type(what).__name__}.")
    return _maps(watched, steps, cell) if kind == "maps" else _losses(watched, cell)


def _new(rows: int, columns: int, cell: float) -> tuple[Figure, Any]:
    from attnguide.figures.figure import subplots  # matplotlib is an extra

    return subplots(rows, columns, cell)


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])


def _sheet(results: Sequence[SampleResult], cell: float) -> Figure:
    if not results:
        raise ValueError("plot needs at least one result; got none.")
    seeds = list(dict.fromkeys((result.sample.prompt, result.sample.seed) for result in results))
    methods = list(dict.fromkeys(result.sample.method for result in results))
    figure, axes = _new(len(seeds), len(methods), cell)
    for field in axes.flat:
        _bare(field)
    for result in results:
        row, column = seeds.index((result.sample.prompt, result.sample.seed)), methods.index(result.sample.method)
        _picture(axes[row, column], result)
    for column, method in enumerate(methods):
        axes[0, column].set_title(method, fontsize="small", color=css(method_color(method)))
    for row, (_, seed) in enumerate(seeds):
        axes[row, 0].set_ylabel(f"seed {seed}", fontsize="small")
    return figure


def _picture(axes: Axes, result: SampleResult) -> None:
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import AbstractPathEffect, withStroke

    if result.image is None:
        axes.text(
            0.5, 0.5, result.status[:40], ha="center", va="center", fontsize="x-small", wrap=True, transform=axes.transAxes
        )
        return
    width, height = result.image.size
    axes.imshow(np.asarray(result.image.convert("RGB")), extent=(0, width, height, 0))
    colors = region_colors([region.phrase for region in result.sample.regions])
    for ink, region in zip(colors, result.sample.regions, strict=True):
        color = tuple(part / 255 for part in ink)
        # so that it shows on an object of its colour
        edged: list[AbstractPathEffect] = [withStroke(linewidth=2, foreground="white")]
        if region.box is not None:
            x0, y0, x1, y1 = region.box
            place = ((x0 * width, y0 * height), (x1 - x0) * width, (y1 - y0) * height)
            axes.add_patch(Rectangle(*place, fill=False, edgecolor=color, linewidth=1.2, path_effects=edged))
        elif region.has_place and region.source is None:
            inside, level = rasterise(region, _MASK, _MASK).numpy(), np.exp(-0.5) if region.blob else 0.5
            along = [(np.arange(_MASK) + 0.5) / _MASK * side for side in (width, height)]
            if inside.min() < level < inside.max():  # a blob's edge is at one standard deviation
                axes.contour(*along, inside, levels=[level], colors=[color], linewidths=1.2).set_path_effects(edged)


def _maps(rows: Sequence[Watched], steps: int, cell: float) -> Figure:
    lines = [(row, phrase, maps) for row in rows for phrase, maps in row.maps.items()]
    if not lines:
        raise ValueError("The watched rows have no maps.")
    count = max(len(maps) for _, _, maps in lines)
    at = np.unique(np.linspace(0, count - 1, max(1, min(steps, count))).round().astype(int))
    figure, axes = _new(len(lines), len(at) + 1, cell)
    top = max(float(maps.max()) for _, _, maps in lines)
    shown: Any = None
    for line, (row, phrase, maps) in enumerate(lines):
        _bare(axes[line, 0])
        _picture(axes[line, 0], row.result)
        axes[line, 0].set_ylabel(f"{phrase}\nseed {row.result.sample.seed}, {row.result.sample.method}", fontsize="x-small")
        for column, index in enumerate(at, 1):
            _bare(axes[line, column])
            shown = axes[line, column].imshow(maps[min(index, len(maps) - 1)], cmap="inferno", vmin=0, vmax=top)
    for column, index in enumerate(at, 1):
        axes[0, column].set_title(f"step {index}", fontsize="small")
    figure.colorbar(shown, ax=axes[:, -1].tolist(), label="attention", shrink=0.8)
    return figure


def _losses(rows: Sequence[Watched], cell: float) -> Figure:
    figure, axes = _new(1, 1, 3 * cell)
    field = axes[0, 0]
    drawn: dict[str, int] = {}
    for row in rows:
        for guidance, updates in row.losses.items():
            nth = drawn[guidance] = drawn.get(guidance, -1) + 1
            look = {
                "color": css(method_color(guidance)),
                "alpha": max(0.35, 1 - 0.2 * nth),
                "linestyle": _LINES[nth % len(_LINES)],
            }
            label = f"{guidance}, seed {row.result.sample.seed}"
            field.plot([step for step, _ in updates], [loss for _, loss in updates], marker=".", label=label, **look)
    if not field.lines:
        raise ValueError("The watched rows were not guided: there is no loss to plot.")
    field.xaxis.get_major_locator().set_params(integer=True)
    field.set_xlabel("step")
    field.set_ylabel("loss")
    field.legend(fontsize="small", frameon=False)
    return figure
