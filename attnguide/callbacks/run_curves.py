"""Curves over a run's steps, as means over rows, read from the CSV files of its folder. Importing this needs no torch."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from attnguide.callbacks.keys import MAP_STATISTICS, PLACED, UNPLACED, guide_key, maps_key, row_key, std_key
from attnguide.run_folder.records import NORMS_FILE, TRACE_FILE
from attnguide.run_folder.tables import table_lines

_INSIDE = MAP_STATISTICS.index("inside")


@dataclass
class Spread:
    """Running count, mean and standard deviation (Welford's algorithm).

    Example:
        >>> spread = Spread()
        >>> for value in (1, 2, float("nan"), 6):
        ...     spread.add(value)
        >>> spread.count, spread.mean, round(spread.std, 4)
        (3, 3.0, 2.6458)
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        """Add a number; NaN and infinity are ignored."""
        if math.isfinite(value):
            self.count += 1
            before = value - self.mean
            self.mean += before / self.count
            self.squares += before * (value - self.mean)

    @property
    def std(self) -> float:
        """Sample standard deviation (divisor ``n - 1``); 0 for fewer than two numbers."""
        return math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else 0.0


@dataclass
class Point:
    """Values of curves at one network evaluation.

    Attributes:
        step: Index of the evaluation.
        progress: Its share of the schedule in [0, 1).
        values: By key.
    """

    step: int
    progress: float
    values: dict[str, float]


@dataclass
class Curves:
    """Accumulates curves: a :class:`Spread` over rows for each step and key."""

    spreads: dict[int, dict[str, Spread]] = field(default_factory=dict)

    def add(self, step: int, key: str, value: float) -> None:
        """Add a row's value of the curve ``key`` at a step."""
        self.spreads.setdefault(step, {}).setdefault(key, Spread()).add(value)

    def points(self, count: int, *, std: bool = True) -> list[Point]:
        """The curves as one point per step, in order of steps.

        Args:
            count: Evaluations of the schedule, by which progress is computed; raised to the last step plus 1 if below it.
            std: Whether to include standard deviations over rows.
        """
        count = max(count, max(self.spreads, default=0) + 1)
        points = []
        for step, spreads in sorted(self.spreads.items()):
            values = {key: spread.mean for key, spread in spreads.items() if spread.count}
            if std:
                values |= {std_key(key): spread.std for key, spread in spreads.items() if spread.count}
            points.append(Point(step, step / count, values))
        return points


@dataclass(frozen=True)
class RunCurves:
    """All curves of a run, by group of keys.

    Attributes:
        guide: ``guide/...``: loss, gradient norm and share of attention inside the regions.
        maps: ``maps/...``: statistics of the maps.
        rows: ``rows/...``: loss and share of attention inside the regions of single rows.
    """

    guide: list[Point]
    maps: list[Point]
    rows: list[Point]


def run_curves(folder: Path, records: Iterable[Mapping[str, str]], single: Collection[str] = ()) -> RunCurves:
    """Read ``loss_trace.csv`` and ``map_norms.csv`` of a run folder.

    At each step, a row's loss is that of the last update, and a map statistic is the mean over sites and phrases, after
    injections. A curve is the mean of these values over the rows of one method.

    Args:
        folder: The run folder.
        records: Its lines of ``records.csv``, which hold each row's method.
        single: Ids of rows that get curves of their own.
    """
    known = list(records)
    methods = {record["id"]: record.get("method") or "plain" for record in known}
    steps = max((int(record["steps"]) for record in known if record.get("steps", "").isdigit()), default=0)
    guide, maps, rows = Curves(), Curves(), Curves()
    losses = _losses(folder / TRACE_FILE, methods)
    guidances: dict[str, set[str]] = {}
    for id, guidance, _ in losses:
        guidances.setdefault(methods[id], set()).add(guidance)
    for (id, guidance, step), (loss, norm) in losses.items():
        method = methods[id]
        whose = f"{method}/{guidance}" if len(guidances[method]) > 1 else method
        guide.add(step, guide_key("loss", whose), loss)
        guide.add(step, guide_key("gradient_norm", whose), norm)
        if id in single:
            rows.add(step, row_key("loss", id), loss)
    for (id, role, step), spreads in _statistics(folder / NORMS_FILE, methods).items():
        for statistic, spread in zip(MAP_STATISTICS, spreads, strict=True):
            if spread.count:
                maps.add(step, maps_key(statistic, methods[id], role), spread.mean)
        if spreads[_INSIDE].count:
            guide.add(step, guide_key("inside", methods[id]), spreads[_INSIDE].mean)
        if spreads[_INSIDE].count and id in single:
            rows.add(step, row_key("inside", id), spreads[_INSIDE].mean)
    return RunCurves(guide.points(steps), maps.points(steps), rows.points(steps, std=False))


def _losses(path: Path, ids: Collection[str]) -> dict[tuple[str, str, int], tuple[float, float]]:
    """Loss and gradient norm of the last update of each row, guidance and step."""
    found = {}
    for line in table_lines(path, ("id", "method", "step", "loss", "gradient_norm")):
        if line[0] in ids:
            found[line[0], line[1], int(line[2])] = (_number(line[3]), _number(line[4]))
    return found


def _statistics(path: Path, ids: Collection[str]) -> dict[tuple[str, str, int], list[Spread]]:
    """Spread over sites and phrases of each map statistic after injections, by row id, role and step."""
    found: dict[tuple[str, str, int], list[Spread]] = {}
    for id, step, stage, *values in table_lines(path, ("id", "step", "stage", *MAP_STATISTICS)):
        if stage == "after" and id in ids:
            role = PLACED if values[_INSIDE] else UNPLACED
            spreads = found.setdefault((id, role, int(step)), [Spread() for _ in MAP_STATISTICS])
            for spread, value in zip(spreads, values, strict=True):
                spread.add(_number(value))
    return found


def _number(text: str) -> float:
    return float(text) if text else math.nan
