"""CountGen's layout loss (https://arxiv.org/abs/2406.10210), cell by cell."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def loss(amap: Array, mask: Array, positive_weight: float = 10.0) -> float:
    """Binary cross-entropy of one word's map, read as logits once it is scaled to [0, 1]."""
    low, high = float(amap.min()), float(amap.max())
    total = 0.0
    for value, inside in zip(amap.flat, mask.flat, strict=True):
        chance = 1 / (1 + math.exp(-(value - low) / (high - low)))
        total -= positive_weight * math.log(chance) if inside else math.log(1 - chance)
    return total / amap.size


def without_background(probs: Array, inside: Array, everything: bool) -> Array:
    """Self-attention of one head in which background queries get nothing from instances, or nothing at all."""
    out = probs.copy()
    for query in range(len(probs)):
        for key in range(len(probs)):
            if not inside[query] and (everything or inside[key]):
                out[query, key] = 0.0
    return out
