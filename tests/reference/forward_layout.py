"""Forward layout guidance (https://arxiv.org/abs/2304.03373, recalled), cell by cell."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def window(mask: Array, spread: float | None) -> Array:
    """The region's window on its map, which sums to 1."""
    height, width = mask.shape
    total = float(mask.sum())
    centre = {"y": 0.0, "x": 0.0}
    for y in range(height):
        for x in range(width):
            centre["y"] += y * mask[y, x] / total
            centre["x"] += x * mask[y, x] / total
    variance = {"y": 1 / 12, "x": 1 / 12}
    for y in range(height):
        for x in range(width):
            variance["y"] += (y - centre["y"]) ** 2 * mask[y, x] / total
            variance["x"] += (x - centre["x"]) ** 2 * mask[y, x] / total
    drawn = mask.copy()
    if spread is not None:
        for y in range(height):
            for x in range(width):
                far = (y - centre["y"]) ** 2 / variance["y"] + (x - centre["x"]) ** 2 / variance["x"]
                drawn[y, x] *= math.exp(-far / (2 * spread**2))
    return drawn / drawn.sum()


def moved(column: Array, windows: list[Array], scale: float) -> Array:
    """A token's map after the edit; several regions of one token share it evenly."""
    shared = sum(windows[1:], windows[0]) / len(windows)
    return (1 - scale) * column + scale * shared * float(column.sum())
