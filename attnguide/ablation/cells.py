"""Cells times prompts and seeds: the rows of the table. Importing this needs no torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from attnguide.ablation.axes import Ablation, Cell
from attnguide.ablation.file import named_methods
from attnguide.methods import check_options
from attnguide.prompt.regions import absolute_region
from attnguide.records import AXIS, CELL
from attnguide.rows import check_ids, checked_row, sample_from_dict, sample_to_dict
from attnguide.types import Sample

MethodReader = Callable[[Any], list[dict[str, Any]]]
"""Checks a list of methods, each ``{"name": ..., option: value}``."""

PLAIN = "plain"

_METHOD_KEYS = ("method", "methods")


@dataclass(frozen=True)
class Row:
    """A row of the table and where it comes from.

    Attributes:
        sample: The row.
        subject: Id of the prompt and seed it belongs to.
        cell: Its cell.
    """

    sample: Sample
    subject: str
    cell: Cell


def expand(
    ablation: Ablation,
    subjects: Sequence[Sample],
    base_methods: Sequence[Mapping[str, Any]],
    read: MethodReader,
    *,
    plain: bool,
    strict: bool = True,
) -> list[Row]:
    """Every cell for every prompt and seed.

    Args:
        ablation: Axes and fixed options.
        subjects: One row for each prompt and seed, without methods.
        base_methods: For cells that name no method.
        read: Checks methods and options.
        plain: Whether pictures without any method are made too, one for each that the cells' pictures can be compared with.
        strict: Refuse the ablation on account of a row that its methods cannot take; else the row keeps the reason.

    Raises:
        ValueError: With file and line, if a cell cannot be.
    """
    rows: list[Row] = []
    used: set[str] = set()
    for cell in ablation.cells:
        methods = _methods(ablation, cell, base_methods, read)
        for subject in subjects:
            sample = _sample(ablation, cell, subject, methods, used, strict)
            rows.append(Row(sample, subject.id, cell))
    return _with_plain(rows, used) if plain else rows


def _methods(ablation: Ablation, cell: Cell, base: Sequence[Mapping[str, Any]], read: MethodReader) -> list[dict[str, Any]]:
    """A cell's methods with its options."""
    changes = cell.changes
    methods = [dict(method) for method in base]
    if "methods" in changes:
        methods = [dict(method) for method in changes["methods"]]
    if "method" in changes:
        methods = named_methods(changes["method"])
    given: dict[tuple[int, str], str] = {}
    for key, value in changes.items():
        name, dot, option = key.partition(".")
        if not dot:
            continue
        at = _index(ablation, cell, key, name, [method["name"] for method in methods])
        if (at, option) in given:
            raise _refusal(ablation, cell, f"{key}: is the same as {given[at, option]} in cell {cell.name!r}", key)
        given[at, option] = key
        methods[at][option] = value
    try:
        return read(methods)
    except ValueError as error:
        raise _refusal(ablation, cell, f"cell {cell.name!r}: {error}", *given.values(), *_METHOD_KEYS) from error


def _index(ablation: Ablation, cell: Cell, key: str, name: str, methods: Sequence[str]) -> int:
    """Which of the cell's methods an option belongs to."""
    found = list(range(len(methods))) if name == "method" else [i for i, method in enumerate(methods) if method == name]
    if len(found) == 1:
        return found[0]
    told = "+".join(methods) or PLAIN
    wanted = "exactly one method, or NAME.OPTION" if name == "method" else f"the method {name!r} once"
    raise _refusal(ablation, cell, f"{key}: expected {wanted} in cell {cell.name!r}; it has {told}", key)


def _sample(
    ablation: Ablation,
    cell: Cell,
    subject: Sample,
    methods: Sequence[Mapping[str, Any]],
    used: set[str],
    strict: bool,
) -> Sample:
    own = {key: value for key, value in cell.changes.items() if "." not in key and key not in _METHOD_KEYS}
    configs = [
        {"name": method["name"], "options": {key: value for key, value in method.items() if key != "name"}}
        for method in methods
    ]
    values = {**sample_to_dict(subject), **own, "methods": configs, "id": _unused(f"{subject.id}-{_slug(cell.name)}", used)}
    tags = {CELL: cell.name, **{AXIS + name: value for name, value in cell.values.items()}}
    try:
        sample = sample_from_dict({**values, "tags": {**subject.tags, **tags}})
        check_ids([sample])
        sample = checked_row(sample)
        if strict and sample.problem is not None:
            raise ValueError(sample.problem)
        check_options(sample.methods)
    except ValueError as error:
        keys = [*_options_named(cell, error), *own, *_METHOD_KEYS, *cell.changes]
        raise _refusal(ablation, cell, f"cell {cell.name!r}: {error}", *keys) from error
    return replace(sample, regions=tuple(map(absolute_region, sample.regions)))


def _refusal(ablation: Ablation, cell: Cell, message: str, *keys: str) -> ValueError:
    line = cell.line_of(*keys) or 1
    return ValueError(f"{ablation.path}, line {line}: {message.rstrip('.')}")


def _options_named(cell: Cell, error: Exception) -> list[str]:
    """Options of the cell that a method complains of."""
    options = [key for key in cell.changes if "." in key]
    return [key for key in options if re.search(rf"\b{re.escape(key.split('.')[-1])}\b", str(error))]


def _slug(name: str) -> str:
    text = re.sub(r"[^A-Za-z0-9._-]+", "_", name.replace(", ", "-")).strip("_.")
    return text[:80] or "cell"


def _unused(id: str, used: set[str]) -> str:
    """The id, numbered if another row has it; capitals make no difference."""
    found, number = id, 1
    while found.lower() in used:
        number += 1
        found = f"{id}-{number}"
    used.add(found.lower())
    return found


def _with_plain(rows: Sequence[Row], used: set[str]) -> list[Row]:
    """Put before each row the plain one it is compared with, once."""
    seen = {_picture(row.sample) for row in rows if not row.sample.methods}
    found: list[Row] = []
    for row in rows:
        if row.sample.methods and row.sample.problem is None and _picture(row.sample) not in seen:
            seen.add(_picture(row.sample))
            found.append(_twin(row, used))
        found.append(row)
    return found


def _twin(row: Row, used: set[str]) -> Row:
    """The row without methods; of the axes, those remain that change more than methods."""
    kept = {
        name: point
        for name, point in row.cell.points.items()
        if any("." not in key and key not in _METHOD_KEYS for key in point.changes)
    }
    cell = Cell(kept)
    name = ", ".join([PLAIN, *(point.label for point in kept.values())])
    own = {key: value for key, value in row.sample.tags.items() if key != CELL and not key.startswith(AXIS)}
    tags = {**own, CELL: name, **{AXIS + axis: value for axis, value in cell.values.items()}}
    sample = replace(row.sample, id=_unused(f"{row.subject}-{_slug(name)}", used), methods=(), tags=tags)
    return Row(sample, row.subject, cell)


def _picture(sample: Sample) -> str:
    """What decides a row's plain picture and how it is judged."""
    values = sample_to_dict(replace(sample, methods=(), tags={}, id="0"))
    return repr(sorted(values.items()))
