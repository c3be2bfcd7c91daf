"""An ablation's YAML file: the schema of a W&B sweep, with a base and further kinds of axes. Importing this needs no torch.

::

    base: {prompt: a red circle, seed: 0..7}        # what ``attnguide sample --config`` reads, or the path of such a file
    method: grid
    parameters:                                     # as W&B reads it; every list of values is an axis
      method: {values: [inject1, inject5]}
      method.scale: {values: [1, 2, 3]}
      steps: {value: 30}
    list:                                           # an axis whose values have names and set several things
      words:
        both: {regions: ["red circle=0,0,0.5,1", "blue square=0.5,0,1,1"]}
        first: {regions: ["red circle=0,0,0.5,1"]}
    paired:                                         # an axis whose settings change together
      function:
        method: [inject1, inject3]
        method.scale: [3, 30]
    curves:                                         # an axis whose values have strengths of their own, the axis 'strength'
      way:
        added: {method: inject5, method.scale: {values: [1, 2, 4]}}
        moved: {method: stable, method.scale: {values: [0.25, 0.5, 1]}}
    strength: method.scale                          # without curves: the axis of numbers that says how strongly
    control: region_hit                             # with curves or a strength: control is drawn against quality
    quality: explained

``wandb sweep`` reads ``method``, ``parameters`` and ``command``. Its schema has no place for the other keys: it warns of them
and leaves them alone; ``attnguide ablate``, which its agents start with a value of every parameter, reads them from the file.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import yaml

from attnguide.ablation.axes import Ablation, Axis, Point, Tradeoff, column_value, is_number
from attnguide.methods import METHODS
from attnguide.parsing import shown
from attnguide.row_values import method_names, nearest
from attnguide.yaml12 import read_yaml

SWEEP_KEYS = ("program", "command", "description", "entity", "metric", "early_terminate", "run_cap", "controller")
"""Of W&B's schema, and of no meaning here."""

KEYS = (
    "base",
    "method",
    "parameters",
    "list",
    "paired",
    "curves",
    "strength",
    "control",
    "quality",
    "name",
    "project",
    *SWEEP_KEYS,
)

STRENGTH = "strength"
"""The axis of the strengths of all curves."""

METRICS = (
    "presence",
    "all_present",
    "binding",
    "count",
    "count_found",
    "region_hit",
    "region_iou",
    "relation",
    "background",
    "explained",
    "inside",
)
"""What may be drawn as control and quality."""

VARIED = (
    "prompt",
    "seed",
    "regions",
    "groups",
    "methods",
    "negative_prompt",
    "height",
    "width",
    "steps",
    "cfg_scale",
    "true_cfg_scale",
    "scheduler",
)
"""Settings that may differ from cell to cell."""

Reader = Callable[[Any], Any]
"""Checks one setting; raises ``ValueError`` with what was expected and what came."""

_Path = tuple[Any, ...]

_MOST_ENTRIES = 100_000
"""Keys and items of a file, those of aliases counted wherever they stand."""


