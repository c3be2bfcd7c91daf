"""Packing of latents as image tokens ``batch tokens channels``, as transformers and their schedulers take them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Grid = Callable[[Mapping[str, Any]], tuple[int, int]]
"""From the arguments of a network call to rows and columns of image tokens."""


class Tokens:
    """Image tokens row by row, before or behind further tokens, with further channels behind.

    Args:
        grid: Rows and columns of image tokens.
        patch: Latent cells along one side of a token.
        channels: Channels of a token that hold latents.
        first: Whether image tokens come before further tokens (reference pictures of an editing model); else behind them.
        behind: Number of further tokens behind the image tokens in the network's input.
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
    """Grid from an argument with position ids ``tokens 3`` or ``batch tokens 3`` (picture, row, column); picture 0 counts."""

    def grid(arguments: Mapping[str, Any]) -> tuple[int, int]:
        places = arguments[name]
        places = places[0] if places.ndim == 3 else places
        own = places[places[:, 0] == 0]
        rows, columns = (own[:, 1:3].amax(0) + 1).tolist()
        return int(rows), int(columns)

    return grid


def grid_by_shapes(which: int) -> Grid:
    """Grid from ``img_shapes``: per row ``(frames, rows, columns)``, or a list of these, of which index ``which`` counts."""

    def grid(arguments: Mapping[str, Any]) -> tuple[int, int]:
        shapes = arguments["img_shapes"][0]
        _, rows, columns = shapes[which] if isinstance(shapes, list) else shapes
        return int(rows), int(columns)

    return grid


def tokens_of(grid: Grid, patch: int, *, first: bool = True) -> Callable[[Any, Mapping[str, Any]], Tokens]:
    """Factory of :class:`Tokens` for a network's calls.

    Args:
        grid: Reads rows and columns from a call's arguments.
        patch: Latent cells along one side of a token.
        first: Whether image tokens come before those of further pictures.
    """

    def packing(network: Any, arguments: Mapping[str, Any]) -> Tokens:
        rows, columns = grid(arguments)
        further = arguments["hidden_states"].shape[1] - rows * columns
        channels = int(network.out_channels * (network.config.get("patch_size") or 1) ** 2)
        return Tokens((rows, columns), patch, channels, first=first, behind=further if first else 0)

    return packing
