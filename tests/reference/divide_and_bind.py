"""Divide & Bind (https://arxiv.org/abs/2307.10864), neighbour by neighbour."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def variation(amap: Array, last_row: bool = False) -> float:
    """Total variation; with ``last_row`` as the code has it."""
    height, width = amap.shape
    across = [abs(amap[y, x + 1] - amap[y, x]) for y in range(height) for x in range(width - 1)]
    down = [abs(amap[y + 1, x] - amap[-1 if last_row else y, x]) for y in range(height - 1) for x in range(width)]
    return sum(across) / len(across) + sum(down) / len(down)


def apart(noun: Array, attribute: Array, quantile: float, normalise: bool) -> float:
    """Divergence of a noun's map and an attribute's."""
    attribute = attribute / attribute.max() * noun.max()
    both = []
    for amap in (noun, attribute):
        weights = np.exp(amap)
        both.append(weights / weights.sum())
    floor = quantile * both[0].max()
    both = [np.maximum(amap - floor, 0) + 1e-5 for amap in both]
    if normalise:
        both = [amap / amap.sum() for amap in both]
    total = 0.0
    for p, q in zip(both[0].ravel(), both[1].ravel(), strict=True):
        middle = (p + q) / 2
        total += 0.5 * (p * math.log(p / middle) + q * math.log(q / middle))
    return total


def loss(
    nouns: Sequence[Array], attributes: Sequence[Sequence[Array]], strength: float, published: bool
) -> tuple[float, float]:
    """Loss of one picture and its smallest variation, from each noun's map and those of its attributes."""
    values, variations = [], []
    for noun, words in zip(nouns, attributes, strict=True):
        found = variation(noun, published)
        value = -found
        if words:
            quantile = 0.3 if found < 0.1 else 0.2
            value += strength * sum(apart(noun, word, quantile, not published) for word in words) / len(words)
        values.append(value)
        variations.append(found)
    return max(values), min(variations)
