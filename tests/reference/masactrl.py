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
