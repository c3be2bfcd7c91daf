"""Cells times prompts and seeds: the rows of the table. Importing this needs no torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from attnguide.ablation.axes import Ablation, Cell
from attnguide.ablation.entries import named_methods, split_option
from attnguide.methods import check_options
from attnguide.prompt.inputs import absolute_row
from attnguide.rows.samples import MOST_ROWS, Checked, check_ids, checked_row, sample_from_dict, sample_to_dict
from attnguide.rows.twins import with_twins
from attnguide.run_folder.records import AXIS, CELL
from attnguide.types import PLAIN, MethodConfig, Sample

MethodReader = Callable[[Any], list[dict[str, Any]]]
"""Checks a list of methods, each ``{"name": ..., option: value}``."""

_METHOD_KEYS = ("method", "methods")


@dataclass(frozen=True)
class Row:
    """A row of an ablation's table, with the prompt and seed and the cell that it was made from.

    Attributes:
        sample: The row.
        subject: Id of its prompt and seed, which all cells share.
        cell: The cell whose settings it has.
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
        base_methods: Methods of cells that name none.
        read: Checks methods and their options.
        plain: Whether rows without any method are added, one for each picture that cells' rows are compared with.
        strict: Raise if a row's methods refuse it; otherwise the row stays, with the reason as its ``problem``.

    Raises:
        ValueError: With file and line, if a cell's settings are invalid, or the rows are too many.
    """
    cells = ablation.cells
    if len(cells) * len(subjects) > MOST_ROWS:
        told = f"{len(cells):,} cells for {len(subjects):,} prompts and seeds"
        raise ValueError(f"{ablation.path}: expected at most {MOST_ROWS:,} rows in all; got {told}")
    rows: list[Row] = []
    used: dict[str, int] = {}
    known = Checked()
    for cell in cells:
        made = _Cell(ablation, cell, _methods(ablation, cell, base_methods, read), known, strict)
        rows += [Row(made.sample(subject, used), subject.id, cell) for subject in subjects]
    return with_twins(rows, lambda row: row.sample, lambda row: _twin(row, used)) if plain else rows


def _methods(ablation: Ablation, cell: Cell, base: Sequence[Mapping[str, Any]], read: MethodReader) -> list[dict[str, Any]]:
    """Methods of a cell, with the options that its values set."""
    changes = cell.changes
    methods = [dict(method) for method in base]
    if "methods" in changes:
        methods = [dict(method) for method in changes["methods"]]
    if "method" in changes:
        methods = named_methods(changes["method"])
    given: dict[tuple[int, str], str] = {}
    for key, value in changes.items():
        name, dot, option = split_option(key)
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
    """Index of the method, among the cell's, that an option belongs to."""
    found = list(range(len(methods))) if name == "method" else [i for i, method in enumerate(methods) if method == name]
    if len(found) == 1:
        return found[0]
    told = "+".join(methods) or PLAIN
    wanted = "exactly one method, or NAME.OPTION" if name == "method" else f"the method {name!r} once"
    raise _refusal(ablation, cell, f"{key}: expected {wanted} in cell {cell.name!r}; it has {told}", key)


class _Cell:
    """Makes a cell's rows; methods and options are checked once, with the first row."""

    def __init__(
        self, ablation: Ablation, cell: Cell, methods: Sequence[Mapping[str, Any]], known: Checked, strict: bool
    ) -> None:
        self.ablation, self.cell, self.known, self.strict = ablation, cell, known, strict
        self.own = {key: value for key, value in cell.changes.items() if "." not in key and key not in _METHOD_KEYS}
        self.methods = tuple(MethodConfig(m["name"], {k: v for k, v in m.items() if k != "name"}) for m in methods)
        self.tags = {CELL: cell.name, **{AXIS + name: value for name, value in cell.values.items()}}
        self.slug = _slug(cell.name)
        self.judged = False

    def sample(self, subject: Sample, used: dict[str, int]) -> Sample:
        """The cell's row for one prompt and seed.

        Raises:
            ValueError: With file and line, if the row's settings are invalid.
        """
        id, tags = _unused(f"{subject.id}-{self.slug}", used), {**subject.tags, **self.tags}
        try:
            if self.own:
                sample = sample_from_dict({**sample_to_dict(subject), **self.own, "id": id, "tags": tags})
                sample = replace(absolute_row(sample), methods=self.methods)
            else:
                sample = replace(subject, methods=self.methods, id=id, tags=tags)
            return self._checked(sample)
        except ValueError as error:
            keys = [*_options_named(self.cell, error), *self.own, *_METHOD_KEYS, *self.cell.changes]
            raise _refusal(self.ablation, self.cell, f"cell {self.cell.name!r}: {error}", *keys) from error

    def _checked(self, sample: Sample) -> Sample:
        check_ids([sample])
        sample = checked_row(sample, self.known)
        if self.strict and sample.problem is not None:
            raise ValueError(sample.problem)
        if not self.judged:
            check_options(sample.methods)
            self.judged = True
        return sample


def _refusal(ablation: Ablation, cell: Cell, message: str, *keys: str) -> ValueError:
    line = cell.line_of(*keys) or 1
    return ValueError(f"{ablation.path}, line {line}: {message.rstrip('.')}")


def _options_named(cell: Cell, error: Exception) -> list[str]:
    """Option keys of the cell whose option the error message names."""
    options = [key for key in cell.changes if "." in key]
    return [key for key in options if re.search(rf"\b{re.escape(key.split('.')[-1])}\b", str(error))]


def _slug(name: str) -> str:
    text = re.sub(r"[^A-Za-z0-9._-]+", "_", name.replace(", ", "-")).strip("_.")
    return text[:80] or "cell"


def _unused(id: str, used: dict[str, int]) -> str:
    """The id, with a number appended if another row has it in any case (ids are file names)."""
    found, number = id, used.get(id.lower(), 0)
    while found.lower() in used:
        number += 1
        found = f"{id}-{number + 1}"
    used[id.lower()] = number
    used.setdefault(found.lower(), 0)
    return found


def _twin(row: Row, used: dict[str, int]) -> Row:
    """The plain counterpart of a row: no methods, and a cell of only the axes that change more than methods."""
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
