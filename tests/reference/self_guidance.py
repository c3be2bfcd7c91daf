"""Self-guidance's properties (https://arxiv.org/abs/2306.00986), cell by cell."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def scaled(amap: Array) -> Array:
    return (amap - amap.min()) / (amap.max() - amap.min())


def shape(amap: Array, sharpness: float = 10.0) -> Array:
    return scaled(np.vectorize(lambda value: 1 / (1 + math.exp(-sharpness * (value - 0.5))))(scaled(amap)))


def centre(amap: Array) -> tuple[float, float]:
    """x and y as fractions."""
    height, width = amap.shape
    across = along = total = 0.0
    for y in range(height):
        for x in range(width):
            across += amap[y, x] * (x + 0.5) / width
            along += amap[y, x] * (y + 0.5) / height
            total += amap[y, x]
    return across / total, along / total


def loss(layers: Sequence[Array], words: Sequence[Sequence[int]], masks: Sequence[Array]) -> float:
    """Loss of one picture; each layer ``heads height width token``, one mask a word."""
    total = 0.0
    for layer in layers:
        mean = np.mean(layer, axis=0)
        for positions, mask in zip(words, masks, strict=True):
            amap = np.mean([mean[:, :, position] for position in positions], axis=0)
            found, wanted = centre(amap), centre(mask)
            outline = shape(amap)
            total += abs(found[0] - wanted[0]) + abs(found[1] - wanted[1])
            total += 3 * abs(outline.mean() - mask.mean()) + 4 * float(np.abs(outline - mask).mean())
    return total / len(layers)
