"""Contact sheets: for every prompt and seed, the pictures of all cells in their places."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from attnguide.ablation.axes import Axis, Point
from attnguide.ablation.cells import Row
from attnguide.run_folder.files import replacing
from attnguide.sheets.colors import method_color
from attnguide.sheets.grid import Grid, draw_grids
from attnguide.sheets.sheet import Record, record_picture
from attnguide.text.html import Color
from attnguide.types import PLAIN

SHEETS_FOLDER = "sheets"
_LIMIT = 200

_Place = frozenset[tuple[str, str]]


def sheet_of(folder: Path, axes: Sequence[Axis], rows: Sequence[Row], records: Mapping[str, Record]) -> Image.Image | None:
    """Contact sheet of one prompt and seed: the first axis of several values from left to right, the others from top to bottom.

    Plain pictures stand at the left of each line; if they differ along the first axis, they get a line of their own above the
    lines that are compared with them. A sheet of many columns is folded.

    Args:
        folder: The run folder.
        axes: Axes of the ablation.
        rows: All rows of one prompt and seed.
        records: Records of finished rows, by row id.

    Returns:
        The sheet, or ``None`` if none of the rows has a picture.
    """
    varied = [axis for axis in axes if len(axis.points) > 1] or list(axes[:1])
    fixed = {axis.name: axis.points[0] for axis in axes if axis not in varied}
    columns, lines = _columns_and_lines(varied, fixed, rows)
    grid = Grid(
        [[_picture(folder, row, records) for row in line.rows] for line in lines],
        columns,
        [line.label for line in lines] if any(line.label for line in lines) else (),
        colors=[_color([line.rows[column] for line in lines]) for column in range(len(columns))],
        kept=int(columns[0] == PLAIN),
    )
    if not any(picture is not None for line in grid.pictures for picture in line):
        return None
    prompts = {row.sample.prompt for row in rows}
    told = [*(prompts if len(prompts) == 1 else ()), f"seed {rows[0].sample.seed}", *_told(fixed)]
    return draw_grids([grid], title=", ".join(told))


@dataclass(frozen=True)
class _Line:
    """A line of the sheet: rows of the ablation from left to right, ``None`` for an empty cell."""

    label: str
    rows: Sequence[Row | None]


def _columns_and_lines(
    varied: Sequence[Axis], fixed: Mapping[str, Point], rows: Sequence[Row]
) -> tuple[list[str], list[_Line]]:
    """Labels of the columns, and the lines of a sheet with plain rows in their places.

    Args:
        varied: Axes of several values: the first goes from left to right, the others from top to bottom.
        fixed: The one point of each other axis.
        rows: All rows of one prompt and seed.
    """
    across, down = varied[0], varied[1:]
    count = len(varied) + len(fixed)
    cells = {_place(row.cell.points): row for row in rows if len(row.cell.points) == count}
    plain = [row for row in rows if len(row.cell.points) < count]
    above = any(across.name in row.cell.points for row in plain)
    lines: list[_Line] = []
    twins: list[Row | None] = []
    for points in itertools.product(*(axis.points for axis in down)):
        own = {axis.name: point for axis, point in zip(down, points, strict=True)}
        here = [{**fixed, **own, across.name: point} for point in across.points]
        found = [_twin(plain, place) for place in here] if above else []
        if any(found) and found != twins:
            lines.append(_Line(_plain_label(found, across), found))
        twins = found
        beside = [] if above else [_twin(plain, {**fixed, **own})]
        lines.append(_Line(", ".join(_told(own)), [*beside, *(cells.get(_place(place)) for place in here)]))
    columns = [f"{across.name} = {point.label}" for point in across.points]
    if above:
        return columns, lines
    if any(line.rows[0] for line in lines):
        return [PLAIN, *columns], lines
    return columns, [_Line(line.label, line.rows[1:]) for line in lines]


def _told(points: Mapping[str, Point]) -> list[str]:
    return [f"{name} = {point.label}" for name, point in points.items()]


def _color(rows: Sequence[Row | None]) -> Color | None:
    """Colour of the one method of a column's rows, plain rows aside; ``None`` if they have several."""
    methods = {row.sample.method for row in rows if row is not None}
    steered = methods - {PLAIN} or methods
    return method_color(steered.pop()) if len(steered) == 1 else None


def _place(points: Mapping[str, Point]) -> _Place:
    """Names and labels of a cell's points, whatever their order."""
    return frozenset((name, point.label) for name, point in points.items())


def _twin(plain: Sequence[Row], here: Mapping[str, Point]) -> Row | None:
    """The first plain row whose axis values all equal those in ``here``."""
    return next((row for row in plain if all(_is(here.get(name), point) for name, point in row.cell.points.items())), None)


def _is(one: Point | None, other: Point) -> bool:
    return one is not None and one.label == other.label


def _plain_label(rows: Sequence[Row | None], across: Axis) -> str:
    """Label of a line of plain pictures: ``plain`` and their values on the vertical axes."""
    first = next(row for row in rows if row is not None)
    kept = {name: point for name, point in first.cell.points.items() if name != across.name}
    return ", ".join([PLAIN, *_told(kept)])


def _picture(folder: Path, row: Row | None, records: Mapping[str, Record]) -> Image.Image | None:
    return record_picture(folder, records.get(row.sample.id) if row else None)


def write_sheets(folder: Path, axes: Sequence[Axis], rows: Sequence[Row], records: Mapping[str, Record]) -> Iterator[Path]:
    """Draw ``sheets/<subject id>.png`` for each prompt and seed, at most 200; yields each path once the file is written."""
    subjects: dict[str, list[Row]] = {}
    for row in rows:
        subjects.setdefault(row.subject, []).append(row)
    for subject, members in list(subjects.items())[:_LIMIT]:
        picture = sheet_of(folder, axes, members, records) if axes else None
        if picture is not None:
            path = folder / SHEETS_FOLDER / f"{subject}.png"
            with replacing(path) as temporary:
                picture.save(temporary)
            yield path
