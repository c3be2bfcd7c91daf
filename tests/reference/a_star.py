"""A-STAR (https://arxiv.org/abs/2306.14544), cell by cell."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def overlap(first: Array, second: Array) -> float:
    pairs = list(zip(first.ravel(), second.ravel(), strict=True))
    return sum(min(a, b) for a, b in pairs) / sum(a + b for a, b in pairs)


def binary(amap: Array, threshold: float = 0.5) -> Array:
    low, high = amap.min(), amap.max()
    return np.array([[1.0 if (value - low) / (high - low) > threshold else 0.0 for value in row] for row in amap])


def loss(maps: Sequence[Array], previous: Sequence[Array] | None) -> float:
    """Loss of one picture from its words' maps now and a step before."""
    total = sum(overlap(maps[m], maps[n]) for m in range(len(maps)) for n in range(m))
    if previous is not None:
        total += sum(1 - overlap(amap, binary(before)) for amap, before in zip(maps, previous, strict=True))
    return total
