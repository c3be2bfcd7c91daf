"""Tables of rows in files: YAML, JSON lines, CSV. Importing this needs no torch."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from attnguide.prompt.nested import free_occurrences
from attnguide.prompt.regions import absolute_region
from attnguide.rows import ROW_KEYS, RowError, check_ids, method_names, nearest, read_mapping, table_row
from attnguide.types import MethodConfig, Sample

_BOX_COLUMN = re.compile(r"(obj|bbox)(\d+)")

_LineOf = Callable[[str | None], int]
_Rows = Iterator[tuple[_LineOf, Mapping[str, Any]]]
"""For each row, the line of one of its keys, and its values."""


def read_samples(
    path: str | Path, *, size: tuple[int, int] | None = None, defaults: Mapping[str, Any] | None = None
) -> list[Sample]:
    """Read a table of rows.

    A row has the keys :data:`ROW_KEYS`; only ``prompt`` is needed. Rows without an ``id`` are numbered ``0000``, ``0001``, ...

    * ``.yaml``, ``.yml``: a list of rows; or a mapping with the list under ``samples`` and values common to all rows beside it.
    * ``.jsonl``: one row a line.
    * ``.csv``: one row a line. ``method`` holds names joined by ``+``, ``options`` a JSON object from method name to options,
      ``regions``, ``groups`` and ``tags`` JSON; regions may instead stand in columns ``obj1``, ``bbox1``, ``obj2``, ... with
      boxes ``x0,y0,x1,y1``. Any further column becomes a tag.

    Args:
        path: The table. Relative paths of masks in it are relative to its folder.
        size: ``(height, width)`` in pixels, if the boxes of a CSV file are in pixels and not fractions.
        defaults: Values of a row's keys that neither the row nor the file gives.

    A row whose box has no area, or whose phrase its prompt lacks, is read with that as its
    :attr:`~attnguide.types.Sample.problem`: it ends alone, the other rows are made.

    Raises:
        ValueError: If the file is missing or malformed, with file, line and key; or two rows have the same id.
    """
    path = Path(path)
    readers = {".yaml": _read_yaml, ".yml": _read_yaml, ".jsonl": _read_json_lines, ".csv": _csv_reader(size)}
    if path.suffix.lower() not in readers:
        raise ValueError(f"Table {str(path)!r} must be a file ending in {', '.join(readers)}.")
    if not path.is_file():
        raise ValueError(f"Table {str(path)!r} does not exist.")
    samples = []
    for index, (line_of, values) in enumerate(readers[path.suffix.lower()](path)):
        try:
            sample = table_row({**(defaults or {}), **values}, id=f"{index:04d}")
        except ValueError as error:
            key = getattr(error, "key", None)
            raise RowError(f"{path}, line {line_of(key)}: {error}", key) from error
        samples.append(_beside(sample, path.parent))
    if not samples:
        raise ValueError(f"Table {str(path)!r} has no rows.")
    try:
        check_ids(samples)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return samples


def _beside(sample: Sample, folder: Path) -> Sample:
    """Relative paths of masks and pictures, seen from the table's folder."""
    return replace(sample, regions=tuple(absolute_region(region, folder) for region in sample.regions))


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads ``1e-3`` as text; people mean a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+"), list("-+0123456789.")
)


def read_yaml(path: Path) -> tuple[Any, Any]:
    """A YAML file as its node, which knows lines, and its content; both ``None`` if it is empty.

    Raises:
        ValueError: With file and line, if it is no YAML, a key is no text or stands twice, or an alias holds itself.
    """
    loader = _Loader(path.read_text(encoding="utf-8"))
    try:
        root = loader.get_single_node()
        if root is not None:
            _refuse_odd_nodes(path, root)
        return root, loader.construct_document(root) if root is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise ValueError(f"{path}, line {mark.line + 1 if mark else 1}: not valid YAML: {error.problem}.") from error


def _read_yaml(path: Path) -> _Rows:
    root, content = read_yaml(path)
    common: dict[str, Any] = {}
    node: Any = root
    if isinstance(content, dict):
        if "samples" not in content:
            raise ValueError(f"{path}, line 1: key 'samples' is missing; a table is a list of rows, or has them under samples.")
        common = {key: value for key, value in content.items() if key != "samples"}
        node = next(value for key, value in node.value if key.value == "samples")
        content = content["samples"]
    if not isinstance(content, list):
        raise ValueError(f"{path}, line 1: a table is a list of rows; got {type(content).__name__}.")
    for child, row in zip(node.value, content, strict=True):
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {child.start_mark.line + 1}: a row is a mapping with the key prompt; got {row!r}.")
        yield _yaml_lines(child, root), {**common, **row}


def _yaml_lines(row: Any, root: Any) -> _LineOf:
    def line_of(key: str | None) -> int:
        for node in (row, root):
            for name, _ in node.value if isinstance(node, yaml.MappingNode) else ():
                if name.value == key:
                    return int(name.start_mark.line) + 1
        return int(row.start_mark.line) + 1

    return line_of


def _refuse_odd_nodes(path: Path, node: Any, above: frozenset[int] = frozenset(), seen: set[int] | None = None) -> None:
    """Keys that are no text or stand twice, and aliases inside what they stand for; each node is read once."""
    seen = set() if seen is None else seen
    if id(node) in above:
        raise ValueError(f"{path}, line {node.start_mark.line + 1}: an alias stands inside what it stands for.")
    if id(node) in seen:
        return
    seen.add(id(node))
    children = node.value if isinstance(node, yaml.CollectionNode) else []
    if isinstance(node, yaml.MappingNode):
        known: set[str] = set()
        for key, _ in node.value:
            where = f"{path}, line {key.start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode):
                raise ValueError(f"{where}: expected a name as key; got a list or a mapping.")
            if key.value in known:
                raise ValueError(f"{where}: key {key.value!r} stands twice.")
            known.add(key.value)
        children = [value for _, value in node.value]
    for child in children:
        _refuse_odd_nodes(path, child, above | {id(node)}, seen)


