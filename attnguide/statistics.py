"""Cluster bootstrap of means, paired differences with sign-flip tests, and Holm's correction for several tests."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np

DRAWS = 2000
"""Number of bootstrap draws."""

FLIPS = 1999
"""Number of random sign flips of the permutation test, whose least p is ``1 / (FLIPS + 1)``."""

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Mean:
    """A mean over pictures.

    Attributes:
        mean: Mean over all pictures.
        low: Lower end of the 95 % percentile bootstrap interval over clusters.
        high: Upper end of the interval.
        pictures: Number of pictures.
        clusters: Number of clusters (prompts).
    """

    mean: float
    low: float
    high: float
    pictures: int
    clusters: int


@dataclass(frozen=True)
class Difference(Mean):
    """A mean of paired differences.

    Attributes:
        p: Two-sided p-value of the sign-flip test, whose null is that clusters' differences are symmetric about 0.
    """

    p: float


def clustered_mean(values: Mapping[Key, Sequence[float]]) -> Mean | None:
    """Mean over pictures with a cluster bootstrap interval; ``None`` without any value.

    Pictures of one prompt are not independent: clusters (prompts) are drawn with replacement, each with all of its pictures
    (Cameron, Gelbach and Miller, 2008).

    Args:
        values: Cluster -> values of its pictures.
    """
    sums, counts = _totals(values)
    if not counts.sum():
        return None
    low, high = _interval(sums, counts)
    return Mean(float(sums.sum() / counts.sum()), low, high, int(counts.sum()), len(counts))


def paired_difference(
    after: Mapping[Key, float], before: Mapping[Key, float], clusters: Mapping[Key, Hashable]
) -> Difference | None:
    """Mean of ``after - before`` over the pictures that have both; ``None`` if none has.

    The p-value is that of a permutation test in which each cluster's summed difference keeps or changes its sign.

    Args:
        after: Value of each picture.
        before: Value of the picture it is compared with, by the same key.
        clusters: Cluster (prompt) of each picture.
    """
    grouped: dict[Hashable, list[float]] = {}
    for key, value in after.items():
        if key in before:
            grouped.setdefault(clusters[key], []).append(value - before[key])
    sums, counts = _totals(grouped)
    if not counts.sum():
        return None
    low, high = _interval(sums, counts)
    mean = float(sums.sum() / counts.sum())
    return Difference(mean, low, high, int(counts.sum()), len(counts), _sign_flip(sums))


def holm(ps: Sequence[float]) -> list[float]:
    """p-values after Holm's step-down correction for as many tests (Scandinavian Journal of Statistics 6, 1979).

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(ps)), key=lambda index: ps[index])
    corrected, worst = [0.0] * len(ps), 0.0
    for rank, index in enumerate(order):
        worst = max(worst, min(1.0, (len(ps) - rank) * ps[index]))
        corrected[index] = worst
    return corrected


def _totals(values: Mapping[Key, Sequence[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Sum and count of each cluster that has a value."""
    own = [list(found) for found in values.values() if len(found)]
    return np.array([sum(found) for found in own], dtype=float), np.array([len(found) for found in own], dtype=float)


def _interval(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    mean = float(sums.sum() / counts.sum())
    drawn = _draws(len(sums))
    low, high = np.quantile((drawn @ sums) / (drawn @ counts), (0.025, 0.975))
    return min(float(low), mean), max(float(high), mean)  # rounding alone may part them


def _sign_flip(sums: np.ndarray) -> float:
    flipped = np.abs(_flips(len(sums)) @ sums.astype(np.float32))
    seen = abs(float(sums.sum()))
    return float((1 + np.count_nonzero(flipped >= seen - 1e-5 * (1 + seen))) / (1 + FLIPS))


@lru_cache(maxsize=8)
def _draws(clusters: int) -> np.ndarray:
    """Count of each cluster in each bootstrap draw, ``draws clusters``; the same for all arms and metrics."""
    shares = np.full(clusters, 1 / clusters)
    return np.random.default_rng(0).multinomial(clusters, shares, size=DRAWS).astype(float)


@lru_cache(maxsize=8)
def _flips(clusters: int) -> np.ndarray:
    """Random sign, 1 or -1, of each cluster in each permutation, ``flips clusters``."""
    signs = np.random.default_rng(1).integers(0, 2, size=(FLIPS, clusters), dtype=np.int8)
    return (signs * 2 - 1).astype(np.float32)
