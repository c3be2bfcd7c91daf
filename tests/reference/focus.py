"""FOCUS (https://arxiv.org/abs/2510.02315), cell by cell."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def divergence(maps: Sequence[Array], power: float = 3.0) -> float:
    """Mean Kullback-Leibler divergence from the mean, over the logarithm of the number of maps."""
    sharp = [amap.ravel() ** power for amap in maps]
    probs = [amap / amap.sum() for amap in sharp]
    middle = sum(probs) / len(probs)
    total = 0.0
    for prob in probs:
        total += sum(p * math.log(p / m) for p, m in zip(prob, middle, strict=True) if p > 0)
    return total / len(probs) / math.log(len(probs))


def cost(tokens: dict[int, Array], subjects: Sequence[Sequence[int]]) -> float:
    """Coherence within subjects of several tokens and separation of subjects, from one smoothed map a token."""
    several = [divergence([tokens[token] for token in subject]) for subject in subjects if len(subject) > 1]
    together = sum(several) / len(several) if several else 0.0
    means = [sum(tokens[token] for token in subject) / len(subject) for subject in subjects]
    return (together + (1 - divergence(means) if len(means) > 1 else 0.0)) / 2


def factor(time: float) -> float:
    """Of the gradient in the published velocity, with ``time`` from 0 (noise) to 1."""
    return (1 - time) * 2 * (1 - time + 1e-3) / (time + 1e-3)
