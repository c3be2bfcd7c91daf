"""Draws grids of pictures with labels; grids wider than a screen are folded. Needs Pillow only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

from attnguide.text.html import Color

MOST_COLUMNS = 10
"""Most columns of a run's grid before it is folded."""

_GAP = 6
_BAR = 4
"""Height in pixels of the coloured line below a column's label."""

_WIDEST, _SMALLEST = 1200, 128
"""Width in pixels that a sheet's pictures fit into, unless that makes them smaller than the second number."""

_LETTERS = 75
"""Font sizes across a sheet: its labels can still be read where a page shows it half as large."""

_INK, _SOFT, _PAPER, _ABSENT = (30, 30, 30), (110, 110, 110), (255, 255, 255), (238, 238, 238)

Pictures = Sequence[Sequence[Image.Image | None]]
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Grid:
    """Pictures in rows of equal length.

    Attributes:
        pictures: Rows from top to bottom; ``None`` leaves a grey field.
        columns: A label for each column; empty for no labels.
        rows: A label for each row; empty for no labels.
        title: Title above the grid.
        colors: A colour for each column, drawn as a line below its label; empty for no lines.
        kept: Number of columns from the left that every part of a folded grid repeats.
    """

    pictures: Pictures
    columns: Sequence[str] = ()
    rows: Sequence[str] = ()
    title: str = ""
    colors: Sequence[Color | None] = ()
    kept: int = 0


