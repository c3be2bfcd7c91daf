"""Plug-and-play (https://arxiv.org/abs/2211.12572), query by query."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tests.reference.attention import output, probs

Array = NDArray[np.float64]


def attended(source_query: Array, source_key: Array, own_value: Array) -> Array:
    """Self-attention of one head: the source's map on the row's own values."""
    return output(probs(source_query, source_key), own_value)


def away_from(uncond: float, negative: float, alpha: float, schedule: str, index: int, count: int) -> float:
    """What guidance leads away from, one number of the answers; step ``index`` of ``count``."""
    shares = {
        "constant": [1.0] * count,
        "linear": list(np.linspace(1, 0, count)),
        "exponential": list(np.exp(-6 * np.linspace(0, 1, count))),
    }
    share = alpha * float(shares[schedule][index])
    return share * uncond + (1 - share) * negative
