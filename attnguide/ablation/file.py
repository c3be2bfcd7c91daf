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
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from attnguide.ablation.axes import Ablation, Axis, Point, Tradeoff, column_value
from attnguide.ablation.entries import Reader, Way, lines_of, short
from attnguide.ablation.file_axes import STRENGTH, AxisEntries
from attnguide.rows.values import nearest
from attnguide.text.yaml12 import read_yaml

SWEEP_KEYS = ("program", "command", "description", "entity", "metric", "early_terminate", "run_cap", "controller")
"""Keys of W&B's sweep schema that have no effect here."""

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
"""Metrics that ``control`` and ``quality`` may name."""

_MOST_ENTRIES = 100_000
"""Most keys and items of a file, with those of an alias counted at each use."""


def read_ablation(path: str | Path, readers: Mapping[str, Reader]) -> Ablation:
    """Read and check an ablation's file.

    Args:
        path: The file.
        readers: Setting of a run -> its reader.

    Raises:
        ValueError: With file and line, if an entry is unknown, malformed or contradicts another one.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise ValueError(f"file: expected an ablation's YAML file; {str(path)!r} does not exist")
    except OSError as error:
        raise ValueError(f"file: expected an ablation's YAML file; {str(path)[:80]!r}: {error.strerror}") from error
    root, content = read_yaml(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}, line 1: expected the keys base and parameters; got {short(content)}")
    lines = dict(itertools.islice(lines_of(root), _MOST_ENTRIES))
    if len(lines) == _MOST_ENTRIES:
        raise ValueError(f"{path}: expected fewer than {_MOST_ENTRIES} entries; its aliases make more")
    return _File(path, content, lines, readers).ablation()


class _File(AxisEntries):
    """Reads one file into an :class:`~attnguide.ablation.axes.Ablation`."""

    def ablation(self) -> Ablation:
        for key in self.content:
            if key not in KEYS:
                self.refuse((key,), f"unknown key {key!r}{nearest(str(key), KEYS)}; known are {', '.join(KEYS)}")
        if self.content.get("method", "grid") != "grid":
            self.refuse(("method",), f"method: expected grid, the search that needs no server; got {self.content['method']!r}")
        base = self._base()
        constants, fixed = self._constants()
        named = self.mapping(("list",)) | self.mapping(("paired",)) | self.mapping(("curves",))
        strengths = self.strengths()
        axes = self.axes(named)
        tradeoff = self._tradeoff(axes, strengths)
        self.check_clashes(axes, fixed, strengths)
        if not axes and not self.values("seed") and not self.values("prompt"):
            self.refuse(("parameters",), "expected at least one axis under parameters, list or paired; got none")
        return Ablation(
            path=str(self.path),
            name=self._name(),
            base={**base, **constants},
            axes=tuple(axes),
            fixed=tuple(fixed),
            prompts=tuple(self.read("prompt", value, at) for value, at in self.values("prompt")),
            seeds=tuple(self.read("seed", value, at)[0] for value, at in self.values("seed")),
            prompt_line=self.lines.get(("parameters", "prompt"), self.lines.get(("base", "prompt"), 1)),
            project=self._project(),
            tradeoff=tradeoff,
            base_lines=self._base_lines(),
        )

    def _name(self) -> str:
        """Name of the ablation and of its folder; the file's stem if the file gives none."""
        name = self.content.get("name")
        if name is not None and (not isinstance(name, str) or not re.fullmatch(r"[^./\\][^/\\]*", name)):
            self.refuse(("name",), f"name: expected text that can name a folder; got {short(name)}")
        return name or self.path.stem

    def _project(self) -> str | None:
        project = self.content.get("project")
        if project is not None and not isinstance(project, str):
            self.refuse(("project",), f"project: expected text; got {short(project)}")
        return project

    def _base_lines(self) -> dict[str, str]:
        """File and line, as text, of each setting of the base and of each parameter."""
        base, path = self.content.get("base"), self.path
        lines: Mapping[Way, int] = {at[1:]: line for at, line in self.lines.items() if at[0] == "base"}
        if isinstance(base, str):
            path = self._base_file(Path(base))
            lines = dict(lines_of(read_yaml(path)[0]))
        own = {at[1]: line for at, line in self.lines.items() if at[0] == "parameters" and len(at) == 2}
        told = {str(at[0]): f"{path}, line {line}" for at, line in lines.items() if len(at) == 1}
        return {**told, **{str(name): f"{self.path}, line {line}" for name, line in own.items()}}

    def _base_file(self, path: Path) -> Path:
        """The base's file, looked up in the working directory, then in the folder of the ablation's file."""
        found = next((place for place in (path, self.path.parent / path) if place.is_file()), None)
        if found is None:
            self.refuse(("base",), f"base: expected settings, or a YAML file with settings; {str(path)!r} does not exist")
        return found

    def _base(self) -> dict[str, Any]:
        base = self.content.get("base")
        if isinstance(base, str):
            return self._other_base(Path(base))
        return self.settings(self.mapping(("base",)), self.refuse, ("base",))

    def _other_base(self, path: Path) -> dict[str, Any]:
        """Settings of a base that is a file of its own."""
        found = self._base_file(path)
        root, content = read_yaml(found)
        lines = dict(lines_of(root))

        def refuse(at: Way, message: str) -> NoReturn:
            raise ValueError(f"{found}, line {lines.get(at, 1)}: {message.rstrip('.')}")

        if not isinstance(content or {}, Mapping):
            refuse((), f"expected settings as 'name: value'; got {short(content)}")
        return self.settings(content or {}, refuse, ())

    def _constants(self) -> tuple[dict[str, Any], list[Point]]:
        """Parameters with a single ``value``: settings that join the base, and the others as points of every cell."""
        settings, fixed = {}, []
        for name, spec, at in self.specs():
            if "value" in spec and name in self.readers and name != "methods":
                settings[name] = self.read(name, spec["value"], at, known=tuple(self.readers))
            elif "value" in spec:
                fixed.append(self.point(column_value(spec["value"]), {name: spec["value"]}, at))
        return settings, fixed

    def _tradeoff(self, axes: Sequence[Axis], strengths: Mapping[str, tuple[Point, ...]]) -> Tradeoff | None:
        metrics = {name: self._metric(name) for name in ("control", "quality") if name in self.content}
        curves, strength = next(iter(self.mapping(("curves",))), None), self.content.get("strength")
        if curves and strength is not None:
            self.refuse(("strength",), f"strength: expected none beside curves, which bring their own; got {short(strength)}")
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
                ("strength",), f"strength: expected an axis of numbers, of which there are {known}; got {short(strength)}"
            )
        return replace(Tradeoff(axis.name), **metrics)

    def _metric(self, name: str) -> Any:
        value = self.content[name]
        if value not in METRICS:
            self.refuse((name,), f"{name}: expected a metric, one of {', '.join(METRICS)}; got {short(value)}")
        return value
