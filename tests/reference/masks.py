"""Cells that published code takes for a box, one edge and one cell after the other.

A box is ``x0, y0, x1, y1`` in fractions; what comes out holds ``(row, column)`` of the cells.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

Box = tuple[float, float, float, float]
Cells = set[tuple[int, int]]


def nearest(value: float) -> int:
    """The nearest whole number, the even one from the middle between two: what ``round`` of Python 3 does."""
    below = math.floor(value)
    beyond = Fraction(value) - below
    if beyond == Fraction(1, 2):
        return below + below % 2
    return below + (beyond > Fraction(1, 2))


def between(box: Box, height: int, width: int, whole: Callable[[float], int]) -> Cells:
    """Cells between edges that were made whole."""
    x0, y0, x1, y1 = box
    return {(y, x) for y in range(whole(y0 * height), whole(y1 * height)) for x in range(whole(x0 * width), whole(x1 * width))}


def rounded(box: Box, height: int, width: int) -> Cells:
    """BoxDiff, from boxes in pixels of a picture that has 512; Bounded Attention, from fractions."""
    return between(box, height, width, nearest)


def truncated(box: Box, height: int, width: int) -> Cells:
    """Layout guidance; R&B on its one map of 64 x 64."""
    return between(box, height, width, math.floor)


def by_half(box: Box, height: int, width: int) -> Cells:
    """Cells of which the box covers at least half: pixels of a painted picture."""
    x0, y0, x1, y1 = box
    cells = set()
    for y in range(height):
        for x in range(width):
            down = min(y1 * height, y + 1) - max(y0 * height, y)
            across = min(x1 * width, x + 1) - max(x0 * width, x)
            if down > 0 and across > 0 and down * across >= 0.5:
                cells.add((y, x))
    return cells


def aligned_corners(painted: Cells, size: int, cells: int) -> list[list[float]]:
    """Paint-with-words: a square painting read bilinearly at points whose outermost are its outermost pixels' centres."""
    read = []
    for row in range(cells):
        v = row * (size - 1) / (cells - 1)
        line = []
        for column in range(cells):
            u = column * (size - 1) / (cells - 1)
            total = 0.0
            for y in (math.floor(v), math.floor(v) + 1):
                for x in (math.floor(u), math.floor(u) + 1):
                    total += (1 - abs(v - y)) * (1 - abs(u - x)) * ((y, x) in painted)
            line.append(total)
        read.append(line)
    return read
