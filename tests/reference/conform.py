"""CONFORM (https://arxiv.org/abs/2312.06059), pair by pair."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def contrast(items: Sequence[Array] | Array, classes: Sequence[int], temperature: float) -> float:
    """NT-Xent over all ordered pairs of one class."""

    def similar(first: int, second: int) -> float:
        a, b = np.ravel(items[first]), np.ravel(items[second])
        lengths = [max(math.sqrt((item * item).sum()), 1e-12) for item in (a, b)]
        return float((a * b).sum() / (lengths[0] * lengths[1]))

    terms = []
    for anchor, own in enumerate(classes):
        negatives = sum(math.exp(similar(anchor, other) / temperature) for other, c in enumerate(classes) if c != own)
        for positive, other in enumerate(classes):
            if positive != anchor and other == own:
                top = math.exp(similar(anchor, positive) / temperature)
                terms.append(-math.log(top / (top + negatives)))
    return sum(terms) / len(terms)
