"""Attend-and-excite (https://arxiv.org/abs/2301.13826), as the paper's code behaves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from tests.reference.attention import softmax

Array = NDArray[np.float64]

REFERENCE_STD = 0.5 * math.sqrt(2)
"""The code divides by twice the deviation inside the square, which widens the blur by the root of two."""


def _blurred(amap: Array, std: float) -> Array:
    height, width = amap.shape
    taps = {(i, j): math.exp(-(i * i + j * j) / (2 * std * std)) for i in (-1, 0, 1) for j in (-1, 0, 1)}
    total = sum(taps.values())

    def reflect(position: int, side: int) -> int:
        return -position if position < 0 else 2 * (side - 1) - position if position >= side else position

    out = np.zeros_like(amap)
    for y in range(height):
        for x in range(width):
            for (i, j), tap in taps.items():
                out[y, x] += tap / total * amap[reflect(y + i, height), reflect(x + j, width)]
    return out


def loss(layers: Sequence[Array], tokens: Sequence[int], last: int, std: float = REFERENCE_STD) -> float:
    """Loss of one picture.

    Args:
        layers: Probs per layer, each ``heads height width token``.
        tokens: Positions of the words.
        last: First position that does not compete.
        std: Of the 3x3 blur.
    """
    heads = [head for layer in layers for head in layer]
    mean = sum(heads) / len(heads)
    height, width, _ = mean.shape
    worst = 0.0
    for token in tokens:
        amap = np.array([[softmax(100 * mean[y, x, 1:last])[token - 1] for x in range(width)] for y in range(height)])
        worst = max(worst, max(0.0, 1 - float(_blurred(amap, std).max())))
    return worst


def refine(
    position: float, judge: Callable[[float], float], move: Callable[[float], float], threshold: float, most: int
) -> list[float]:
    """Points visited by the code's refinement loop, which looks at the loss from before each move."""
    visited = [position]
    found = judge(position)
    if found <= 1 - threshold:
        return visited
    count = 0
    while found > 1 - threshold:
        count += 1
        found = judge(position)
        position = move(position)
        visited.append(position)
        if count >= most:
            break
    return visited
