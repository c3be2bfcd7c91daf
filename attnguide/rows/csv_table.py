"""Reads rows of CSV tables as plain values. Importing this needs no torch."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attnguide.layouts.boxes import BoxFormat
from attnguide.layouts.words import placed_regions
from attnguide.rows.values import ROW_KEYS, method_names, nearest, read_mapping
from attnguide.text.parsing import parse_json, read_text, real_number, shown, whole_number
from attnguide.types import MethodConfig

MOST_COLUMNS = 1000
"""Most columns of a table."""

_BOX_COLUMN = re.compile(r"(obj|bbox)(\d{1,4})")
_KNOWN = (*ROW_KEYS, "method", "options")


def csv_rows(path: Path, boxes: BoxFormat) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and values of each row, by the keys of a row.

    Args:
        path: The table.
        boxes: Format of the boxes in ``bboxN`` columns.

    Raises:
        ValueError: With file and line, if the table is malformed.
    """
    reader = csv.DictReader(io.StringIO(read_text(path, f"Table {shown(str(path))}"), newline=""), strict=True)
    try:
        _check_columns(path, list(reader.fieldnames or ()))
        first = reader.line_num + 1
        for cells in reader:
            yield first, _csv_row(path, first, cells, boxes)
            first = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: not valid CSV: {error}.") from error


def further_columns(path: Path) -> list[str]:
    """Columns that are no keys of a row and become tags."""
    reader = csv.reader(io.StringIO(read_text(path, f"Table {shown(str(path))}"), newline=""))
    return [column for column in next(reader, []) if column not in _KNOWN and not _BOX_COLUMN.fullmatch(column)]


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    where = f"{path}, line 1"
    if len(columns) > MOST_COLUMNS:
        raise ValueError(f"{where}: a table must have at most {MOST_COLUMNS} columns; got {len(columns)}.")
    if "prompt" not in columns:
        near = next((column for column in columns if nearest(column) == nearest("prompt")), None)
        hint = f" (is it {shown(near)}?)" if near else ""
        raise ValueError(f"{where}: column 'prompt' is missing{hint}; got {shown(', '.join(columns) or 'no columns')[1:-1]}.")
    boxed = [column for column in columns if _BOX_COLUMN.fullmatch(column)]
    for column, count in Counter(columns).items():
        if count > 1:
            raise ValueError(f"{where}: column {shown(column)} stands twice.")
        if column in _KNOWN or column in boxed:
            continue
        if hint := nearest(column, (*_KNOWN, "obj1", "bbox1")):
            raise ValueError(f"{where}: unknown column {shown(column)}{hint}.")
        if boxed and re.search(r"box|coord|xyxy", column, re.IGNORECASE):
            raise ValueError(f"{where}: unknown column {shown(column)} beside {boxed[0]!r}; the box of obj1 stands in bbox1.")


def _csv_row(path: Path, line: int, cells: Mapping[str | None, Any], boxes: BoxFormat) -> dict[str, Any]:
    if None in cells or None in cells.values():
        raise ValueError(
            f"{path}, line {line}: has {'more' if None in cells else 'fewer'} cells than the first line has columns."
        )
    given = {str(key): value for key, value in cells.items() if value.strip()}
    try:
        return _csv_values(given, boxes)
    except ValueError as error:
        raise ValueError(f"{path}, line {line}: {error}") from error


def _csv_values(given: Mapping[str, str], boxes: BoxFormat) -> dict[str, Any]:
    cells = {key: cell for key, cell in given.items() if not _BOX_COLUMN.fullmatch(key)}
    values = {key: _cell(key, cell) for key, cell in cells.items() if key in (*ROW_KEYS, "options")}
    if "method" in cells:
        values["methods"] = cells["method"]
    tags = {key: cell for key, cell in cells.items() if key not in values and key != "method"}
    if tags:
        values["tags"] = {**read_mapping("tags", values.get("tags", {})), **tags}
    if "options" in values:
        names = method_names(values.get("methods", ""))
        values["methods"] = _with_options(names, read_mapping("options", values.pop("options")))
    if boxed := _boxed_regions(given, boxes):
        values["regions"] = _joined(values.get("regions", []), boxed)
    return values


def _joined(regions: Any, boxed: list[dict[str, Any]]) -> Any:
    if isinstance(regions, list):
        return [*regions, *boxed]
    raise ValueError(f"regions must be a list where obj1 and bbox1 say regions too; got {shown(regions)}.")


def _cell(key: str, cell: str) -> Any:
    if key in ("seed", "height", "width", "steps"):
        return _parse_cell(key, cell, whole_number, "a whole number")
    if key in ("cfg_scale", "true_cfg_scale", "strength"):
        return _parse_cell(key, cell, real_number, "a number")
    if key not in ("regions", "groups", "tags", "options") and not (key == "control" and cell[0] in "[{"):
        return cell
    try:
        return parse_json(cell)
    except ValueError as error:
        raise ValueError(f"{key} must be JSON; got {shown(cell)} ({str(error).rstrip('.')}).") from None


def _parse_cell(key: str, cell: str, parse: Callable[[str], Any], what: str) -> Any:
    found = parse(cell)
    if found is None:
        raise ValueError(f"{key} must be {what}; got {shown(cell)}.")
    return found


def _with_options(names: Sequence[str], options: Mapping[str, Any]) -> list[MethodConfig]:
    for name in options:
        if name not in names:
            used = ", ".join(names) or "none"
            raise ValueError(f"options name the method {shown(name)}, which the row does not use; it uses {used}.")
    return [MethodConfig(name, read_mapping("options", options.get(name, {}))) for name in names]


def _boxed_regions(given: Mapping[str, str], boxes: BoxFormat) -> list[dict[str, Any]]:
    """Regions of a layout benchmark's ``objN`` and ``bboxN`` columns; a repeated phrase takes its next occurrence."""
    placed: list[tuple[str, Any]] = []
    for key in sorted(given, key=lambda name: (len(name), name)):
        found = _BOX_COLUMN.fullmatch(key)
        if not found:
            continue
        box = f"bbox{found[2]}"
        if found[1] == "bbox" and f"obj{found[2]}" not in given:
            raise ValueError(f"{key} has a box but obj{found[2]} has no phrase.")
        if found[1] == "obj":
            placed.append((given[key].strip(), boxes.fractions(box, given[box]) if box in given else None))
    return placed_regions(given.get("prompt", ""), placed)
