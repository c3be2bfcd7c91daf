"""DenseDiffusion (https://arxiv.org/abs/2308.12964), score by score."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def edited_scores(
    scores: Array,
    segments: Sequence[Array],
    together: Callable[[int, int], bool],
    touched: Callable[[int], bool],
    weight: float,
    timestep: float,
    size_scale: float = 1.0,
    most: float = float("inf"),
    factor: Callable[[int, int], float] = lambda query, key: 1.0,
) -> Array:
    """Scores of one picture.

    Args:
        scores: Scaled, ``heads query key``.
        segments: Yes-or-no masks, one value a query.
        together: Whether a query and a key belong together.
        touched: Whether a key is touched at all.
        weight: ``w`` of cross- or self-attention.
        timestep: 0 to 1000.
        size_scale: Factor on the segment's share of the picture.
        most: Largest strength.
        factor: On the strength, of a query and a key.
    """
    edited = scores.copy()
    heads, queries, keys = scores.shape
    for query in range(queries):
        share = sum(float(segment.mean()) for segment in segments if segment[query])
        basis = weight * (timestep / 1000) ** 5 * (1 - size_scale * share)
        for head in range(heads):
            row = scores[head, query]
            high, low = row.max(), row.min()
            for key in range(keys):
                if touched(key):
                    strength = min(basis * factor(query, key), most)
                    pull = high - row[key] if together(query, key) else low - row[key]
                    edited[head, query, key] = row[key] + strength * pull
    return edited
