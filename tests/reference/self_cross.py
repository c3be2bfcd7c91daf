"""Self-Cross guidance (https://arxiv.org/abs/2411.18936), word by word and cell by cell."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tests.reference.initno import otsu

Array = NDArray[np.float64]


def aggregated(word: Array, own: Array, published: bool) -> Array:
    """What the cells of a word's foreground look at; ``own`` is ``query key``."""
    total = np.zeros(word.size)
    for cell, value in enumerate(word.ravel()):
        level = int(value * 255)
        if level > otsu(word) or (published and level == otsu(word)):
            total += value * own[cell]
    return total.reshape(word.shape)


def shared(word: Array, seen: Array, published: bool) -> float:
    margin = 1e-4 if published else 0.0
    first, second = word / (word.sum() + margin), seen / (seen.sum() + margin)
    return sum(min(a, b) for a, b in zip(first.ravel(), second.ravel(), strict=True))


def conflict(words: Sequence[Array], seen: Sequence[Array], published: bool) -> float:
    """Mean over ordered pairs of different words."""
    pairs = [(i, j) for i in range(len(words)) for j in range(len(words)) if i != j]
    return sum(shared(words[i], seen[j], published) for i, j in pairs) / len(pairs) if pairs else 0.0


def absence(word: Array, strongest: int) -> float:
    return 1 - float(np.mean(sorted(word.ravel())[-strongest:]))
