"""Latents as image tokens, ``batch tokens channels``: how they lie in what a transformer and its scheduler read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Grid = Callable[[Mapping[str, Any]], tuple[int, int]]
"""Rows and columns of image tokens, from the arguments of a call of the network."""


class Tokens:
    """Image tokens row by row; further tokens stand behind them or before them, further channels behind.

    Args:
        grid: Rows and columns.
        patch: Latent cells along the side of a token.
        channels: Of a token's latents.
        first: Whether they stand before further tokens (the pictures that an editing model reads); else behind them.
        behind: Further tokens that stand behind in what the network reads.
    """

    def __init__(self, grid: tuple[int, int], patch: int, channels: int, *, first: bool = True, behind: int = 0) -> None:
        self.grid, self.patch, self.channels, self.behind = grid, patch, channels, behind
        self._cells, self._first = grid[0] * grid[1], first

    def _begin(self, packed: Tensor) -> int:
        return 0 if self._first else packed.shape[1] - self._cells

    def unpack(self, packed: Tensor) -> Tensor:
        begin = self._begin(packed)
        tokens = packed[:, begin : begin + self._cells, : self.channels]
        return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, self.grid), self.patch)

    def pack(self, latents: Tensor, packed: Tensor) -> Tensor:
        tokens = F.pixel_unshuffle(latents, self.patch).flatten(2).transpose(1, 2).contiguous()
        begin = self._begin(packed)
        end = begin + self._cells
        if packed.shape[2] > self.channels:
            tokens = torch.cat([tokens, packed[:, begin:end, self.channels :].to(tokens)], 2)
        if packed.shape[1] > self._cells:
            tokens = torch.cat([packed[:, :begin].to(tokens), tokens, packed[:, end:].to(tokens)], 1)
        return tokens


def grid_by_places(name: str) -> Grid:
    """From the places of image tokens ``tokens 3`` or ``batch tokens 3``: picture, row, column; the first picture counts."""

    def grid(arguments: Mapping[str, Any]) -> tuple[int, int]:
        places = arguments[name]
        places = places[0] if places.ndim == 3 else places
        own = places[places[:, 0] == 0]
        rows, columns = (own[:, 1:3].amax(0) + 1).tolist()
        return int(rows), int(columns)

    return grid


def grid_by_shapes(which: int) -> Grid:
    """From ``img_shapes``, for each row the frames, rows and columns of the picture, or of several of which one is it."""

    def grid(arguments: Mapping[str, Any]) -> tuple[int, int]:
        shapes = arguments["img_shapes"][0]
        _, rows, columns = shapes[which] if isinstance(shapes, list) else shapes
        return int(rows), int(columns)

    return grid


def tokens_of(grid: Grid, patch: int, *, first: bool = True) -> Callable[[Any, Mapping[str, Any]], Tokens]:
    """The packing of a network's calls.

    Args:
        grid: Where the size is read.
        patch: Latent cells along the side of a token.
        first: Whether the picture's tokens stand before those of further pictures.
    """

    def packing(network: Any, arguments: Mapping[str, Any]) -> Tokens:
        rows, columns = grid(arguments)
        further = arguments["hidden_states"].shape[1] - rows * columns
        channels = int(network.out_channels * (network.config.get("patch_size") or 1) ** 2)
        return Tokens((rows, columns), patch, channels, first=first, behind=further if first else 0)

    return packing
