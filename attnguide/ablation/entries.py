"""Entries of an ablation's file: names and values with their line numbers, each checked by the reader of its setting."""

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
"""Parses the value of one setting; raises ``ValueError`` with the expected and the given value."""

Way = tuple[Any, ...]
"""Path of an entry in the YAML document: keys and indices from the root."""


def lines_of(node: Any, path: Way = ()) -> Iterator[tuple[Way, int]]:
    """Path and line number of every key and item below a YAML node, in document order."""
    pairs: list[tuple[Any, Any, Any]] = []
    if isinstance(node, yaml.MappingNode):
        pairs = [(key.value, key, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        pairs = [(index, value, value) for index, value in enumerate(node.value)]
    for key, place, value in pairs:
        yield (*path, key), place.start_mark.line + 1
        yield from lines_of(value, (*path, key))


def short(value: Any) -> str:
    """A value as text of at most 60 characters, for errors."""
    text = shown(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


@dataclass(frozen=True)
class Entries:
    """Content of an ablation's file, with line numbers and the readers that check its settings.

    Attributes:
        path: The file.
        content: Its root mapping.
        lines: Line of every entry, by path.
        readers: Setting of a run -> its reader.
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
        """Entries below ``parameters`` (W&B's sweep schema): name, specification with ``values`` or ``value``, path."""
        for name in self.mapping(("parameters",)):
            at = ("parameters", name)
            spec = self.mapping(at)
            if ("values" in spec) == ("value" in spec) or set(spec) - {"values", "value", "distribution"}:
                self.refuse(at, f"{name}: expected either 'values: [...]' or 'value: ...'; got {short(spec)}")
            if "values" in spec:
                self.check_list(name, spec["values"], (*at, "values"))
            yield name, spec, at

    def check_list(self, name: str, values: Any, at: Way) -> None:
        """Raise unless ``values`` is a list of at least one value whose labels all differ."""
        if not isinstance(values, list) or not values:
            self.refuse(at, f"{name}: expected a list of at least one value; got {short(values)}")
        labels: set[str] = set()  # cells are named by them
        for index, value in enumerate(values):
            before = len(labels)
            labels.add(Point(column_value(value), {}, 0).label)
            if len(labels) == before:
                self.refuse((*at, index), f"{name}: {short(value)} stands twice, or reads like another value")

    def values(self, wanted: str) -> list[tuple[Any, Way]]:
        """Values of one parameter, each with its path; empty if it has a single ``value`` or is absent."""
        for name, spec, at in self.specs():
            if name == wanted and "values" in spec:
                return [(value, (*at, "values", index)) for index, value in enumerate(spec["values"])]
        return []

    def settings(self, given: Mapping[Any, Any], refuse: Callable[[Way, str], NoReturn], at: Way) -> dict[str, Any]:
        """Settings of a base, parsed by their readers; ``refuse`` raises with the name of the base's file."""
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
        """A point of an axis: its value and the settings that it changes, whose paths are ``places`` or below ``at``."""
        where = dict(zip(changes, places, strict=True)) if places else {}
        read = {}
        for key, item in changes.items():
            place = where.get(key) or ((*at, key) if (*at, key) in self.lines else at)
            read[key] = self.read(key, item, place)
        if len({"method", "methods"} & set(read)) > 1:
            self.refuse(at, "expected either method or methods; got both")
        return Point(value, read, self.lines.get(at, 1))

    def read(self, key: str, value: Any, at: Way, known: Sequence[str] = VARIED) -> Any:
        """A setting's value, checked as far as possible without knowing the cell: options of ``method`` are left to it."""
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
    """Split ``NAME.OPTION`` as ``str.partition(".")`` would; the name may be ``package.module:Class``.

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
        ValueError: If ``value`` is not a string.
    """
    if not isinstance(value, str):
        raise ValueError(f"expected the name of a method, or several joined by '+'; got {value!r}")
    return [{"name": name} for name in method_names(value)]
