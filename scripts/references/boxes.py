"""Boxes anywhere in the picture, and what is seen of a mask that published code draws inside of a longer function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnguide.types import Box


def random_boxes(count: int, seed: int, fits: Callable[[Box], bool] = lambda box: True) -> list[Box]:
    """Boxes with corners drawn uniformly.

    Every third one is at most a sixteenth of the picture wide and high; of every fifth, edges are on a grid of 32, where they
    lie in the middle between the edges of coarser cells.

    Args:
        count: How many.
        seed: Of the numbers.
        fits: Leaves out boxes that published code fails on.
    """
    source = np.random.default_rng(seed)
    found: list[Box] = []
    while len(found) < count:
        first, second = source.random(2), source.random(2)
        if len(found) % 3 == 2:
            second = np.clip(first + (second - 0.5) / 8, 0, 1)
        if len(found) % 5 == 4:
            first, second = (first * 32).round() / 32, (second * 32).round() / 32
        (x0, x1), (y0, y1) = np.sort(np.stack([first, second]), axis=0).T.tolist()
        if x0 < x1 and y0 < y1 and fits((x0, y0, x1, y1)):
            found.append((x0, y0, x1, y1))
    return found


def painted(box: Box, side: int) -> Tensor:
    """A picture of ``side x side`` pixels, 1 where the box covers at least half of a pixel."""
    x0, y0, x1, y1 = (edge * side for edge in box)
    across, down = (
        np.clip(np.minimum(stop, np.arange(side) + 1) - np.maximum(start, np.arange(side)), 0, 1)
        for start, stop in ((x0, x1), (y0, y1))
    )
    return torch.from_numpy(np.outer(down, across) >= 0.5).float()


class Watched:
    """Stands for the module ``torch`` and keeps the tensors that ``zeros`` and ``zeros_like`` make, in order.

    Published code writes its masks into such tensors, so that they can be seen when it is done.
    """

    def __init__(self) -> None:
        self.made: list[Tensor] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def zeros(self, *args: Any, **kwargs: Any) -> Tensor:
        return self._keep(torch.zeros(*args, **kwargs))

    def zeros_like(self, *args: Any, **kwargs: Any) -> Tensor:
        return self._keep(torch.zeros_like(*args, **kwargs))

    def _keep(self, tensor: Tensor) -> Tensor:
        self.made.append(tensor)
        return tensor

    def during(self, call: Callable[[], object]) -> Iterator[Tensor]:
        """The tensors that a call made, also if it failed after that: some code divides by the area of an empty mask."""
        self.made.clear()
        try:
            call()
        except (RuntimeError, IndexError):
            if not self.made:
                raise
        yield from self.made
