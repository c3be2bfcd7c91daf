"""Maps of words as attend-and-excite's family reads them, one cell after the other."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def mean_map(layers: Sequence[Array]) -> Array:
    """Mean over layers and heads; each layer ``heads height width token``."""
    heads = [head for layer in layers for head in layer]
    total = np.zeros_like(heads[0])
    for head in heads:
        total = total + head
    return total / len(heads)


def blurred(amap: Array, std: float) -> Array:
    """3x3 Gaussian, reflected at the edges."""
    height, width = amap.shape
    taps = {(i, j): math.exp(-(i * i + j * j) / (2 * std * std)) for i in (-1, 0, 1) for j in (-1, 0, 1)}
    total = sum(taps.values())
    out = np.zeros_like(amap)
    for y in range(height):
        for x in range(width):
            for (i, j), tap in taps.items():
                row, column = abs(y + i), abs(x + j)
                row = 2 * (height - 1) - row if row >= height else row
                column = 2 * (width - 1) - column if column >= width else column
                out[y, x] += tap / total * amap[row, column]
    return out


def token_softmax(mean: Array, last: int, temperature: float = 100.0) -> Array:
    """Softmax over tokens 1 .. last - 1 of a ``height width token`` map, at the tokens' own positions."""
    out = np.zeros_like(mean)
    for y in range(mean.shape[0]):
        for x in range(mean.shape[1]):
            logits = [temperature * value for value in mean[y, x, 1:last]]
            top = max(logits)
            weights = [math.exp(value - top) for value in logits]
            out[y, x, 1:last] = [weight / sum(weights) for weight in weights]
    return out


def word_map(probs: Array, positions: Sequence[int], std: float) -> Array:
    """Mean of a word's pieces, blurred."""
    return blurred(sum(probs[:, :, position] for position in positions) / len(positions), std)