def _read_json_lines(path: Path) -> _Rows:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not valid JSON: {error.msg} at column {error.colno}.") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: a row is a JSON object with the key prompt; got {line[:60]!r}.")
        yield _always(number), row


def _always(line: int) -> _LineOf:
    return lambda key: line


def _csv_reader(size: tuple[int, int] | None) -> Callable[[Path], _Rows]:
    def read(path: Path) -> _Rows:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            try:
                columns = list(reader.fieldnames or ())
                _check_columns(path, columns)
                first = reader.line_num + 1
                for cells in reader:
                    yield _always(first), _csv_row(path, first, cells, size)
                    first = reader.line_num + 1
            except csv.Error as error:
                raise ValueError(f"{path}, line {reader.line_num}: not valid CSV: {error}.") from error

    return read


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    if "prompt" not in columns:
        raise ValueError(f"{path}, line 1: column 'prompt' is missing; got {', '.join(columns) or 'no columns'}.")
    for column in columns:
        if columns.count(column) > 1:
            raise ValueError(f"{path}, line 1: column {column!r} stands twice.")
        known = (*ROW_KEYS, "method", "options")
        if column not in known and not _BOX_COLUMN.fullmatch(column) and (hint := nearest(column, known)):
            raise ValueError(f"{path}, line 1: unknown column {column!r}{hint}.")


def _csv_row(path: Path, line: int, cells: Mapping[str | None, Any], size: tuple[int, int] | None) -> dict[str, Any]:
    if None in cells or None in cells.values():
        raise ValueError(
            f"{path}, line {line}: has {'more' if None in cells else 'fewer'} cells than the first line has columns."
        )
    given = {str(key): value for key, value in cells.items() if value.strip()}
    try:
        return _csv_values(given, size)
    except ValueError as error:
        raise ValueError(f"{path}, line {line}: {error}") from error


def _csv_values(given: Mapping[str, str], size: tuple[int, int] | None) -> dict[str, Any]:
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
    if boxed := _boxed_regions(given, size):
        values["regions"] = [*values.get("regions", []), *boxed]
    return values


def _cell(key: str, cell: str) -> Any:
    if key in ("seed", "height", "width", "steps"):
        return _parse_cell(key, cell, int, "a whole number")
    if key == "cfg_scale":
        return _parse_cell(key, cell, float, "a number")
    return _parse_cell(key, cell, json.loads, "JSON") if key in ("regions", "groups", "tags", "options") else cell


def _parse_cell(key: str, cell: str, parse: Callable[[str], Any], what: str) -> Any:
    try:
        return parse(cell)
    except ValueError:
        raise ValueError(f"{key} must be {what}; got {cell!r}.") from None


def _with_options(names: Sequence[str], options: Mapping[str, Any]) -> list[MethodConfig]:
    for name in options:
        if name not in names:
            used = ", ".join(names) or "none"
            raise ValueError(f"options name the method {name!r}, which the row does not use; it uses {used}.")
    return [MethodConfig(name, read_mapping("options", options.get(name, {}))) for name in names]


def _boxed_regions(given: Mapping[str, str], size: tuple[int, int] | None) -> list[dict[str, Any]]:
    """Regions of a layout benchmark's ``objN`` and ``bboxN`` columns; a phrase that stands twice takes its next occurrence."""
    regions: list[dict[str, Any]] = []
    for key in sorted(given, key=lambda name: (len(name), name)):
        found = _BOX_COLUMN.fullmatch(key)
        if not found:
            continue
        if found[1] == "bbox" and f"obj{found[2]}" not in given:
            raise ValueError(f"{key} has a box but obj{found[2]} has no phrase.")
        if found[1] == "obj":
            phrase = given[key].strip()
            before = sum(region["phrase"] == phrase for region in regions)
            box = _box(f"bbox{found[2]}", given.get(f"bbox{found[2]}"), size)
            regions.append({"phrase": phrase, "box": box})
            if before:
                regions[-1]["occurrence"] = _occurrence(given, phrase, before)
    return regions


def _box(key: str, cell: str | None, size: tuple[int, int] | None) -> tuple[float, float, float, float] | None:
    if cell is None:
        return None
    try:
        x0, y0, x1, y1 = (float(part) for part in cell.strip("()[] ").split(","))
    except ValueError:
        raise ValueError(f"{key} must be four numbers x0,y0,x1,y1; got {cell!r}.") from None
    if size is not None:
        height, width = size
        return x0 / width, y0 / height, x1 / width, y1 / height
    if max(x0, y0, x1, y1) > 1:
        raise ValueError(f"{key} must be fractions of width and height, or size must say the picture's pixels; got {cell!r}.")
    return x0, y0, x1, y1


def _occurrence(given: Mapping[str, str], phrase: str, wanted: int) -> int:
    """The wanted occurrence outside other objects' phrases if the prompt has it, else the last one."""
    objects = [value.strip() for key, value in given.items() if re.fullmatch(r"obj\d+", key)]
    free = free_occurrences(given.get("prompt", ""), phrase, objects)
    return free[min(wanted, len(free) - 1)] if free else 0
