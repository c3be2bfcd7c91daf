"""BoxDiff (https://arxiv.org/abs/2307.10816), term by term."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Cells = tuple[int, int, int, int]
"""``x0 y0 x1 y1`` in cells, ends not included."""


def inside(amap: Array, box: Cells, fraction: float = 0.2) -> float:
    x0, y0, x1, y1 = box
    values = sorted((amap[y, x] for y in range(y0, y1) for x in range(x0, x1)), reverse=True)
    count = max(math.floor(len(values) * fraction), 1)
    return max(0.0, 1 - sum(values[:count]) / count)


def outside(amap: Array, box: Cells, fraction: float = 0.2) -> float:
    x0, y0, x1, y1 = box
    height, width = amap.shape
    cells = [(y, x) for y in range(height) for x in range(width) if not (x0 <= x < x1 and y0 <= y < y1)]
    values = sorted((amap[cell] for cell in cells), reverse=True)
    count = max(math.floor(len(values) * fraction), 1)
    return sum(values[:count]) / count if values else 0.0


def corners(amap: Array, box: Cells, reach: int = 1, drawn: bool = True) -> float:
    """Outlines near the edges; of a box without cells (``drawn=False``) the wanted outline is 0."""
    x0, y0, x1, y1 = box
    height, width = amap.shape
    total = 0.0
    for first, stop, count, profile in (
        (x0, x1, width, [max(amap[:, x]) for x in range(width)]),
        (y0, y1, height, [max(amap[y]) for y in range(height)]),
    ):
        near = {c for edge in (first, stop) for c in range(edge - reach, edge + reach + 1) if 0 <= c < count}
        total += sum(abs(profile[c] - (1.0 if drawn and first <= c < stop else 0.0)) for c in near) / count
    return total


def loss(maps: Sequence[Array], boxes: Sequence[Cells]) -> tuple[float, float]:
    """Loss, and the inner term of the worst box."""
    inner = [inside(amap, box) for amap, box in zip(maps, boxes, strict=True)]
    rest = [outside(amap, box) + corners(amap, box) for amap, box in zip(maps, boxes, strict=True)]
    return sum(inner) + sum(rest), max(inner)
