"""Prompt-to-prompt (https://arxiv.org/abs/2208.01626), prob by prob."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def edited_probs(
    own: Array, source: Array, sources_of: Sequence[Mapping[int, float]], factors: Sequence[float], shares: Sequence[float]
) -> Array:
    """Cross-attention of one row.

    Args:
        own: ``heads query token``.
        source: The same of the source.
        sources_of: For each target token, source token -> weight; none if it has no source.
        factors: Of each target token.
        shares: Of the edit, for each target token.
    """
    edited = own.copy()
    heads, queries, tokens = own.shape
    for head in range(heads):
        for query in range(queries):
            for token in range(tokens):
                if sources_of[token]:
                    goal = sum(weight * source[head, query, old] for old, weight in sources_of[token].items())
                else:
                    goal = own[head, query, token]
                share = shares[token]
                edited[head, query, token] = share * factors[token] * goal + (1 - share) * own[head, query, token]
    return edited


def blend_mask(source_map: Array, own_map: Array, height: int, width: int, threshold: float) -> NDArray[np.bool_]:
    """Where latents stay the row's own, ``height width``; maps are summed over steps and words and averaged over heads."""
    inside = np.zeros((height, width), dtype=bool)
    for amap in (source_map, own_map):
        rows, columns = amap.shape
        pooled = np.zeros_like(amap)
        for y in range(rows):
            for x in range(columns):
                pooled[y, x] = amap[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].max()
        for y in range(height):
            for x in range(width):
                inside[y, x] |= bool(pooled[y * rows // height, x * columns // width] / pooled.max() > threshold)
    return inside
