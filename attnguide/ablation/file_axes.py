"""Axes of an ablation's file, from its keys ``parameters``, ``list``, ``paired`` and ``curves``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attnguide.ablation.axes import Axis, Point, column_value, is_number
from attnguide.ablation.entries import Entries, Way, short

STRENGTH = "strength"
"""Name of the axis that holds the strengths of all curves."""


class AxisEntries(Entries):
    """The entries of an ablation's file, read as axes."""

    def parameter_axes(self, named: Mapping[str, Any]) -> Iterator[Axis]:
        """An axis for every parameter with ``values``, except the ``named``, which select points of a list, pairs or curves."""
        for name, spec, at in self.specs():
            if "values" in spec and name not in named:
                places = [(*at, "values", index) for index in range(len(spec["values"]))]
                points = [
                    self.point(column_value(value), {name: value}, place)
                    for value, place in zip(spec["values"], places, strict=True)
                ]
                yield Axis(name, tuple(points))

    def _list_axes(self) -> Iterator[Axis]:
        for name in self.mapping(("list",)):
            self._check_name(name, ("list", name))
            cells = self.mapping(("list", name))
            if not cells:
                self.refuse(("list", name), f"{name}: expected at least one name with what it sets; got none")
            points = []
            for label in cells:
                at = ("list", name, label)
                points.append(self.point(label, self.mapping(at), at))
            yield Axis(name, tuple(points))

    def _paired_axes(self) -> Iterator[Axis]:
        for name in self.mapping(("paired",)):
            at = ("paired", name)
            self._check_name(name, at)
            columns = self.mapping(at)
            if not columns:
                self.refuse(at, f"{name}: expected settings with their values; got none")
            for key, values in columns.items():
                if not isinstance(values, list) or not values:
                    self.refuse((*at, key), f"{key}: expected a list of at least one value; got {short(values)}")
            lengths = {key: len(values) for key, values in columns.items()}
            if len(set(lengths.values())) > 1:
                told = ", ".join(f"{length} of {key}" for key, length in lengths.items())
                self.refuse(at, f"{name}: expected as many values of each setting, because they are paired; got {told}")
            yield Axis(name, tuple(self._pairs(columns, at)))

    def _pairs(self, columns: Mapping[str, list[Any]], at: Way) -> Iterator[Point]:
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        first = next(iter(columns))
        leading = [column_value(row[first]) for row in rows]
        times = Counter(leading)
        seen: set[str] = set()
        for index, row in enumerate(rows):
            told = " ".join(str(column_value(value)) for value in row.values())
            if repr(row) in seen:
                self.refuse((*at, first, index), f"{at[-1]}: {short(told)} stands twice")
            seen.add(repr(row))
            value = leading[index] if times[leading[index]] == 1 else told
            yield self.point(value, row, (*at, first, index), tuple((*at, key, index) for key in columns))

    # ---------------------------------------------------------------------------------------------------------- curves

    def strengths(self) -> dict[str, tuple[Point, ...]]:
        """Label of a curve -> its strengths, each with the setting that it sets."""
        axes = self.mapping(("curves",))
        if len(axes) > 1:
            self.refuse(("curves",), f"curves: expected one axis, whose values have strengths; got {', '.join(axes)}")
        found = {}
        for name in axes:
            at = ("curves", name)
            self._check_name(name, at)
            if not self.mapping(at):
                self.refuse(at, f"{name}: expected at least one name with what it sets; got none")
            found = {label: tuple(self._own_strengths(label, (*at, label))) for label in self.mapping(at)}
        return found

    def _own_strengths(self, label: str, at: Way) -> Iterator[Point]:
        listed = [key for key, value in self.mapping(at).items() if _is_listed(value)]
        if len(listed) != 1:
            told = ", ".join(listed) or "none"
            self.refuse(at, f"{label}: expected one setting with its strengths as 'values: [...]'; got {told}")
        key, place = listed[0], (*at, listed[0], "values")
        values = self.mapping((*at, key))["values"]
        self.check_list(key, values, place)
        for index, value in enumerate(values):
            if not is_number(value):
                self.refuse((*place, index), f"{key}: expected a number, as strengths are; got {short(value)}")
            yield self.point(value, {key: value}, (*place, index))

    def _curve_axes(self, strengths: Mapping[str, Sequence[Point]]) -> Iterator[Axis]:
        """Two axes: the curves, without their strengths, and the union of all strengths, which set nothing yet."""
        for name in self.mapping(("curves",)):
            at = ("curves", name)
            points = []
            for label, given in self.mapping(at).items():
                settings = {key: value for key, value in given.items() if not _is_listed(value)}
                points.append(self.point(label, settings, (*at, label)))
            curves = self.selected(Axis(name, tuple(points)))
            yield curves
            kept = [point for label in (point.label for point in curves.points) for point in strengths[label]]
            union = sorted({point.value: point for point in reversed(kept)}.items())
            yield Axis(STRENGTH, tuple(Point(value, {}, point.line) for value, point in union))

    def _check_name(self, name: str, at: Way) -> None:
        if name in (*self.readers, "method", "plain", STRENGTH) or not re.fullmatch(r"[A-Za-z_]\w*", name):
            self.refuse(at, f"{at[0]}: expected a name for the axis that is no setting's, of letters and digits; got {name!r}")

    def axes(self, named: Mapping[str, Any]) -> list[Axis]:
        """All axes: those under ``parameters`` in its order, then the others."""
        found = [axis for axis in self.parameter_axes(named) if axis.name not in ("prompt", "seed")]
        found += [self.selected(axis) for axis in (*self._list_axes(), *self._paired_axes())]
        found += self._curve_axes(self.strengths())
        order = list(self.mapping(("parameters",)))
        return sorted(found, key=lambda axis: order.index(axis.name) if axis.name in order else len(order))

    def selected(self, axis: Axis) -> Axis:
        """The axis reduced to the labels that a parameter of its name lists; W&B's agents select points that way."""
        wanted = self.values(axis.name)
        for value, at in wanted:
            if not any(point.value == value for point in axis.points):
                known = ", ".join(point.label for point in axis.points)
                self.refuse(at, f"{axis.name}: expected one of {known}; got {value!r}")
        values = [value for value, _ in wanted]
        return Axis(axis.name, tuple(point for point in axis.points if not wanted or point.value in values))

    def check_clashes(self, axes: Sequence[Axis], fixed: Sequence[Point], strengths: Mapping[str, Sequence[Point]]) -> None:
        """Raise if two axes, or an axis and a fixed value, set the same setting."""
        owners: dict[str, tuple[str, int]] = {}
        parts = [("value", dict.fromkeys(point.changes, point.line)) for point in fixed]
        parts += [(STRENGTH, {key: p.line for points in strengths.values() for p in points for key in p.changes})]
        for axis in axes:
            if axis.name in [name for name, _ in parts if name not in ("value", STRENGTH)]:
                self.refuse(("paired", axis.name), f"{axis.name}: expected a name that no other axis has")
            parts.append((axis.name, {key: point.line for point in reversed(axis.points) for key in point.changes}))
        for name, keys in parts:
            for key, line in keys.items():
                rival = next((owners[other] for other in _rivals(key) if other in owners), None)
                if rival is not None:
                    raise ValueError(f"{self.path}, line {line}: {key}: is set by {rival[0]!r} in line {rival[1]} as well")
            owners |= {key: (name, line) for key, line in keys.items()}


def _is_listed(value: Any) -> bool:
    """Whether a value is a mapping with the one key ``values``, as in W&B's schema."""
    return isinstance(value, Mapping) and set(value) == {"values"}


def _rivals(key: str) -> tuple[str, ...]:
    return ("method", "methods") if key in ("method", "methods") else (key,)