def read_ablation(path: str | Path, readers: Mapping[str, Reader]) -> Ablation:
    """Read and check an ablation's file.

    Args:
        path: The file.
        readers: Every setting that a run may have, and how it is checked.

    Raises:
        ValueError: With file and line, if anything in it cannot be understood or contradicts itself.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise ValueError(f"file: expected an ablation's YAML file; {str(path)!r} does not exist")
    except OSError as error:
        raise ValueError(f"file: expected an ablation's YAML file; {str(path)[:80]!r}: {error.strerror}") from error
    root, content = read_yaml(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}, line 1: expected the keys base and parameters; got {_short(content)}")
    lines = dict(itertools.islice(_lines(root), _MOST_ENTRIES))
    if len(lines) == _MOST_ENTRIES:
        raise ValueError(f"{path}: expected fewer than {_MOST_ENTRIES} entries; its aliases make more")
    return _File(path, content, lines, readers).ablation()


def _lines(node: Any, path: _Path = ()) -> Iterator[tuple[_Path, int]]:
    """The line of every key and item, by the way that leads to it."""
    pairs: list[tuple[Any, Any, Any]] = []
    if isinstance(node, yaml.MappingNode):
        pairs = [(key.value, key, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        pairs = [(index, value, value) for index, value in enumerate(node.value)]
    for key, place, value in pairs:
        yield (*path, key), place.start_mark.line + 1
        yield from _lines(value, (*path, key))


def _short(value: Any) -> str:
    text = shown(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


@dataclass(frozen=True)
class _File:
    """One file while it is read."""

    path: Path
    content: Mapping[Any, Any]
    lines: Mapping[_Path, int]
    readers: Mapping[str, Reader]

    def refuse(self, at: _Path, message: str) -> NoReturn:
        raise ValueError(f"{self.path}, line {self.lines.get(at, 1)}: {message.rstrip('.')}")

    def ablation(self) -> Ablation:
        for key in self.content:
            if key not in KEYS:
                self.refuse((key,), f"unknown key {key!r}{nearest(str(key), KEYS)}; known are {', '.join(KEYS)}")
        if self.content.get("method", "grid") != "grid":
            self.refuse(("method",), f"method: expected grid, the search that needs no server; got {self.content['method']!r}")
        base = self._base()
        constants, fixed = self._constants()
        named = self._mapping(("list",)) | self._mapping(("paired",)) | self._mapping(("curves",))
        strengths = self._strengths()
        axes = self._axes(named)
        tradeoff = self._tradeoff(axes, strengths)
        self._check_clashes(axes, fixed, strengths)
        if not axes and not self._values("seed") and not self._values("prompt"):
            self.refuse(("parameters",), "expected at least one axis under parameters, list or paired; got none")
        return Ablation(
            path=str(self.path),
            name=self._name(),
            base={**base, **constants},
            axes=tuple(axes),
            fixed=tuple(fixed),
            prompts=tuple(self._read("prompt", value, at) for value, at in self._values("prompt")),
            seeds=tuple(self._read("seed", value, at)[0] for value, at in self._values("seed")),
            prompt_line=self.lines.get(("parameters", "prompt"), self.lines.get(("base", "prompt"), 1)),
            project=self._project(),
            tradeoff=tradeoff,
            base_lines=self._base_lines(),
        )

    # ------------------------------------------------------------------------------------------------------------ base

    def _name(self) -> str:
        """Of the ablation, from which its folder has its name."""
        name = self.content.get("name")
        if name is not None and (not isinstance(name, str) or not re.fullmatch(r"[^./\\][^/\\]*", name)):
            self.refuse(("name",), f"name: expected text that can name a folder; got {_short(name)}")
        return name or self.path.stem

    def _project(self) -> str | None:
        project = self.content.get("project")
        if project is not None and not isinstance(project, str):
            self.refuse(("project",), f"project: expected text; got {_short(project)}")
        return project

    def _base_lines(self) -> dict[str, str]:
        """File and line of each setting of the base, and of the parameters that have one value."""
        base, path = self.content.get("base"), self.path
        lines: Mapping[_Path, int] = {at[1:]: line for at, line in self.lines.items() if at[0] == "base"}
        if isinstance(base, str):
            path = self._base_file(Path(base))
            lines = dict(_lines(read_yaml(path)[0]))
        own = {at[1]: line for at, line in self.lines.items() if at[0] == "parameters" and len(at) == 2}
        told = {str(at[0]): f"{path}, line {line}" for at, line in lines.items() if len(at) == 1}
        return {**told, **{str(name): f"{self.path}, line {line}" for name, line in own.items()}}

    def _base_file(self, path: Path) -> Path:
        """A file seen from the working directory or from this file."""
        found = next((place for place in (path, self.path.parent / path) if place.is_file()), None)
        if found is None:
            self.refuse(("base",), f"base: expected settings, or a YAML file with settings; {str(path)!r} does not exist")
        return found

    def _base(self) -> dict[str, Any]:
        base = self.content.get("base")
        if isinstance(base, str):
            return self._other_base(Path(base))
        return self._settings(self._mapping(("base",)), self.refuse, ("base",))

    def _other_base(self, path: Path) -> dict[str, Any]:
        """A base in a file of its own."""
        found = self._base_file(path)
        root, content = read_yaml(found)
        lines = dict(_lines(root))

        def refuse(at: _Path, message: str) -> NoReturn:
            raise ValueError(f"{found}, line {lines.get(at, 1)}: {message.rstrip('.')}")

        if not isinstance(content or {}, Mapping):
            refuse((), f"expected settings as 'name: value'; got {_short(content)}")
        return self._settings(content or {}, refuse, ())

    def _settings(self, given: Mapping[Any, Any], refuse: Callable[[_Path, str], NoReturn], at: _Path) -> dict[str, Any]:
        found = {}
        for key, value in given.items():
            if key not in self.readers:
                refuse((*at, key), f"unknown setting {key!r}{nearest(str(key), self.readers)}")
            try:
                found[str(key)] = None if value is None else self.readers[key](value)
            except ValueError as error:
                refuse((*at, key), f"{key}: {error}")
        return found

    # ------------------------------------------------------------------------------------------------------------ axes

    def _mapping(self, at: _Path) -> dict[str, Any]:
        value: Any = self.content
        for key in at:
            value = value.get(key)
        if value is None:
            return {}
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            self.refuse(at, f"{at[-1]}: expected names and values; got {_short(value)}")
        return dict(value)

    def _specs(self) -> Iterator[tuple[str, Mapping[str, Any], _Path]]:
        """Parameters that W&B's schema describes."""
        for name in self._mapping(("parameters",)):
            at = ("parameters", name)
            spec = self._mapping(at)
            if ("values" in spec) == ("value" in spec) or set(spec) - {"values", "value", "distribution"}:
                self.refuse(at, f"{name}: expected either 'values: [...]' or 'value: ...'; got {_short(spec)}")
            if "values" in spec:
                self._check_list(name, spec["values"], (*at, "values"))
            yield name, spec, at

    def _check_list(self, name: str, values: Any, at: _Path) -> None:
        if not isinstance(values, list) or not values:
            self.refuse(at, f"{name}: expected a list of at least one value; got {_short(values)}")
        labels: set[str] = set()  # by which cells are named
        for index, value in enumerate(values):
            before = len(labels)
            labels.add(Point(column_value(value), {}, 0).label)
            if len(labels) == before:
                self.refuse((*at, index), f"{name}: {_short(value)} stands twice, or reads like another value")

    def _values(self, wanted: str) -> list[tuple[Any, _Path]]:
        """Values of one parameter and where they stand."""
        for name, spec, at in self._specs():
            if name == wanted and "values" in spec:
                return [(value, (*at, "values", index)) for index, value in enumerate(spec["values"])]
        return []

    def _constants(self) -> tuple[dict[str, Any], list[Point]]:
        """Parameters with one value: settings of the base, and options for all cells."""
        settings, fixed = {}, []
        for name, spec, at in self._specs():
            if "value" in spec and name in self.readers and name != "methods":
                settings[name] = self._read(name, spec["value"], at, known=tuple(self.readers))
            elif "value" in spec:
                fixed.append(self._point(column_value(spec["value"]), {name: spec["value"]}, at))
        return settings, fixed

    def _parameter_axes(self, named: Mapping[str, Any]) -> Iterator[Axis]:
        for name, spec, at in self._specs():
            if "values" in spec and name not in named:
                places = [(*at, "values", index) for index in range(len(spec["values"]))]
                points = [
                    self._point(column_value(value), {name: value}, place)
                    for value, place in zip(spec["values"], places, strict=True)
                ]
                yield Axis(name, tuple(points))

    def _list_axes(self) -> Iterator[Axis]:
        for name in self._mapping(("list",)):
            self._check_name(name, ("list", name))
            cells = self._mapping(("list", name))
            if not cells:
                self.refuse(("list", name), f"{name}: expected at least one name with what it sets; got none")
            points = []
            for label in cells:
                at = ("list", name, label)
                points.append(self._point(label, self._mapping(at), at))
            yield Axis(name, tuple(points))

    def _paired_axes(self) -> Iterator[Axis]:
        for name in self._mapping(("paired",)):
            at = ("paired", name)
            self._check_name(name, at)
            columns = self._mapping(at)
            if not columns:
                self.refuse(at, f"{name}: expected settings with their values; got none")
            for key, values in columns.items():
                if not isinstance(values, list) or not values:
                    self.refuse((*at, key), f"{key}: expected a list of at least one value; got {_short(values)}")
            lengths = {key: len(values) for key, values in columns.items()}
            if len(set(lengths.values())) > 1:
                told = ", ".join(f"{length} of {key}" for key, length in lengths.items())
                self.refuse(at, f"{name}: expected as many values of each setting, because they are paired; got {told}")
            yield Axis(name, tuple(self._pairs(columns, at)))

    def _pairs(self, columns: Mapping[str, list[Any]], at: _Path) -> Iterator[Point]:
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        first = next(iter(columns))
        leading = [column_value(row[first]) for row in rows]
        times = Counter(leading)
        seen: set[str] = set()
        for index, row in enumerate(rows):
            told = " ".join(str(column_value(value)) for value in row.values())
            if repr(row) in seen:
                self.refuse((*at, first, index), f"{at[-1]}: {_short(told)} stands twice")
            seen.add(repr(row))
            value = leading[index] if times[leading[index]] == 1 else told
            yield self._point(value, row, (*at, first, index), tuple((*at, key, index) for key in columns))

    # ---------------------------------------------------------------------------------------------------------- curves

    def _strengths(self) -> dict[str, tuple[Point, ...]]:
        """Curve -> its strengths, each with the setting it stands for."""
        axes = self._mapping(("curves",))
        if len(axes) > 1:
            self.refuse(("curves",), f"curves: expected one axis, whose values have strengths; got {', '.join(axes)}")
        found = {}
        for name in axes:
            at = ("curves", name)
            self._check_name(name, at)
            if not self._mapping(at):
                self.refuse(at, f"{name}: expected at least one name with what it sets; got none")
            found = {label: tuple(self._own_strengths(label, (*at, label))) for label in self._mapping(at)}
        return found

    def _own_strengths(self, label: str, at: _Path) -> Iterator[Point]:
        listed = [key for key, value in self._mapping(at).items() if _is_listed(value)]
        if len(listed) != 1:
            told = ", ".join(listed) or "none"
            self.refuse(at, f"{label}: expected one setting with its strengths as 'values: [...]'; got {told}")
        key, place = listed[0], (*at, listed[0], "values")
        values = self._mapping((*at, key))["values"]
        self._check_list(key, values, place)
        for index, value in enumerate(values):
            if not is_number(value):
                self.refuse((*place, index), f"{key}: expected a number, as strengths are; got {_short(value)}")
            yield self._point(value, {key: value}, (*place, index))

    def _curve_axes(self, strengths: Mapping[str, Sequence[Point]]) -> Iterator[Axis]:
        """The axis of curves, without their strengths, and that of all strengths, without what they set."""
        for name in self._mapping(("curves",)):
            at = ("curves", name)
            points = []
            for label, given in self._mapping(at).items():
                settings = {key: value for key, value in given.items() if not _is_listed(value)}
                points.append(self._point(label, settings, (*at, label)))
            curves = self._selected(Axis(name, tuple(points)))
            yield curves
            kept = [point for label in (point.label for point in curves.points) for point in strengths[label]]
            union = sorted({point.value: point for point in reversed(kept)}.items())
            yield Axis(STRENGTH, tuple(Point(value, {}, point.line) for value, point in union))

    def _tradeoff(self, axes: Sequence[Axis], strengths: Mapping[str, tuple[Point, ...]]) -> Tradeoff | None:
        metrics = {name: self._metric(name) for name in ("control", "quality") if name in self.content}
        curves, strength = next(iter(self._mapping(("curves",))), None), self.content.get("strength")
        if curves and strength is not None:
            self.refuse(("strength",), f"strength: expected none beside curves, which bring their own; got {_short(strength)}")
        if curves:
            return replace(Tradeoff(STRENGTH, curves=curves, strengths=strengths), **metrics)
        if strength is None:
            for name in metrics:
                self.refuse((name,), f"{name}: expected curves or a strength to draw it along; got none")
            return None
        axis = next((axis for axis in axes if axis.name == strength), None)
        if axis is None or not axis.is_numeric:
            known = ", ".join(axis.name for axis in axes if axis.is_numeric) or "none"
            self.refuse(
                ("strength",), f"strength: expected an axis of numbers, of which there are {known}; got {_short(strength)}"
            )
        return replace(Tradeoff(axis.name), **metrics)

    def _metric(self, name: str) -> Any:
        value = self.content[name]
        if value not in METRICS:
            self.refuse((name,), f"{name}: expected a metric, one of {', '.join(METRICS)}; got {_short(value)}")
        return value

    # ----------------------------------------------------------------------------------------------------------- order

    def _check_name(self, name: str, at: _Path) -> None:
        if name in (*self.readers, "method", "plain", STRENGTH) or not re.fullmatch(r"[A-Za-z_]\w*", name):
            self.refuse(at, f"{at[0]}: expected a name for the axis that is no setting's, of letters and digits; got {name!r}")

    def _axes(self, named: Mapping[str, Any]) -> list[Axis]:
        """All axes, those that parameters name in their order there."""
        found = [axis for axis in self._parameter_axes(named) if axis.name not in ("prompt", "seed")]
        found += [self._selected(axis) for axis in (*self._list_axes(), *self._paired_axes())]
        found += self._curve_axes(self._strengths())
        order = list(self._mapping(("parameters",)))
        return sorted(found, key=lambda axis: order.index(axis.name) if axis.name in order else len(order))

    def _selected(self, axis: Axis) -> Axis:
        """A parameter of the name of a list or pairs says which of them are used, so that W&B can tell them apart."""
        wanted = self._values(axis.name)
        for value, at in wanted:
            if not any(point.value == value for point in axis.points):
                known = ", ".join(point.label for point in axis.points)
                self.refuse(at, f"{axis.name}: expected one of {known}; got {value!r}")
        values = [value for value, _ in wanted]
        return Axis(axis.name, tuple(point for point in axis.points if not wanted or point.value in values))

    def _check_clashes(self, axes: Sequence[Axis], fixed: Sequence[Point], strengths: Mapping[str, Sequence[Point]]) -> None:
        """No setting has two masters."""
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

    # ---------------------------------------------------------------------------------------------------------- values

    def _point(self, value: Any, changes: Mapping[str, Any], at: _Path, places: Sequence[_Path] = ()) -> Point:
        where = dict(zip(changes, places, strict=True)) if places else {}
        read = {}
        for key, item in changes.items():
            place = where.get(key) or ((*at, key) if (*at, key) in self.lines else at)
            read[key] = self._read(key, item, place)
        if len({"method", "methods"} & set(read)) > 1:
            self.refuse(at, "expected either method or methods; got both")
        return Point(value, read, self.lines.get(at, 1))

    def _read(self, key: str, value: Any, at: _Path, known: Sequence[str] = VARIED) -> Any:
        """A setting's value, checked as far as it can be without its cell."""
        try:
            if key == "seed" and isinstance(value, list | str):
                raise ValueError(f"expected a whole number; got {value!r}")
            if key in known and key in self.readers:
                return self.readers[key](value)
            if key == "method":
                self.readers["methods"](named_methods(value))
                return value
            name, dot, option = key.partition(".")
            if dot and option in ("name", "options"):
                raise ValueError(f"expected an option of a method by its name; got {option!r}")
            if dot and name in METHODS:
                self.readers["methods"]([{"name": name, option: value}])
                return value
            if dot and name == "method":
                return value
        except ValueError as error:
            self.refuse(at, f"{key}: {error}")
        if key in self.readers:
            self.refuse(at, f"{key}: is common to a run and cannot be varied in it; put it under base")
        near = nearest(key, [*known, "method", *METHODS])
        self.refuse(at, f"unknown setting {key!r}{near}; expected {', '.join(VARIED)}, method, method.OPTION or NAME.OPTION")


def _is_listed(value: Any) -> bool:
    """Whether a setting has values, as W&B writes them."""
    return isinstance(value, Mapping) and set(value) == {"values"}


def _rivals(key: str) -> tuple[str, ...]:
    return ("method", "methods") if key in ("method", "methods") else (key,)


def named_methods(value: Any) -> list[dict[str, Any]]:
    """Methods of ``a+b``; none for ``plain``.

    Raises:
        ValueError: If it is no text.
    """
    if not isinstance(value, str):
        raise ValueError(f"expected the name of a method, or several joined by '+'; got {value!r}")
    return [{"name": name} for name in method_names(value)]
