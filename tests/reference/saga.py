"""SAGA's loss and its move, from the paper's formulas."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tests.reference.initno import conflict

Array = NDArray[np.float64]


def loss(maps: Sequence[Array]) -> float:
    """Of one picture, from its words' maps."""
    return (max(1 - float(amap.max()) for amap in maps) + conflict(maps)) / 2


def learned(clean: Array, gradients: Sequence[Array], signal: float, rate: float) -> Array:
    """The mean after descent, ``channels height width``."""
    out = np.zeros_like(clean)
    for channel, amap in enumerate(clean):
        mean = np.full_like(amap, amap.mean())
        for gradient in gradients:
            mean = mean - rate * signal * gradient[channel]
            away = mean - amap.mean()
            mean = amap.mean() + away * min(1.0, amap.std(ddof=1) / away.std(ddof=1))
        out[channel] = mean
    return out
