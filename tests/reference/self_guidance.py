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


def stretched(amap: Array, height: int, width: int) -> Array:
    """A map at another size, between cell centres in straight lines and constant beyond the outermost."""

    def place(index: int, cells: int, size: int) -> tuple[int, int, float]:
        at = max((index + 0.5) * cells / size - 0.5, 0.0)
        low = min(int(at), cells - 1)
        return low, min(low + 1, cells - 1), at - low

    out = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            top, bottom, down = place(y, amap.shape[0], height)
            left, right, across = place(x, amap.shape[1], width)
            above = amap[top, left] * (1 - across) + amap[top, right] * across
            below = amap[bottom, left] * (1 - across) + amap[bottom, right] * across
            out[y, x] = above * (1 - down) + below * down
    return out


def appearance(features: Array, mask: Array) -> Array:
    """Mean of ``channels height width`` features under a mask."""
    total = np.zeros(len(features))
    for y in range(mask.shape[0]):
        for x in range(mask.shape[1]):
            total += mask[y, x] * features[:, y, x]
    return total / mask.sum()


def changed(
    layers: Sequence[Array],
    others: Sequence[Array],
    features: Sequence[Array],
    other_features: Sequence[Array],
    tokens: Sequence[int],
    other_tokens: Sequence[int],
    weights: dict[str, float],
) -> float:
    """How far one word is from what it is in the source; each feature ``channels height width``."""

    def word(layer: Array, positions: Sequence[int]) -> Array:
        mean = np.mean(layer, axis=0)
        return np.mean([mean[:, :, position] for position in positions], axis=0)

    total = 0.0
    shapes: tuple[list[Array], list[Array]] = ([], [])
    for layer, other in zip(layers, others, strict=True):
        maps = word(layer, tokens), word(other, other_tokens)
        (x, y), (u, v) = centre(maps[0]), centre(maps[1])
        one, two = shape(maps[0]), shape(maps[1])
        shapes[0].append(one)
        shapes[1].append(two)
        part = weights["centre"] * (abs(x - u) + abs(y - v)) + weights["size"] * abs(one.mean() - two.mean())
        total += (part + weights["shape"] * float(np.abs(one - two).mean())) / len(layers)
    for feature, other in zip(features, other_features, strict=True):
        looks = []
        for side, values in zip(shapes, (feature, other), strict=True):
            mask = np.mean([stretched(one, *values.shape[1:]) for one in side], axis=0)
            looks.append(appearance(values, mask))
        total += weights["appearance"] * float(np.abs(looks[0] - looks[1]).mean()) / len(features)
    return total
