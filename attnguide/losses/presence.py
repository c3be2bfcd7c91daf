"""Is a word attended to anywhere?"""

from __future__ import annotations

from torch import Tensor


def peak_absence(maps: Tensor) -> Tensor:
    """One minus the strongest cell of each map; 0 is best, 1 is worst.

    The per-word term of attend-and-excite (https://arxiv.org/abs/2301.13826).

    Args:
        maps: ``batch regions height width`` in [0, 1].

    Returns:
        ``batch regions``.
    """
    return (1 - maps.amax((-2, -1))).clamp_min(0)


def mean_peak_absence(maps: Tensor, count: int) -> Tensor:
    """One minus the mean of the strongest cells of each map; 0 is best, 1 is worst.

    The cross term of Self-Cross guidance (https://arxiv.org/abs/2411.18936); :func:`peak_absence` for one cell.

    Args:
        maps: ``batch regions height width`` in [0, 1].
        count: Number of cells that are averaged; all cells if the map has fewer.

    Returns:
        ``batch regions``.
    """
    flat = maps.flatten(2)
    return (1 - flat.topk(min(count, flat.shape[-1]), dim=-1).values.mean(-1)).clamp_min(0)


def total_variation(maps: Tensor, last_row: bool = False) -> Tensor:
    """Mean difference of horizontal neighbours plus mean difference of vertical neighbours; larger means more structure.

    Divide & Bind raises it (https://arxiv.org/abs/2307.10864).

    Args:
        maps: ``... height width``.
        last_row: Compare every row but the first with the last row, as the published code does, instead of the row above it.

    Returns:
        The leading axes.
    """
    above = maps[..., -1:, :] if last_row else maps[..., :-1, :]
    across = (maps[..., :, 1:] - maps[..., :, :-1]).abs().mean((-2, -1))
    return across + (maps[..., 1:, :] - above).abs().mean((-2, -1))
