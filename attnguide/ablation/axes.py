"""Axes, and the cells that their values span. Importing this needs no torch."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Point:
    """One value of an axis.

    Attributes:
        value: Of its column in the records: a number, or a name.
        changes: Settings it stands for: those of a row, ``method``, and options as ``method.OPTION`` or ``NAME.OPTION``.
        line: Where it stands in its file.
    """

    value: Any
    changes: Mapping[str, Any]
    line: int

    @property
    def label(self) -> str:
        """The value as text."""
        return f"{self.value:g}" if isinstance(self.value, float) else str(self.value)


@dataclass(frozen=True)
class Axis:
    """What is varied.

    Attributes:
        name: A setting, or a name of its own where a value stands for several settings.
        points: Its values.
    """

    name: str
    points: tuple[Point, ...]

    @property
    def is_numeric(self) -> bool:
        """Whether curves can be drawn over it: at least two different numbers and nothing else."""
        return len(self.points) > 1 and all(is_number(point.value) for point in self.points)


@dataclass(frozen=True)
class Cell:
    """One combination of values.

    Attributes:
        points: Axis name -> value, in the order of the axes; empty for pictures without any method.
        fixed: Values that belong to every cell and are no axis.
    """

    points: Mapping[str, Point]
    fixed: tuple[Point, ...] = ()

    @property
    def name(self) -> str:
        """Labels of its values; ``base`` where nothing is varied."""
        return ", ".join(point.label for point in self.points.values()) or "base"

    @property
    def values(self) -> dict[str, Any]:
        """Axis name -> value of its column."""
        return {name: point.value for name, point in self.points.items()}

    @property
    def changes(self) -> dict[str, Any]:
        """All settings that its values stand for."""
        return {key: value for point in (*self.fixed, *self.points.values()) for key, value in point.changes.items()}

    def line_of(self, *keys: str) -> int | None:
        """The line of the value that sets the first of ``keys`` that is set at all."""
        for key in keys:
            for point in (*self.points.values(), *self.fixed):
                if key in point.changes:
                    return point.line
        return None


@dataclass(frozen=True)
class Tradeoff:
    """What curves of control against quality are made of.

    Attributes:
        strength: The axis that says how strongly.
        control: Metric that rises with success.
        quality: Metric that says whether pictures are still good.
        curves: The axis whose values have strengths of their own, if one has.
        strengths: Value of that axis -> its strengths, each with the settings it stands for.
    """

    strength: str
    control: str = "region_hit"
    quality: str = "explained"
    curves: str | None = None
    strengths: Mapping[str, tuple[Point, ...]] = field(default_factory=dict)

    def placed(self, cell: Cell) -> Cell | None:
        """The cell with its curve's own strength; ``None`` if its curve has no such strength."""
        if self.curves is None:
            return cell
        value = cell.points[self.strength].value
        own = self.strengths[str(cell.points[self.curves].value)]
        found = next((point for point in own if point.value == value), None)
        return None if found is None else replace(cell, points={**cell.points, self.strength: found})


@dataclass(frozen=True)
class Ablation:
    """What a file asks for.

    Attributes:
        path: The file.
        name: Of the ablation.
        base: Settings common to all cells.
        axes: What is varied, outermost first.
        fixed: Methods' options and the like that are set once for all cells.
        prompts: Varied too, but not averaged over when it comes to pictures: every prompt and seed has a sheet of its own.
        seeds: Likewise; statistics are over prompts and seeds.
        prompt_line: Where the prompts stand.
        project: W&B project the file names.
        tradeoff: What is drawn of control against quality, if something is.
        base_lines: Where each setting of the base stands.
    """

    path: str
    name: str
    base: Mapping[str, Any]
    axes: tuple[Axis, ...]
    fixed: tuple[Point, ...] = ()
    prompts: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    prompt_line: int = 1
    project: str | None = field(default=None)
    tradeoff: Tradeoff | None = None
    base_lines: Mapping[str, str] = field(default_factory=dict)

    @property
    def cells(self) -> list[Cell]:
        """Every combination that there is; the last axis runs fastest."""
        names = [axis.name for axis in self.axes]
        combinations = itertools.product(*(axis.points for axis in self.axes))
        cells = [Cell(dict(zip(names, points, strict=True)), self.fixed) for points in combinations]
        placed = cells if self.tradeoff is None else [self.tradeoff.placed(cell) for cell in cells]
        return [cell for cell in placed if cell is not None]

    def pruned(self) -> Ablation:
        """Without the values of axes that no cell has."""
        used = {(name, point.label) for cell in self.cells for name, point in cell.points.items()}
        axes = (Axis(axis.name, tuple(p for p in axis.points if (axis.name, p.label) in used)) for axis in self.axes)
        return replace(self, axes=tuple(axes))


def is_number(value: Any) -> bool:
    """Whether a value lies on a line; true and false do not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def column_value(value: Any) -> Any:
    """A value as it stands in a column: numbers and text as they are, all else as compact JSON."""
    if isinstance(value, str) or is_number(value):
        return value
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    return json.dumps(value, separators=(",", ":"), default=str)


def narrowed(axis: Axis, wanted: Sequence[str]) -> Axis:
    """The axis with some of its values, told as text.

    Raises:
        ValueError: If it has no such value.
    """
    found = []
    for text in wanted:
        matching = [point for point in axis.points if _is_value(point, text)]
        matching = matching or [point for point in axis.points if _is_written(point, text)]
        if not matching:
            known = ", ".join(point.label for point in axis.points)
            raise ValueError(f"{axis.name}: expected a value of the axis, one of {known}; got {text!r}")
        found += matching
    return Axis(axis.name, tuple(point for point in axis.points if point in found))


def _is_value(point: Point, text: str) -> bool:
    if not is_number(point.value):
        return text == str(point.value)
    try:
        return float(text) == float(point.value)
    except ValueError:
        return False


def _is_written(point: Point, text: str) -> bool:
    """W&B hands a list or a truth value over as Python writes it."""
    return not is_number(point.value) and text in map(str, point.changes.values())
