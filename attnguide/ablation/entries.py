"""Entries of an ablation's file: names and values with the lines they stand in, each checked by the reader of its setting."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from attnguide.ablation.axes import Point, column_value
from attnguide.inputs import INPUTS
from attnguide.methods import METHODS, is_method
from attnguide.rows.values import method_names, nearest
from attnguide.text.parsing import shown

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
    "prompt_syntax",
    "scheduler",
    *INPUTS,
)
"""Settings that may differ from cell to cell."""

Reader = Callable[[Any], Any]
"""Checks one setting; raises ``ValueError`` with what was expected and what came."""

Way = tuple[Any, ...]
"""Keys and indices that lead to an entry."""


def lines_of(node: Any, path: Way = ()) -> Iterator[tuple[Way, int]]:
    """The line of every key and item, by the way that leads to it."""
    pairs: list[tuple[Any, Any, Any]] = []
    if isinstance(node, yaml.MappingNode):
        pairs = [(key.value, key, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        pairs = [(index, value, value) for index, value in enumerate(node.value)]
    for key, place, value in pairs:
        yield (*path, key), place.start_mark.line + 1
        yield from lines_of(value, (*path, key))


def short(value: Any) -> str:
    """A value in at most 60 letters, for errors."""
    text = shown(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


@dataclass(frozen=True)
class Entries:
    """A file's content, and who checks it.

    Attributes:
        path: The file.
        content: Its mapping.
        lines: Line of every entry.
        readers: Every setting that a run may have, and how it is checked.
    """

    path: Path
    content: Mapping[Any, Any]
    lines: Mapping[Way, int]
    readers: Mapping[str, Reader]

    def refuse(self, at: Way, message: str) -> NoReturn:
        """Raise a ValueError with file and line of an entry."""
        raise ValueError(f"{self.path}, line {self.lines.get(at, 1)}: {message.rstrip('.')}")

    def mapping(self, at: Way) -> dict[str, Any]:
        """The names and values below an entry; empty where there is none."""
        value: Any = self.content
        for key in at:
            value = value.get(key)
        if value is None:
            return {}
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            self.refuse(at, f"{at[-1]}: expected names and values; got {short(value)}")
        return dict(value)

    def specs(self) -> Iterator[tuple[str, Mapping[str, Any], Way]]:
        """Parameters that W&B's schema describes."""
        for name in self.mapping(("parameters",)):
            at = ("parameters", name)
            spec = self.mapping(at)
            if ("values" in spec) == ("value" in spec) or set(spec) - {"values", "value", "distribution"}:
                self.refuse(at, f"{name}: expected either 'values: [...]' or 'value: ...'; got {short(spec)}")
            if "values" in spec:
                self.check_list(name, spec["values"], (*at, "values"))
            yield name, spec, at

    def check_list(self, name: str, values: Any, at: Way) -> None:
        """Refuse what is no list of values that differ in how they read."""
        if not isinstance(values, list) or not values:
            self.refuse(at, f"{name}: expected a list of at least one value; got {short(values)}")
        labels: set[str] = set()  # by which cells are named
        for index, value in enumerate(values):
            before = len(labels)
            labels.add(Point(column_value(value), {}, 0).label)
            if len(labels) == before:
                self.refuse((*at, index), f"{name}: {short(value)} stands twice, or reads like another value")

    def values(self, wanted: str) -> list[tuple[Any, Way]]:
        """Values of one parameter and where they stand."""
        for name, spec, at in self.specs():
            if name == wanted and "values" in spec:
                return [(value, (*at, "values", index)) for index, value in enumerate(spec["values"])]
        return []

    def settings(self, given: Mapping[Any, Any], refuse: Callable[[Way, str], NoReturn], at: Way) -> dict[str, Any]:
        """Settings of a base, each as its reader reads it; ``refuse`` names the file that they stand in."""
        found = {}
        for key, value in given.items():
            if key not in self.readers:
                refuse((*at, key), f"unknown setting {key!r}{nearest(str(key), self.readers)}")
            try:
                found[str(key)] = None if value is None else self.readers[key](value)
            except ValueError as error:
                refuse((*at, key), f"{key}: {error}")
        return found

    def point(self, value: Any, changes: Mapping[str, Any], at: Way, places: Sequence[Way] = ()) -> Point:
        """A point of an axis: its value, and the settings that it changes, which stand below ``at`` or in ``places``."""
        where = dict(zip(changes, places, strict=True)) if places else {}
        read = {}
        for key, item in changes.items():
            place = where.get(key) or ((*at, key) if (*at, key) in self.lines else at)
            read[key] = self.read(key, item, place)
        if len({"method", "methods"} & set(read)) > 1:
            self.refuse(at, "expected either method or methods; got both")
        return Point(value, read, self.lines.get(at, 1))

    def read(self, key: str, value: Any, at: Way, known: Sequence[str] = VARIED) -> Any:
        """A setting's value, checked as far as it can be without its cell."""
        try:
            if key == "seed" and isinstance(value, list | str):
                raise ValueError(f"expected a whole number; got {value!r}")
            if key in known and key in self.readers:
                return self.readers[key](value)
            if key == "method":
                self.readers["methods"](named_methods(value))
                return value
            name, dot, option = split_option(key)
            if dot and option in ("name", "options"):
                raise ValueError(f"expected an option of a method by its name; got {option!r}")
            if dot and is_method(name):
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


def split_option(key: str) -> tuple[str, str, str]:
    """``NAME.OPTION`` in its parts, as ``partition`` gives them; the name may be ``package.module:Class``.

    Example:
        >>> split_option("box_diff.step_size"), split_option("own.file:Own.scale")
        (('box_diff', '.', 'step_size'), ('own.file:Own', '.', 'scale'))
    """
    module, colon, rest = key.rpartition(":")
    name, dot, option = rest.partition(".")
    return module + colon + name, dot, option


def named_methods(value: Any) -> list[dict[str, Any]]:
    """Methods of ``a+b``; none for ``plain``.

    Raises:
        ValueError: If it is no text.
    """
    if not isinstance(value, str):
        raise ValueError(f"expected the name of a method, or several joined by '+'; got {value!r}")
    return [{"name": name} for name in method_names(value)]
