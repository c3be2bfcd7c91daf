"""SynGen (https://arxiv.org/abs/2306.08877), pair by pair."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Group = tuple[Sequence[Sequence[int]], Sequence[int]]
"""Positions of each modifier's pieces, and of the noun's."""


def distance(first: Array, second: Array) -> float:
    """Symmetric Kullback-Leibler divergence of two maps."""
    p, q = (first / first.sum()).ravel(), (second / second.sum()).ravel()
    return 0.5 * sum(a * math.log(a / b) + b * math.log(b / a) for a, b in zip(p, q, strict=True))


def loss(mean: Array, groups: Sequence[Group], tokens: int) -> float:
    """Loss of one picture from its mean ``height width token`` map; words stand at 1 .. tokens."""
    total = 0.0
    for modifiers, noun in groups:
        own = {position for word in (*modifiers, noun) for position in word}
        others = [position for position in range(1, tokens + 1) if position not in own]

        def away(word: Sequence[int], others: Sequence[int] = others) -> float:
            return sum(max(distance(mean[:, :, p], mean[:, :, o]) for p in word) for o in others) / len(others)

        for modifier in modifiers:
            total += max(distance(mean[:, :, m], mean[:, :, n]) for m in modifier for n in noun)
            total -= 0.5 * (away(noun) + away(modifier))
        if not modifiers:
            total -= away(noun)
    return total