def draw_grids(grids: Sequence[Grid], *, title: str = "", cell: int = 256, most_columns: int = MOST_COLUMNS) -> Image.Image:
    """Draw grids below one another; a grid with too many columns is folded into several.

    Args:
        grids: Grids from top to bottom.
        title: Title of the sheet.
        cell: Longest side of a picture in pixels; less if many stand side by side.
        most_columns: Most columns before a grid is folded.

    Raises:
        ValueError: If there is no picture at all.
    """
    folded = [part for grid in grids for part in _folded(grid, most_columns)]
    widest = max((len(row) for grid in folded for row in grid.pictures), default=1)
    return _drawn(folded, title, max(min(cell, _SMALLEST), min(cell, _WIDEST // max(widest, 1))))


def contact_sheet(
    rows: Pictures,
    *,
    column_labels: Sequence[str] = (),
    row_labels: Sequence[str] = (),
    cell: int = 256,
) -> Image.Image:
    """Pictures in one grid of any width, column labels above and row labels to the left.

    Args:
        rows: Rows of equal length; ``None`` leaves a grey field.
        column_labels: One label per column, or none.
        row_labels: One label per row, or none.
        cell: Longest side of a picture on the sheet, in pixels.

    Raises:
        ValueError: If there is no picture at all.
    """
    return _drawn([Grid(rows, column_labels, row_labels)], "", cell)


def strip(images: Sequence[Image.Image], labels: Sequence[str]) -> Image.Image:
    """Pictures of one size side by side, each under its label.

    Raises:
        ValueError: If there is no picture, or the numbers of pictures and labels differ.
    """
    if not images or len(images) != len(labels):
        raise ValueError(
            f"strip needs one label per picture, at least one; got {len(images)} pictures and {len(labels)} labels."
        )
    return contact_sheet([images], column_labels=labels, cell=max(images[0].size))


def _folded(grid: Grid, most: int) -> Iterator[Grid]:
    """The grid, or its parts of at most ``most`` columns and nearly equal width; only the first has the title."""
    count = max((len(row) for row in grid.pictures), default=0)
    if count <= most:
        yield grid
        return
    free = count - grid.kept
    parts = -(-free // max(1, most - grid.kept))
    width = -(-free // parts)
    for part in range(parts):
        chosen = [*range(grid.kept), *range(grid.kept + part * width, min(count, grid.kept + (part + 1) * width))]
        yield replace(
            grid,
            pictures=[[row[column] for column in chosen] for row in grid.pictures],
            columns=[grid.columns[column] for column in chosen] if grid.columns else (),
            colors=[grid.colors[column] for column in chosen] if grid.colors else (),
            title=grid.title if part == 0 else "",
        )


# ------------------------------------------------------------------------------------------------------------------ drawing


@dataclass(frozen=True)
class _Measures:
    """Sizes on a sheet, in pixels.

    Attributes:
        wide: Width of a picture.
        high: Height of a picture.
        left: Width of the row labels.
        font: Font of all labels.
        line: Height of a line of text.
    """

    wide: int
    high: int
    left: int
    font: _Font
    line: int

    def column(self, index: int) -> int:
        """Left edge of a column."""
        return _GAP + self.left + index * (self.wide + _GAP)


def _drawn(grids: Sequence[Grid], title: str, cell: int) -> Image.Image:
    pictures = [picture for grid in grids for row in grid.pictures for picture in row if picture is not None]
    if not pictures:
        raise ValueError("contact_sheet needs at least one picture; got none.")
    largest = max(pictures, key=lambda picture: picture.width * picture.height)
    scale = cell / max(largest.size)
    widest = max(len(row) for grid in grids for row in grid.pictures)
    font = _font(max(13, cell // 16, widest * (cell + _GAP) // _LETTERS))
    labels = [label for grid in grids for label in grid.rows]
    longest = max((font.getlength(label) for label in labels), default=0)
    whole = max((font.getlength(word) for label in labels for word in _words(label)), default=0)
    left = round(min(longest, max(cell * 0.6, 96, min(whole, cell * 2)))) + 2 * _GAP if labels else 0
    line = round(font.getbbox("Ag")[3]) + 3
    sizes = _Measures(round(largest.width * scale), round(largest.height * scale), left, font, line)
    parts = [_part(grid, sizes, sizes.column(widest)) for grid in grids]
    top = _GAP + line + _GAP if title else 0
    sheet = Image.new("RGB", (sizes.column(widest), top + sum(part.height for part in parts)), _PAPER)
    if title:
        ImageDraw.Draw(sheet).text((_GAP, _GAP), _fitted(title, font, sheet.width - 2 * _GAP), font=font, fill=_INK)
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height
    return sheet


def _part(grid: Grid, sizes: _Measures, width: int) -> Image.Image:
    """A picture of one grid with its labels."""
    heads = [_wrapped(label, sizes.font, sizes.wide, 3) for label in grid.columns]
    title = sizes.line + _GAP if grid.title else 0
    head = max((len(lines) for lines in heads), default=0) * sizes.line
    bar = _BAR if any(grid.colors) else 0
    top = _GAP + title + head + bar
    page = Image.new("RGB", (width, top + len(grid.pictures) * (sizes.high + _GAP)), _PAPER)
    pen = ImageDraw.Draw(page)
    if grid.title:
        pen.text((_GAP, _GAP), _fitted(grid.title, sizes.font, width - 2 * _GAP), font=sizes.font, fill=_INK)
    for column, lines in enumerate(heads):
        for index, text in enumerate(lines):
            above = _GAP + title + head - (len(lines) - index) * sizes.line
            pen.text((sizes.column(column), above - 1), text, font=sizes.font, fill=_INK)
    for column, color in enumerate(grid.colors):
        if color is not None:
            left = sizes.column(column)
            pen.rectangle((left, top - bar, left + sizes.wide - 1, top - 2), fill=color)
    for row, pictures in enumerate(grid.pictures):
        _row(page, pen, pictures, top + row * (sizes.high + _GAP), sizes)
        if grid.rows:
            for index, text in enumerate(_wrapped(grid.rows[row], sizes.font, sizes.left - 2 * _GAP, 6)):
                pen.text((_GAP, top + row * (sizes.high + _GAP) + index * sizes.line), text, font=sizes.font, fill=_SOFT)
    return page


def _row(page: Image.Image, pen: ImageDraw.ImageDraw, pictures: Sequence[Image.Image | None], top: int, s: _Measures) -> None:
    for column, picture in enumerate(pictures):
        left = s.column(column)
        if picture is None:
            pen.rectangle((left, top, left + s.wide - 1, top + s.high - 1), fill=_ABSENT)
        else:
            page.paste(picture.convert("RGB").resize((s.wide, s.high), Image.Resampling.LANCZOS), (left, top))


@lru_cache
def _font(size: int) -> _Font:
    return ImageFont.load_default(size)


def _wrapped(text: str, font: _Font, width: int, most: int) -> list[str]:
    """At most ``most`` lines of at most ``width`` pixels, not broken around ``=``; text that does not fit ends in dots."""
    lines = [""]
    for word in _words(text):
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    if len(lines) > most:
        lines = [*lines[: most - 1], " ".join(lines[most - 1 :])]
    return [_fitted(line, font, width) for line in lines]


def _words(text: str) -> list[str]:
    """Parts of a text within which a line is not broken: words, and ``name = value``."""
    return [word.replace("\0", " = ") for word in text.replace(" = ", "\0").split(" ")]


def _fitted(text: str, font: _Font, width: float) -> str:
    """The text, truncated with dots to a width in pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."
