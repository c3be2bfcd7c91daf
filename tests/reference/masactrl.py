"""MasaCtrl (https://arxiv.org/abs/2304.08465), query by query."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from tests.reference.attention import softmax

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


def output(query: Array, source_key: Array, source_value: Array, own: Mask | None = None, source: Mask | None = None) -> Array:
    """Attention of one head.

    Without masks, the source answers. With masks there are two softmaxes, over the source's foreground and over its
    background, and each query keeps the one of its own side.

    Args:
        query: ``query head_dim``.
        source_key: ``key head_dim``.
        source_value: Likewise.
        own: Which queries are foreground.
        source: Which keys are.
    """
    result = np.zeros((len(query), source_value.shape[1]))
    for index, one in enumerate(query):
        scores = np.array([float(one @ key) / math.sqrt(len(one)) for key in source_key])
        if own is None or source is None:
            result[index] = softmax(scores) @ source_value
            continue
        sides = [softmax(np.where(source == side, scores, -1e30)) @ source_value for side in (False, True)]
        result[index] = sides[int(own[index])]
    return result


def union(
    query: Array,
    keys: tuple[Array, Array],
    values: tuple[Array, Array],
    own: Mask | None = None,
    source: Mask | None = None,
) -> Array:
    """One head's attention to its own cells and, of the source's, those on its side; each pair is own and source."""
    result = np.zeros((len(query), values[0].shape[1]))
    for index, one in enumerate(query):
        chosen = [(key, value) for key, value in zip(keys[0], values[0], strict=True)]
        for cell, pair in enumerate(zip(keys[1], values[1], strict=True)):
            if own is None or source is None or own[index] == source[cell]:
                chosen.append(pair)
        shares = softmax(np.array([float(one @ key) / math.sqrt(len(one)) for key, _ in chosen]))
        result[index] = sum(share * value for share, (_, value) in zip(shares, chosen, strict=True))
    return result
