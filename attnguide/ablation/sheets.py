"""Contact sheets: for every prompt and seed, the pictures of all cells in their places."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from PIL import Image

from attnguide.ablation.axes import Axis, Point
from attnguide.ablation.cells import PLAIN, Row
from attnguide.run_folder.files import replacing
from attnguide.sheets.colors import method_color
from attnguide.sheets.grid import Grid, draw_grids
from attnguide.sheets.sheet import Record, record_picture
from attnguide.text.html import Color

SHEETS_FOLDER = "sheets"
_LIMIT = 200

_Place = tuple[str, ...]


def sheet_of(folder: Path, axes: Sequence[Axis], rows: Sequence[Row], records: Mapping[str, Record]) -> Image.Image | None:
    """One prompt and seed: the first axis from left to right, the others from top to bottom, plain pictures first.

    A sheet of many columns is folded.

    Args:
        folder: The run's.
        axes: Of the ablation.
        rows: Of one prompt and seed.
        records: By row id.

    Returns:
        The sheet, or ``None`` if no picture is there.
    """
    across, down = axes[0], axes[1:]
    cells = {_place(row): row for row in rows if len(row.cell.points) == len(axes)}
    plain = [row for row in rows if len(row.cell.points) < len(axes)]
    lines: list[list[Image.Image | None]] = []
    made: list[list[Row | None]] = []
    labels: list[str] = []
    for points in itertools.product(*(axis.points for axis in down)):
        named = [f"{axis.name} = {point.label}" for axis, point in zip(down, points, strict=True)]
        rest = tuple(point.label for point in points)
        beside = _plain_beside(plain, down, points)
        plain = [row for row in plain if row is not beside]
        shown = [cells.get((point.label, *rest)) for point in across.points]
        made.append([beside, *shown])
        lines.append([_picture(folder, row, records) for row in made[-1]])
        labels.append(", ".join(named))
    columns = [PLAIN, *(f"{across.name} = {point.label}" for point in across.points)]
    if all(line[0] is None for line in lines):
        lines, columns, made = [line[1:] for line in lines], columns[1:], [line[1:] for line in made]
    if not any(picture is not None for line in lines for picture in line):
        return None
    first = next(row for row in rows)
    colors = [_color([line[column] for line in made]) for column in range(len(columns))]
    grid = Grid(lines, columns, labels if down else (), colors=colors, kept=int(columns[0] == PLAIN))
    return draw_grids([grid], title=f"{first.sample.prompt}, seed {first.sample.seed}")


def _color(rows: Sequence[Row | None]) -> Color | None:
    """The colour of a column's method, where it has one."""
    methods = {row.sample.method for row in rows if row is not None}
    return method_color(methods.pop()) if len(methods) == 1 else None


def _place(row: Row) -> _Place:
    return tuple(point.label for point in row.cell.points.values())


def _plain_beside(plain: Sequence[Row], down: Sequence[Axis], points: Sequence[Point]) -> Row | None:
    """The first plain picture that belongs to these values of the axes from top to bottom."""
    here = {axis.name: point for axis, point in zip(down, points, strict=True)}
    fitting = (
        row for row in plain if all(here.get(name, point).label == point.label for name, point in row.cell.points.items())
    )
    return next(fitting, None)


def _picture(folder: Path, row: Row | None, records: Mapping[str, Record]) -> Image.Image | None:
    return record_picture(folder, records.get(row.sample.id) if row else None)


def write_sheets(folder: Path, axes: Sequence[Axis], rows: Sequence[Row], records: Mapping[str, Record]) -> Iterator[Path]:
    """Draw ``sheets/<prompt and seed>.png`` for each of them, at most two hundred; gives each file once it is there."""
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
