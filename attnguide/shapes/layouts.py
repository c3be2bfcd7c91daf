"""Layouts (prompts with boxes): the embedded benchmark and development files, and their reader."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TypeVar

from attnguide.shapes.captions import plural
from attnguide.shapes.renderer import OUTLINES, SIDE
from attnguide.shapes.scene import BACKGROUNDS, RELATIONS, SHAPES, Relation, Scene, SceneObject
from attnguide.types import Box

FILES: dict[str, Path] = {name: Path(__file__).parent / "data" / f"{name}.csv" for name in ("benchmark", "development")}
"""Layout files of the package: ``benchmark`` for measuring, ``development`` for tuning."""

HELD_OUT = ("no", "combination", "pair")
"""What training never saw of a row: nothing; the combination of its objects; or even one of its (colour, shape) pairs."""

Row = TypeVar("Row")

_SINGULARS = {plural(shape): shape for shape in SHAPES}


@dataclass(frozen=True)
class Layout:
    """One row: a prompt and the place of each of its objects.

    Attributes:
        id: Unique within its file.
        category: Kind of row, e.g. ``"counting"``.
        prompt: The prompt.
        phrases: Phrase of the prompt for each object; three instances of "green stars" are three entries.
        boxes: Box of each phrase, as fractions.
        relation: Relation of the first object to the second, if the prompt states one.
        held_out: One of :data:`HELD_OUT`.

    Raises:
        ValueError: If a box is invalid, a phrase is not in the prompt, or ``relation`` or ``held_out`` is unknown.
    """

    id: str
    category: str
    prompt: str
    phrases: tuple[str, ...]
    boxes: tuple[Box, ...]
    relation: Relation | None = None
    held_out: str = "no"

    def __post_init__(self) -> None:
        if len(self.phrases) != len(self.boxes):
            raise ValueError(f"Row {self.id!r} needs one box per phrase; got {len(self.phrases)} and {len(self.boxes)}.")
        for box in self.boxes:
            if not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
                raise ValueError(f"Row {self.id!r}: a box must be (x0, y0, x1, y1) with x0 < x1, y0 < y1 in [0, 1]; got {box}.")
        for phrase in self.phrases:
            if phrase.lower() not in self.prompt.lower():
                raise ValueError(f"Row {self.id!r}: phrase {phrase!r} does not occur in the prompt {self.prompt!r}.")
        if self.relation is not None and self.relation not in RELATIONS:
            raise ValueError(f"Row {self.id!r}: relation must be one of {', '.join(RELATIONS)}; got {self.relation!r}.")
        if self.held_out not in HELD_OUT:
            raise ValueError(f"Row {self.id!r}: held_out must be one of {', '.join(HELD_OUT)}; got {self.held_out!r}.")

    @property
    def names(self) -> tuple[str, ...]:
        """The phrases in the singular: ``"green stars"`` is ``"green star"``."""
        words = (phrase.rpartition(" ") for phrase in self.phrases)
        return tuple(head + space + _SINGULARS.get(noun, noun) for head, space, noun in words)


def _row(cells: dict[str, str], side: int) -> Layout:
    phrases, boxes = [], []
    for number in count(1):
        phrase, text = cells.get(f"obj{number}"), cells.get(f"bbox{number}")
        if not phrase or not text:
            break
        corners = tuple(float(corner) / side for corner in text.split(","))
        if len(corners) != 4:
            raise ValueError(f"Row {cells['id']!r}: bbox{number} must be 'x0,y0,x1,y1' in pixels; got {text!r}.")
        if corners[0] == corners[2] or corners[1] == corners[3]:
            warnings.warn(f"Row {cells['id']!r}: the box of {phrase!r} has no area; the object gets no box.", stacklevel=3)
            continue
        phrases.append(phrase)
        boxes.append(corners)
    relation: Relation | None = cells.get("relation") or None  # type: ignore[assignment]
    held_out = cells.get("held_out") or "no"
    return Layout(cells["id"], cells["category"], cells["prompt"], tuple(phrases), tuple(boxes), relation, held_out)


def load_layouts(source: str | Path = "benchmark", side: int = SIDE) -> list[Layout]:
    """Read a layout file.

    Args:
        source: ``"benchmark"``, ``"development"``, or the path of a CSV file with columns ``id, category, prompt, obj1, bbox1,
            obj2, bbox2, ...`` and optionally ``relation, held_out``; boxes as ``x0,y0,x1,y1`` in pixels.
        side: Side in pixels of the picture that the file's boxes refer to.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a column is missing or a row is malformed.

    Warns:
        UserWarning: If a box has no area; that object is left out.
    """
    path = FILES.get(str(source), Path(source))
    if not path.is_file():
        raise FileNotFoundError(f"source must be {', '.join(FILES)} or the path of a CSV file; got {str(source)!r}.")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = {"id", "category", "prompt", "obj1", "bbox1"} - set(reader.fieldnames or ())
        if missing:
            raise ValueError(f"{path.name} lacks the columns {', '.join(sorted(missing))}.")
        return [_row(cells, side) for cells in reader]


def spread(rows: Sequence[Row], number: int | None) -> list[Row]:
    """``number`` rows at even distances from the first on; all if there are no more, or for ``None``.

    The files go from easy rows to hard ones (counts of 2, then 3, ...), so the first few would stand for none but the easy.
    Rows of a ``number`` are among those of its double.

    Raises:
        ValueError: If ``number`` is below 1.

    Example:
        >>> spread("abcdefgh", 2), spread("abcdefgh", 4)
        (['a', 'e'], ['a', 'c', 'e', 'g'])
    """
    if number is None:
        return list(rows)
    if number < 1:
        raise ValueError(f"number must be at least 1; got {number}.")
    return [rows[index * len(rows) // number] for index in range(number)] if number < len(rows) else list(rows)


def choose_layouts(layouts: Sequence[Layout], categories: Sequence[str] | None, prompts: int | None) -> list[Layout]:
    """:func:`spread` rows of each category, of all categories if none are named."""
    names = categories or dict.fromkeys(layout.category for layout in layouts)
    return [row for name in names for row in spread([one for one in layouts if one.category == name], prompts)]


def extent(shape: str) -> Box:
    """Bounds ``(x0, y0, x1, y1)`` of an upright shape around its centre, in units of its radius, y downwards."""
    xs, ys = zip(*OUTLINES[shape](), strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def layout_scene(row: Layout, background: str = "white") -> Scene:
    """The scene in which every object of a row fills its box as far as the shape's proportions allow.

    Raises:
        ValueError: If an object of the row is not of this world.
    """
    objects = []
    for name, (x0, y0, x1, y1) in zip(row.names, row.boxes, strict=True):
        color, _, shape = name.partition(" ")
        if shape not in SHAPES:
            raise ValueError(f"Row {row.id!r} must name objects by colour and shape; got {name!r}.")
        left, top, right, bottom = extent(shape)
        radius = min((x1 - x0) / (right - left), (y1 - y0) / (bottom - top))
        x, y = (x0 + x1) / 2 - radius * (left + right) / 2, (y0 + y1) / 2 - radius * (top + bottom) / 2
        objects.append(SceneObject(shape, color, x, y, radius))
    if background not in BACKGROUNDS:
        raise ValueError(f"background must be one of {', '.join(BACKGROUNDS)}; got {background!r}.")
    return Scene(tuple(objects), background, row.relation)
