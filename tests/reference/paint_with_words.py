"""Paint-with-words (https://arxiv.org/abs/2211.01324), cell by cell."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def edited_scores(kind: str, scores: Array, painted: Mapping[int, Array], sigma: float, scale: float, head_dim: int) -> Array:
    """Scaled scores after the edit.

    The bias is added to the products of query and key before they are scaled, as the code does.

    Args:
        kind: ``max``, ``std`` or ``std_squared``.
        scores: Scaled, ``heads query token``.
        painted: Token -> sum of strength times mask, one value a query.
        sigma: Noise over signal.
        scale: Coefficient of the weight function.
        head_dim: The products are the scores times its root.
    """
    products = scores * math.sqrt(head_dim)
    values = [float(value) for value in products.flat]
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    unit = {
        "max": math.log(1 + sigma) * max(values),
        "std": math.log(1 + sigma) * deviation,
        "std_squared": math.log(1 + sigma**2) * deviation,
    }[kind]
    edited = products.copy()
    for token, weights in painted.items():
        for head in range(len(products)):
            for cell, weight in enumerate(weights):
                edited[head, cell, token] += scale * weight * unit
    return edited / math.sqrt(head_dim)
