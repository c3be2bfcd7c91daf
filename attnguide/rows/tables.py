"""Reads tables of rows from YAML, JSON, JSON lines, CSV and text files. Importing this needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnguide.layouts.boxes import BoxFormat
from attnguide.layouts.coco import DEFAULT, coco_rows
from attnguide.layouts.foreign import Boxes, foreign_row
from attnguide.prompt.inputs import absolute_row
from attnguide.rows.csv_table import csv_rows, further_columns
from attnguide.rows.samples import MOST_ROWS, RowError, check_ids, table_row
from attnguide.text.parsing import parse_json, read_text, shown
from attnguide.text.yaml12 import YamlError, parse_yaml, read_yaml
from attnguide.types import Sample

_LineOf = Callable[[str | None], int]
_Rows = Iterator[tuple[_LineOf, Mapping[str, Any]]]
"""For each row, a function from a key to its line in the file, and the row's values."""


@dataclass(frozen=True)
class Table:
    """A table that has been read.

    Attributes:
        samples: Its rows.
        named: Ids of the rows that name their methods, ``plain`` included.
        tags: Columns of a CSV file that are no keys of a row and became tags.
    """

    samples: tuple[Sample, ...]
    named: frozenset[str] = frozenset()
    tags: tuple[str, ...] = ()


