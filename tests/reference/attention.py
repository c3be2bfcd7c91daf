"""Attention, one query at a time."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def softmax(values: Array) -> Array:
    powers = np.exp(values - values.max())
    return powers / powers.sum()


def scores(query: Array, key: Array) -> Array:
    """``query head_dim`` and ``key head_dim`` to ``query key``."""
    found = np.zeros((len(query), len(key)))
    for i, q in enumerate(query):
        for j, k in enumerate(key):
            found[i, j] = float(q @ k) / math.sqrt(len(q))
    return found


def probs(query: Array, key: Array) -> Array:
    return np.stack([softmax(row) for row in scores(query, key)])


def output(weights: Array, value: Array) -> Array:
    """``query key`` and ``key head_dim`` to ``query head_dim``."""
    return np.stack([sum((w * v for w, v in zip(row, value, strict=True)), np.zeros(value.shape[1])) for row in weights])
