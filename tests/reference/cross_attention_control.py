"""Cross-attention control (https://github.com/bloc97/CrossAttentionControl), prob by prob."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def edited_probs(own: Array, source: Array, sources_of: Mapping[int, int] | None, weights: Sequence[float]) -> Array:
    """Probs of one row.

    Args:
        own: ``heads query key``, under the row's prompt.
        source: The same under the source prompt.
        sources_of: Target token -> source token; ``None`` replaces all, as in self-attention.
        weights: Of each key.
    """
    edited = np.zeros_like(own)
    heads, queries, keys = own.shape
    for head in range(heads):
        for query in range(queries):
            for key in range(keys):
                if sources_of is None:
                    value = source[head, query, key]
                elif key in sources_of:
                    value = source[head, query, sources_of[key]]
                else:
                    value = own[head, query, key]
                edited[head, query, key] = value * weights[key]
    return edited