def read_samples(
    path: str | Path,
    *,
    size: tuple[int, int] | None = None,
    box_format: str | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> list[Sample]:
    """Rows of a table; arguments and errors as for :func:`read_table`."""
    return list(read_table(path, size=size, box_format=box_format, defaults=defaults).samples)


def read_table(
    path: str | Path,
    *,
    size: tuple[int, int] | None = None,
    box_format: str | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Table:
    """Read a table of rows, or a layout benchmark in the form its authors gave it.

    A row has the keys :data:`~attnguide.rows.samples.ROW_KEYS`; only ``prompt`` is needed. Rows without an ``id`` are numbered
    ``0000``, ``0001``, ...

    * ``.yaml``, ``.yml``, ``.json``: a list of rows; or a mapping with the list under ``samples`` and values common to all rows
      beside it.
    * ``.jsonl``: one row a line.
    * ``.csv``: one row a line. ``method`` holds names joined by ``+``, ``options`` a JSON object from method name to options,
      ``regions``, ``groups`` and ``tags`` JSON; regions may instead stand in columns ``obj1``, ``bbox1``, ``obj2``, ... with
      boxes ``x0,y0,x1,y1``, as 7Bench and C-Bench have them. Any further column becomes a tag.
    * ``.txt``: one prompt a line.

    In JSON and JSON lines the rows may also be GenEval's (:func:`~attnguide.layouts.geneval.geneval_row`), GLIGEN's
    (``phrases``, ``locations``), LLM-grounded diffusion's (``gen_boxes``) or LayoutSAM's (``region_captions``, ``bbox_list``),
    and a ``.json`` file may hold COCO's instances (:func:`~attnguide.layouts.coco.coco_rows`).

    A row whose box has no area, or whose phrase its prompt lacks, gets that as its :attr:`~attnguide.types.Sample.problem`: it
    is refused, and the other rows are made.

    Args:
        path: The table. Relative paths of masks in it are relative to its folder.
        size: ``(height, width)`` in pixels of the pictures that boxes in pixels refer to.
        box_format: Format of the boxes if it is not the file's usual one: ``xyxy`` or ``xywh``, ``fractions``, ``pixels`` or
            ``permille``, or both as ``xywh-pixels``. Regions of attnguide's own rows are always corners in fractions.
        defaults: Values of keys that neither the row nor the file gives.

    Raises:
        ValueError: If the file is missing or malformed, with file, line and key; if it has more than
            :data:`~attnguide.rows.samples.MOST_ROWS` rows; two rows have the same id; or ``size`` or ``box_format`` is given
            for a file without such boxes.
    """
    path = Path(path)
    boxes = Boxes(box_format, size)
    readers: dict[str, Callable[[Path], _Rows]] = {
        ".yaml": _read_yaml,
        ".yml": _read_yaml,
        ".json": lambda path: _read_json(path, boxes),
        ".jsonl": lambda path: _read_json_lines(path, boxes),
        ".csv": lambda path: ((_always(line), row) for line, row in csv_rows(path, boxes.over(BoxFormat()))),
        ".txt": _read_lines,
    }
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise ValueError(f"Table {shown(str(path))} must be a file ending in {', '.join(readers)}.")
    samples: list[Sample] = []
    named: set[str] = set()
    for index, (line_of, values) in enumerate(readers[suffix](path)):
        if index == MOST_ROWS:
            raise ValueError(f"Table {shown(str(path))} must have at most {MOST_ROWS:,} rows; got more.")
        try:
            sample = table_row({**(defaults or {}), **values}, id=f"{index:04d}")
        except ValueError as error:
            key = getattr(error, "key", None)
            raise RowError(f"{path}, line {line_of(key)}: {error}", key) from error
        samples.append(_beside(sample, path.parent))
        if values.get("methods") is not None:
            named.add(sample.id)
    if not samples:
        raise ValueError(f"Table {shown(str(path))} has no rows.")
    if (size is not None or box_format is not None) and not boxes.read:
        given = "size" if size is not None else "box_format"
        raise ValueError(f"{given} is for boxes as layout files write them; got it with {shown(str(path))}, which has none.")
    try:
        check_ids(samples)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return Table(tuple(samples), frozenset(named), tuple(further_columns(path)) if suffix == ".csv" else ())


def _beside(sample: Sample, folder: Path) -> Sample:
    """The row with paths of masks and pictures made absolute, relative ones from the table's folder."""
    return absolute_row(sample, folder)


def _read_yaml(path: Path) -> _Rows:
    return _listed(path, *read_yaml(path, f"Table {shown(str(path))}"))


def _read_json(path: Path, boxes: Boxes) -> _Rows:
    text = read_text(path, f"Table {shown(str(path))}")
    try:
        content = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if isinstance(content, dict) and {"images", "annotations"} <= content.keys():
        return _read_coco(path, content, boxes)
    if isinstance(content, dict) and "samples" not in content and foreign_row(content, boxes) is not None:
        content = [content]  # a file that holds a single row
        return _listed(path, None, content, boxes)
    try:
        root = parse_yaml(text)[0]  # the YAML node has line numbers, which JSON's parser does not give
    except YamlError:  # valid JSON with characters that YAML refuses
        root = None
    return _listed(path, root, content, boxes)


def _read_coco(path: Path, content: Mapping[str, Any], boxes: Boxes) -> _Rows:
    try:
        for row in coco_rows(content, boxes.over(DEFAULT)):
            yield _always(1), row
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read_lines(path: Path) -> _Rows:
    """Rows of a text file with one prompt a line."""
    for number, line in enumerate(read_text(path, f"Table {shown(str(path))}").split("\n"), 1):
        if line.strip():
            yield _always(number), {"prompt": line.strip()}


def _listed(path: Path, root: Any, content: Any, boxes: Boxes | None = None) -> _Rows:
    """Rows of a list, or of a mapping with the list under ``samples``."""
    common: dict[str, Any] = {}
    node: Any = root
    if isinstance(content, dict):
        if "samples" not in content:
            raise ValueError(f"{path}, line 1: key 'samples' is missing; a table is a list of rows, or has them under samples.")
        common = {key: value for key, value in content.items() if key != "samples"}
        node = next(value for key, value in node.value if key.value == "samples") if node is not None else None
        content = content["samples"]
    if not isinstance(content, list):
        raise ValueError(f"{path}, line 1: a table is a list of rows; got {type(content).__name__}.")
    for index, row in enumerate(content):
        line_of = _always(1) if node is None else _yaml_lines(node.value[index], root)
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {line_of(None)}: a row is a mapping with the key prompt; got {shown(row)}.")
        yield line_of, {**common, **_own_row(f"{path}, line {line_of(None)}", row, boxes)}


def _own_row(place: str, values: Mapping[str, Any], boxes: Boxes | None) -> Mapping[str, Any]:
    """A row under attnguide's keys, converted if it has another project's."""
    try:
        found = None if boxes is None else foreign_row(values, boxes)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    return values if found is None else found


def _yaml_lines(row: Any, root: Any) -> _LineOf:
    def line_of(key: str | None) -> int:
        for node in (row, root):
            for pair in node.value if isinstance(node.value, list) else ():
                if isinstance(pair, tuple) and pair[0].value == key:
                    return int(pair[0].start_mark.line) + 1
        return int(row.start_mark.line) + 1

    return line_of


def _read_json_lines(path: Path, boxes: Boxes) -> _Rows:
    for number, line in enumerate(read_text(path, f"Table {shown(str(path))}").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: a row is a JSON object with the key prompt; got {shown(line)}.")
        yield _always(number), _own_row(f"{path}, line {number}", row, boxes)


def _always(line: int) -> _LineOf:
    return lambda key: line
