"""Keys of a run's metrics and pictures in every logger. Importing this needs no torch.

Only the method differs in a key from run to run, so that runs share their charts. ``docs/logging.md`` lists all keys.
"""

from __future__ import annotations

GUIDE_STEP, GUIDE_PROGRESS = "guide/step", "guide/progress"
"""Axes of the curves below ``guide/``: network evaluation from 0, and its share of the schedule in [0, 1)."""

MAPS_STEP, MAPS_PROGRESS = "maps/step", "maps/progress"
"""Axes of the curves below ``maps/``."""

ROW_STEP = "rows/step"
"""Axis of the curves of single rows, below ``rows/``: the index of the network evaluation."""

ROWS_DONE = "progress/rows"
"""Number of rows that have ended so far."""

SECONDS = "progress/seconds_per_row"
FAILED_SO_FAR = "progress/failed"

LIVE: tuple[str, ...] = ("inside", "region_hit")
"""Metrics whose means by method are logged while the run goes on, over the rows that have ended."""

GUIDE_CURVES: tuple[str, ...] = ("loss", "gradient_norm", "inside")
MAP_STATISTICS: tuple[str, ...] = ("l2", "max", "entropy", "inside")
"""Columns of ``map_norms.csv`` that become curves."""

PLACED, UNPLACED = "placed", "unplaced"
"""Roles of a phrase: its region has a place, or has none."""

STD = "_std"
"""Suffix of a curve's name for the standard deviation over rows."""

PICTURES, MAPS_PICTURES, SHEET, TABLE = "pictures", "pictures/maps", "pictures/sheet", "rows"

ABLATION_SHEETS, ABLATION_PLOTS = "ablation/sheets", "ablation/plots"
"""Keys of an ablation's contact sheets and plots, each a list of pictures."""

EVAL_TABLE, EVAL_SHEETS = "eval/table", "eval/sheets"
"""Keys of a comparison's table, and of its sheets of examples, a list with one for each category."""

SHOWN: dict[str, tuple[str, ...]] = {
    GUIDE_STEP: ("guide/loss/*", "guide/inside/*"),
    ROWS_DONE: (SECONDS,),
    ROW_STEP: ("rows/loss/*", "rows/inside/*"),
}
"""Axis -> keys that W&B charts over it by default."""

UNSHOWN: dict[str, tuple[str, ...]] = {
    GUIDE_STEP: ("guide/gradient_norm/*", *(f"guide/{name}{STD}/*" for name in GUIDE_CURVES)),
    MAPS_STEP: tuple(f"maps/{name}{end}/*" for name in MAP_STATISTICS for end in ("", STD)),
    ROWS_DONE: (FAILED_SO_FAR, *(f"progress/{name}/*" for name in LIVE)),
}
"""Axis -> keys that W&B logs over it without a chart; users may add panels for them."""

AXES: tuple[str, ...] = (GUIDE_STEP, GUIDE_PROGRESS, MAPS_STEP, MAPS_PROGRESS, ROW_STEP, ROWS_DONE, "trainer/global_step")
"""Keys that serve only as axes of charts; the last is Lightning's own step."""


def method_key(method: str) -> str:
    """A row's method as part of a name: ``+`` between methods becomes ``_and_``, since loggers want plain names."""
    return method.replace("+", "_and_")


def guide_key(curve: str, method: str) -> str:
    """``guide/<curve>/<method>``, a mean over rows."""
    return f"guide/{curve}/{method_key(method)}"


def maps_key(statistic: str, method: str, role: str) -> str:
    """``maps/<statistic>/<method>/<role>``, a mean over rows, sites and phrases of that role."""
    return f"maps/{statistic}/{method_key(method)}/{role}"


def std_key(key: str) -> str:
    """The spread of a curve over rows: ``guide/loss/x`` has it under ``guide/loss_std/x``."""
    room, name, whose = key.split("/", 2)
    return f"{room}/{name}{STD}/{whose}"


def live_key(metric: str, method: str) -> str:
    """``progress/<metric>/<method>``: a metric's mean over the rows of a method that have ended so far."""
    return f"progress/{metric}/{method_key(method)}"


def row_key(curve: str, id: str) -> str:
    """``rows/<curve>/<row id>``: the curve of a single row; see ``row_curves`` of :class:`~attnguide.callbacks.RunLog`."""
    return f"rows/{curve}/{id}"


def mean_key(metric: str, method: str, *, of: str = "mean") -> str:
    """``mean/<metric>/<method>`` in the summary: the mean over a method's rows, or, if ``of`` is ``std``, the deviation."""
    return f"{of}/{metric}/{method_key(method)}"


def rows_key(method: str) -> str:
    """``n/<method>`` in the summary: how many rows a method has."""
    return f"n/{method_key(method)}"


def cell_key(metric: str, cell: str) -> str:
    """``cell/<metric>/<cell>``: a metric's mean in a cell of an ablation, in the summary.

    ``inject5, 2.5`` becomes ``inject5/2_5``, since W&B reads dots as levels.
    """
    return f"cell/{metric}/{cell.replace(', ', '/').replace('.', '_')}"


def pictures_key(method: str) -> str:
    """``pictures/<method>``: a picture for each prompt and seed, at the same place in the list for every method."""
    return f"{PICTURES}/{method_key(method)}"
