"""Write the benchmark and development layout files of the shapes world: ``python scripts/make_layouts.py``."""

from __future__ import annotations

import argparse
import csv
import functools
import io
import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from scipy import ndimage

from attnguide.shapes.captions import NUMBERS, RELATION_WORDS, article, join, noun_phrase, plural
from attnguide.shapes.layouts import FILES, Layout, extent, layout_scene
from attnguide.shapes.renderer import SIDE, object_masks
from attnguide.shapes.scene import (
    BACKGROUNDS,
    COLORS,
    HELD_OUT_PAIRS,
    RELATIONS,
    SHAPES,
    Relation,
    Scene,
    is_held_out,
    relation_holds,
)

COLUMNS = ["id", "category", "prompt", *(f"{word}{n}" for n in range(1, 7) for word in ("obj", "bbox")), "relation", "held_out"]
ROWS = {"benchmark": 32, "development": 8}
LEAST_SIDE = 24
"""Least side of a box in pixels: three cells of a 16x16 map."""
UNSEEN_PAIRS = 8
"""One row in this many with several objects holds a (colour, shape) pair that training never showed."""

Name = tuple[str, str]
PixelBox = tuple[int, int, int, int]


@dataclass(frozen=True)
class Sizes:
    """Radii of the objects in pixels, and limits on their boxes."""

    least: float
    most: float
    fits: Callable[[list[PixelBox]], bool] = lambda boxes: all(_apart(a, b) for a, b in itertools.combinations(boxes, 2))


