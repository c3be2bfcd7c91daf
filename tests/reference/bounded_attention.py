"""Bounded Attention (https://arxiv.org/abs/2403.16990), one pair of cells after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Cells = Sequence[bool]
"""One entry per cell, row-major."""


def distances(layers: Sequence[Array], masks: Sequence[Cells], contexts: Sequence[Sequence[int]]) -> list[float]:
    """``(1 - u)^2`` of every subject; each layer ``heads query key``."""
    found = []
    for mask, context in zip(masks, contexts, strict=True):
        inside = beside = 0.0
        for layer in layers:
            for head in layer:
                for query, row in enumerate(head):
                    seen = sum(row[key] for key in context)
                    if mask[query]:
                        inside += seen / len(layers)
                    elif not any(other[query] for other in masks):
                        beside += seen / len(layers)
        found.append((1 - inside / (inside + len(masks) * beside)) ** 2)
    return found


def loss(
    cross: Sequence[Array], own: Sequence[Array], masks: Sequence[Cells], words: Sequence[Sequence[int]], end: int
) -> float:
    """Loss of one picture, all maps of one size."""
    to_words = distances(cross, masks, [[*word, end] for word in words])
    to_itself = distances(own, masks, [[k for k, inside in enumerate(mask) if inside] for mask in masks])
    return sum(1.5 * a + 0.5 * b for a, b in zip(to_words, to_itself, strict=True))


def sees_word(query: int, token: int, masks: Sequence[Cells], words: Sequence[Sequence[int]], silent: Sequence[int]) -> bool:
    """Whether a cell may see a token, apart from what the background may."""
    owners = [mask for mask, word in zip(masks, words, strict=True) if token in word]
    return any(mask[query] for mask in owners) if owners else token not in silent


def sees_cell(query: int, key: int, masks: Sequence[Cells]) -> bool:
    """Whether a cell may see another."""
    lone = [not any(mask[cell] for mask in masks) for cell in (query, key)]
    return any(lone) or any(mask[query] and mask[key] for mask in masks)


def masked_softmax(scores: Array, sees: Callable[[int, int], bool]) -> Array:
    """Softmax of every query over the keys it may see."""
    out = np.zeros_like(scores)
    for query, row in enumerate(scores):
        powers = [math.exp(value) if sees(query, key) else 0.0 for key, value in enumerate(row)]
        out[query] = np.array(powers) / sum(powers)
    return out
