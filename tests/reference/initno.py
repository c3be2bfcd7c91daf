"""InitNO (https://arxiv.org/abs/2404.04650), word by word and cell by cell."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Cell = tuple[int, int]


def otsu(amap: Array) -> int:
    """The first of the whole levels of 1/255 up to which the two groups differ most."""
    values = [int(value * 255) for value in amap.flat]
    best, found = 0.0, 0
    for level in range(256):
        low, high = [v for v in values if v <= level], [v for v in values if v > level]
        if low and high:
            apart = sum(low) / len(low) - sum(high) / len(high)
            between = len(low) * len(high) * apart**2
            if between > best * (1 + 1e-9):
                best, found = between, level
    return found


def blob(strong: NDArray[np.bool_], seed: Cell) -> set[Cell]:
    """Cells that touch the seed's, by edges."""
    reached, waiting = set[Cell](), [seed]
    while waiting:
        y, x = waiting.pop()
        if 0 <= y < strong.shape[0] and 0 <= x < strong.shape[1] and strong[y, x] and (y, x) not in reached:
            reached.add((y, x))
            waiting += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
    return reached


def peak(amap: Array) -> Cell:
    y, x = divmod(int(amap.argmax()), amap.shape[1])
    return y, x


def clean(amap: Array, published: bool = False) -> float:
    """The strongest cell outside the main blob, if it exceeds the weakest inside; published: cells at the threshold join it."""
    whole = np.vectorize(int)(amap * 255)
    inside = blob(whole >= otsu(amap) if published else whole > otsu(amap), peak(amap))
    beside = max((float(value) for cell, value in np.ndenumerate(amap) if cell not in inside), default=0.0)
    return beside if beside > min((float(amap[cell]) for cell in inside), default=1.0) else 0.0


def shared(first: Array, second: Array) -> float:
    total = both = 0.0
    for a, b in zip(first.flat, second.flat, strict=True):
        both += min(a, b)
        total += a + b
    return both / total


def conflict(around: Sequence[Array]) -> float:
    """Mean overlap of pairs."""
    pairs = [(i, j) for i in range(len(around)) for j in range(i + 1, len(around))]
    return sum(shared(around[i], around[j]) for i, j in pairs) / max(len(pairs), 1)


class Adam:
    """The optimiser, for a vector of numbers."""

    def __init__(self, size: int, rate: float = 0.01, eps: float = 1e-3) -> None:
        self.rate, self.eps, self.count = rate, eps, 0
        self.first, self.second = np.zeros(size), np.zeros(size)

    def step(self, values: Array, gradient: Array) -> Array:
        self.count += 1
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient**2
        first, second = self.first / (1 - 0.9**self.count), self.second / (1 - 0.999**self.count)
        return values - self.rate * first / (np.sqrt(second) + self.eps)


def optimised(noise: Array, gradients: Sequence[Array], limit: float = 1e-3) -> Array:
    """Where a flat noise is after descent on losses with these gradients, each followed by steps back to unit noise."""
    size = noise.size
    both, adam = np.zeros(2 * size), Adam(2 * size)

    def divergence() -> float:
        return sum(-0.5 * (1 + v - m * m - math.exp(v)) for v, m in zip(both[:size], both[size:], strict=True)) / size

    for gradient in gradients:
        both = adam.step(both, np.concatenate([gradient * noise * 0.5 * np.exp(both[:size] / 2), gradient]))
        while divergence() > limit:
            both = adam.step(both, np.concatenate([(np.exp(both[:size]) - 1) / (2 * size), both[size:] / size]))
    return noise * np.exp(both[:size] / 2) + both[size:]