def _overlap(a: PixelBox, b: PixelBox) -> float:
    """Shared area as a share of the smaller box."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return max(width, 0) * max(height, 0) / smaller


def _apart(a: PixelBox, b: PixelBox, gap: int = 4) -> bool:
    return max(a[0], b[0]) - min(a[2], b[2]) >= gap or max(a[1], b[1]) - min(a[3], b[3]) >= gap


def _box(shape: str, radius: float, rng: random.Random) -> PixelBox:
    left, top, right, bottom = extent(shape)
    width, height = (max(round((high - low) * radius), LEAST_SIDE) for low, high in ((left, right), (top, bottom)))
    x, y = rng.randint(3, SIDE - 3 - width), rng.randint(3, SIDE - 3 - height)
    return x, y, x + width, y + height


def _fractions(boxes: list[PixelBox]) -> tuple[tuple[float, float, float, float], ...]:
    return tuple((a / SIDE, b / SIDE, c / SIDE, d / SIDE) for a, b, c, d in boxes)


def _boxes(shapes: list[str], sizes: Sizes, rng: random.Random, tries: int = 100_000) -> list[PixelBox] | None:
    for _ in range(tries):
        radius = rng.uniform(sizes.least, sizes.most)
        boxes: list[PixelBox] = []
        for shape in shapes:
            boxes.append(_box(shape, min(max(radius * rng.uniform(0.92, 1.08), sizes.least), sizes.most), rng))
        if sizes.fits(boxes):
            return boxes
    return None


def _held_out(names: list[Name]) -> str:
    if any(name in HELD_OUT_PAIRS for name in names):
        return "pair"
    return "combination" if is_held_out([f"{c} {s}" for c, s in names]) else "no"


def _background(rng: random.Random, share: float) -> str:
    name = rng.choice(list(BACKGROUNDS))
    return f" on {article(name)} {name} background" if rng.random() < share else ""


class Writer:
    """Draws rows that share no prompt and, with several objects, no combination with those of the other file."""

    def __init__(self) -> None:
        self.rng = random.Random("attnguide-layouts")
        self.taken: dict[str, set[str]] = {"benchmark": set(), "development": set()}
        self.rows: dict[str, list[Layout]] = {"benchmark": [], "development": []}

    def draw(self, file: str, row: int, size: int, accept: Callable[[list[Name]], bool]) -> list[Name]:
        """Distinct held-out names that no row of either file has; one row in :data:`UNSEEN_PAIRS` with an unseen pair."""
        kind = "pair" if row % UNSEEN_PAIRS == UNSEEN_PAIRS - 1 else "combination"
        while True:
            names = [(self.rng.choice(list(COLORS)), self.rng.choice(SHAPES)) for _ in range(size)]
            key = str(sorted(names))
            used = key in self.taken["benchmark"] | self.taken["development"]
            if len(set(names)) == size and _held_out(names) == kind and not used and accept(names):
                self.taken[file].add(key)
                return names

    def place(self, names: list[Name], sizes: Sizes) -> list[PixelBox]:
        """Draw boxes for these objects."""
        boxes = _boxes([shape for _, shape in names], sizes, self.rng)
        if boxes is None:
            raise RuntimeError(f"No room for {names}.")
        return boxes

    def add(
        self,
        file: str,
        category: str,
        prompt: str,
        phrases: list[str],
        boxes: list[PixelBox],
        names: list[Name],
        relation: Relation | None = None,
    ) -> None:
        """Append one row."""
        number = f"{'d' if file == 'development' else ''}{len(self.rows[file]):03d}"
        row = Layout(number, category, prompt, tuple(phrases), _fractions(boxes), relation, _held_out(names))
        self.rows[file].append(row)

    def objects(self, file: str, category: str, names: list[Name], boxes: list[PixelBox], background: float = 0.25) -> None:
        """Append a row of distinct objects, each named once."""
        words = [f"{c} {s}" for c, s in names]
        prompt = join([noun_phrase(word) for word in words], self.rng.choice(("and", "and", "with")))
        self.add(file, category, prompt + _background(self.rng, background), words, boxes, names)


def _single(writer: Writer, file: str) -> None:
    names = [(color, shape) for color in COLORS for shape in SHAPES]
    if file == "development":
        names = writer.rng.sample(names, ROWS[file])
    for name in names:
        writer.objects(file, "single", [name], writer.place([name], Sizes(19, 25)), background=float(file == "development"))


def _two_objects(writer: Writer, file: str) -> None:
    for row in range(ROWS[file]):
        names = writer.draw(file, row, 2, lambda names: names[0][1] != names[1][1])
        writer.objects(file, "two_objects", names, writer.place(names, Sizes(17, 23)))


def _color_attribution(writer: Writer, file: str) -> None:
    """Two colours that must not mix; in every third row on the same shape."""
    for row in range(ROWS[file]):
        same = row % 3 == 1

        def accept(names: list[Name], same: bool = same) -> bool:
            return names[0][0] != names[1][0] and (names[0][1] == names[1][1]) is same

        names = writer.draw(file, row, 2, accept)
        writer.objects(file, "color_attribution", names, writer.place(names, Sizes(17, 23)))


def _counted_names(file: str, number: int, rows: int, rng: random.Random) -> list[Name]:
    """Names whose group of ``number`` training never saw; there are few, so some come again on another background."""
    groups = [name for name in itertools.product(COLORS, SHAPES) if _held_out([name] * number) == "combination"]
    unseen = sorted(HELD_OUT_PAIRS)
    groups = groups[1:] if file == "benchmark" else groups[:1]
    unseen = unseen[1:] if file == "benchmark" else unseen[:1]
    rng.shuffle(groups)
    return [*itertools.islice(itertools.cycle(groups), rows - 1), rng.choice(unseen)]


def _counting(writer: Writer, file: str) -> None:
    per_number = math.ceil(ROWS[file] / 5)
    for number in range(2, 7):
        sizes = Sizes(13, 15.5) if number > 4 else Sizes(14, 18)
        endings = [""] + [f" on {article(name)} {name} background" for name in BACKGROUNDS]
        seen: dict[Name, int] = {}
        for name in _counted_names(file, number, per_number, writer.rng):
            ending = endings[seen.setdefault(name, 0) % len(endings)]
            seen[name] += 1
            color, shape = name
            boxes = writer.place([name] * number, sizes)
            prompt = f"{NUMBERS[number]} {color} {plural(shape)}{ending}"
            writer.add(file, "counting", prompt, [f"{color} {plural(shape)}"] * number, boxes, [name] * number)


def _position(writer: Writer, file: str) -> None:
    for row in range(ROWS[file]):
        relation = RELATIONS[row % len(RELATIONS)]
        names = writer.draw(file, row // len(RELATIONS), 2, lambda names: True)

        def fits(boxes: list[PixelBox], relation: Relation = relation) -> bool:
            (ax, ay), (bx, by) = (((x0 + x1) / 2 / SIDE, (y0 + y1) / 2 / SIDE) for x0, y0, x1, y1 in boxes)
            return _apart(boxes[0], boxes[1]) and relation_holds((ax, ay), (bx, by), relation, margin=0.25)

        boxes = writer.place(names, Sizes(15, 21, fits))
        words = [f"{c} {s}" for c, s in names]
        between = writer.rng.choice(RELATION_WORDS[relation])
        prompt = f"{noun_phrase(words[0])} {between} {noun_phrase(words[1])}"
        writer.add(file, "position", prompt, words, boxes, names, relation)


def _several(writer: Writer, file: str, category: str, row: int, size: int, sizes: Sizes) -> None:
    names = [(writer.rng.choice(list(COLORS)), writer.rng.choice(SHAPES))]
    if size > 1:
        names = writer.draw(file, row, size, lambda names: True)
    writer.objects(file, category, names, writer.place(names, sizes), background=1.0 if size == 1 else 0.25)


def _boxes_category(writer: Writer, file: str) -> None:
    for row in range(ROWS[file]):
        size = 1 + row * 4 // ROWS[file]
        _several(
            writer, file, "boxes", row, size, {1: Sizes(17, 26), 2: Sizes(16, 23), 3: Sizes(14, 19)}.get(size, Sizes(13, 17))
        )


def _small_boxes(writer: Writer, file: str) -> None:
    for row in range(ROWS[file]):
        _several(writer, file, "small_boxes", row, 1 + row * 3 // ROWS[file], Sizes(12, 14.5))


def _stand_apart(names: list[Name], boxes: list[PixelBox]) -> bool:
    """Whether boxes share ground and yet both objects can stand whole: two pixels or more lie between what fills them."""
    if not 0.06 <= _overlap(*boxes) <= 0.4:
        return False
    words = tuple(f"{c} {s}" for c, s in names)
    drawn = layout_scene(Layout("", "", join(list(words)), words, _fractions(boxes)))
    first, second = (object_masks(Scene((obj,)))[0] for obj in drawn.objects)
    return not (ndimage.binary_dilation(first, iterations=2) & second).any()


def _overlapping_boxes(writer: Writer, file: str) -> None:
    for row in range(ROWS[file]):
        boxes: list[PixelBox] | None = None

        def accept(names: list[Name]) -> bool:
            nonlocal boxes
            sizes = Sizes(18, 25, functools.partial(_stand_apart, names))
            # Some pairs cannot: a square fills its box. They are drawn again.
            boxes = _boxes([s for _, s in names], sizes, writer.rng, tries=300) if names[0][0] != names[1][0] else None
            return boxes is not None

        names = writer.draw(file, row, 2, accept)
        assert boxes is not None
        writer.objects(file, "overlapping_boxes", names, boxes)


CATEGORIES: tuple[Callable[[Writer, str], None], ...] = (
    _single, _two_objects, _color_attribution, _counting, _position, _boxes_category, _small_boxes, _overlapping_boxes,
)  # fmt: skip


def make_layouts() -> dict[str, list[Layout]]:
    """Both files' rows, the same on every machine."""
    writer = Writer()
    for file in ROWS:
        for category in CATEGORIES:
            category(writer, file)
    return writer.rows


def to_csv(rows: list[Layout]) -> str:
    """The text of a layout file."""
    text = io.StringIO()
    sheet = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    sheet.writeheader()
    for row in rows:
        cells = {"id": row.id, "category": row.category, "prompt": row.prompt, "held_out": row.held_out}
        cells["relation"] = row.relation or ""
        for number, (phrase, box) in enumerate(zip(row.phrases, row.boxes, strict=True), start=1):
            cells[f"obj{number}"] = phrase
            cells[f"bbox{number}"] = ",".join(str(round(corner * SIDE)) for corner in box)
        sheet.writerow(cells)
    return text.getvalue()


def main() -> None:
    """Write both files."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    for name, rows in make_layouts().items():
        FILES[name].parent.mkdir(exist_ok=True)
        FILES[name].write_text(to_csv(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
