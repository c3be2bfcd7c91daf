"""The containment losses on one map and one mask, cell by cell."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def _scaled(amap: Array) -> Array:
    low, high = float(amap.min()), float(amap.max())
    return np.zeros_like(amap) if high == low else (amap - low) / (high - low)


def mass_outside(amap: Array, mask: Array) -> float:
    inside = total = 0.0
    for value, belongs in zip(amap.flat, mask.flat, strict=True):
        inside += value * belongs
        total += value
    return (1 - inside / total) ** 2


def mask_cross_entropy(amap: Array, mask: Array) -> float:
    total = 0.0
    for value, belongs in zip(_scaled(amap).flat, mask.flat, strict=True):
        chance = min(max(value, 1e-4), 1 - 1e-4)
        total -= belongs * math.log(chance) + (1 - belongs) * math.log(1 - chance)
    return total / amap.size


def soft_iou_distance(amap: Array, mask: Array) -> float:
    overlap = union = 0.0
    for value, belongs in zip(_scaled(amap).flat, mask.flat, strict=True):
        overlap += value * belongs
        union += value + belongs - value * belongs
    return 1 - overlap / union


def _top_mean(values: list[float], fraction: float) -> float:
    count = max(1, math.floor(len(values) * fraction))
    return sum(sorted(values, reverse=True)[:count]) / count


def inner_box(amap: Array, mask: Array, fraction: float = 0.2) -> float:
    return 1 - _top_mean([v for v, m in zip(amap.flat, mask.flat, strict=True) if m >= 0.5], fraction)


def outer_box(amap: Array, mask: Array, fraction: float = 0.2) -> float:
    return _top_mean([v for v, m in zip(amap.flat, mask.flat, strict=True) if m < 0.5], fraction)
