"""Axes of an ablation, and its cells: the combinations of their values. Importing this needs no torch."""

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
        value: Entry of the axis' column in the records: a number, or a name.
        changes: Settings that the value sets: those of a row, ``method``, and options as ``method.OPTION`` or ``NAME.OPTION``.
        line: Its line in the ablation's file, from 1.
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
    """A setting, or a group of settings, that is varied.

    Attributes:
        name: The setting's name, or a name of its own where a value sets several settings.
        points: Its values, in the order of the file.
    """

    name: str
    points: tuple[Point, ...]

    @property
    def is_numeric(self) -> bool:
        """Whether curves can be drawn over it: at least two different numbers and nothing else."""
        return len(self.points) > 1 and all(is_number(point.value) for point in self.points)


@dataclass(frozen=True)
class Cell:
    """A cell of the ablation: one value of every axis.

    Attributes:
        points: Axis name -> value, in the order of the axes; a plain cell has only the axes that change more than methods.
        fixed: Settings that the file gives one value for all cells.
    """

    points: Mapping[str, Point]
    fixed: tuple[Point, ...] = ()

    @property
    def name(self) -> str:
        """Labels of its values, joined by commas; ``base`` for the cell of an ablation without axes."""
        return ", ".join(point.label for point in self.points.values()) or "base"

    @property
    def values(self) -> dict[str, Any]:
        """Axis name -> value of its column."""
        return {name: point.value for name, point in self.points.items()}

    @property
    def changes(self) -> dict[str, Any]:
        """All settings that its values set; an axis wins over ``fixed``."""
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
    """Axes and metrics of the plot of control against quality.

    Attributes:
        strength: Name of the axis of steering strengths, along which a curve runs.
        control: Metric of how well regions are followed; higher is better.
        quality: Metric of picture quality; higher is better.
        curves: Name of the axis whose values have strengths of their own, if the file has ``curves``.
        strengths: Value of that axis -> its strengths, each with the settings that it sets.
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
    """An ablation as its file describes it.

    Attributes:
        path: The file.
        name: Name of the ablation, and of its default run folder.
        base: Settings common to all cells.
        axes: The axes, outermost first.
        fixed: Options of methods, and other settings of cells, that have one value in all cells.
        prompts: Prompts that the file varies. Statistics average over prompts and seeds; each pair has a contact sheet.
        seeds: Seeds that the file varies, as for ``prompts``.
        prompt_line: Line of the prompts in the file.
        project: W&B project that the file names.
        tradeoff: The plot of control against quality, if the file asks for one.
        base_lines: Setting of the base -> its file and line, as text for errors.
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
        """All combinations of values, the last axis fastest, without strengths that a cell's curve does not have."""
        names = [axis.name for axis in self.axes]
        combinations = itertools.product(*(axis.points for axis in self.axes))
        cells = [Cell(dict(zip(names, points, strict=True)), self.fixed) for points in combinations]
        placed = cells if self.tradeoff is None else [self.tradeoff.placed(cell) for cell in cells]
        return [cell for cell in placed if cell is not None]

    def pruned(self) -> Ablation:
        """The ablation without axis values that occur in no cell."""
        used = {(name, point.label) for cell in self.cells for name, point in cell.points.items()}
        axes = (Axis(axis.name, tuple(p for p in axis.points if (axis.name, p.label) in used)) for axis in self.axes)
        return replace(self, axes=tuple(axes))


def is_number(value: Any) -> bool:
    """Whether a value is an ``int`` or ``float``; true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def column_value(value: Any) -> Any:
    """A value as it stands in a column: numbers and text as they are, all else as compact JSON."""
    if isinstance(value, str) or is_number(value):
        return value
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    return json.dumps(value, separators=(",", ":"), default=str)


def narrowed(axis: Axis, wanted: Sequence[str]) -> Axis:
    """The axis with some of its values only, which ``wanted`` names by their text.

    Raises:
        ValueError: If the axis has no such value.
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
    """Whether ``text`` is a value's ``str``, as W&B's agents pass lists and truth values on the command line."""
    return not is_number(point.value) and text in map(str, point.changes.values())
