"""Layout guidance (https://arxiv.org/abs/2304.03373), head by head."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def loss(layers: Sequence[Array], words: Sequence[Sequence[int]], masks: Sequence[Sequence[Array]]) -> float:
    """Loss of one picture.

    Args:
        layers: Probs per layer, each ``heads height width token``.
        words: Positions of each phrase.
        masks: For each layer, one mask a phrase.
    """
    total = 0.0
    for layer, drawn in zip(layers, masks, strict=True):
        for positions, mask in zip(words, drawn, strict=True):
            for position in positions:
                shares = [(head[:, :, position] * mask).sum() / head[:, :, position].sum() for head in layer]
                total += sum((1 - share) ** 2 for share in shares) / len(shares) / len(positions)
    return total / (len(layers) * len(words))


def published_run(
    judge: Callable[[float], float], move: Callable[[float], float], steps: int, until: float, most: int
) -> list[float]:
    """Points visited by the code's loop, whose loss is the one from before the last move, also from one step to the next."""
    position, found = 0.0, 10_000.0
    visited = []
    for _ in range(steps):
        count = 0
        while found > until and count < most:
            found = judge(position)
            position = move(position)
            count += 1
            visited.append(position)
    return visited
