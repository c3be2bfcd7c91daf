"""Word maps of attend-and-excite (token softmax and blur), shared by several methods."""

from __future__ import annotations

from torch import Tensor

from attnguide.attention.maps import AttentionMaps, gaussian_smooth, token_softmax
from attnguide.losses.separation import overlap
from attnguide.prompt.targets import Targets, region_maps


def blur_deviation(stated: float, reference: bool) -> float:
    """Standard deviation of the blur: ``stated``, or ``sqrt(2)`` times it as in the published code.

    That code has ``exp(-(x / (2 std))^2)`` instead of ``exp(-(x / std)^2 / 2)``.
    """
    return stated * 2**0.5 if reference else stated


def _compared(
    maps: AttentionMaps, targets: Targets, until_end: bool, height: int, width: int, mode: str | None = None
) -> Tensor:
    """Token softmax at temperature 100 (https://arxiv.org/abs/2301.13826), ``batch height width tokens``."""
    mean = maps.average(height, width) if mode is None else maps.resized_average(height, width, mode)
    return token_softmax(mean, targets.competing(with_end=not until_end))


def _smoothed(maps: Tensor, blur_std: float) -> Tensor:
    return gaussian_smooth(maps, blur_std) if blur_std > 0 else maps


def token_maps(
    maps: AttentionMaps, targets: Targets, *, blur_std: float, until_end: bool, height: int, width: int, mode: str | None = None
) -> Tensor:
    """Smoothed map of every token after a token softmax, as :func:`word_maps` for regions.

    Args:
        maps: Maps of the conditional half.
        targets: Words of the same rows.
        blur_std: Standard deviation of the 3x3 blur in cells; 0 for none.
        until_end: Let only words compete in the softmax, not the end token and padding.
        height: Map height.
        width: Map width.
        mode: Interpolation mode to resize and average all sites; only sites of this size when ``None``.

    Returns:
        ``batch tokens height width``.
    """
    return _smoothed(_compared(maps, targets, until_end, height, width, mode).movedim(-1, 1), blur_std)


def word_maps(maps: AttentionMaps, targets: Targets, *, blur_std: float, until_end: bool, height: int, width: int) -> Tensor:
    """Smoothed map of each region's words after attend-and-excite's token softmax (factor 100).

    Returns:
        ``batch regions height width``.
    """
    words = region_maps(_compared(maps, targets, until_end, height, width).flatten(1, 2), targets.tokens)
    return _smoothed(words.unflatten(-1, (height, width)), blur_std)


def mean_overlap(maps: Tensor, targets: Targets) -> Tensor:
    """Mean :func:`~attnguide.losses.separation.overlap` over pairs of different words, each word once; 0 for a single word.

    A pair's overlap is weighted by the geometric mean of its regions' weights.

    Args:
        maps: Map of each region, ``batch regions height width``.
        targets: Words of the same rows.

    Returns:
        One value per row, ``batch``.
    """
    tokens, shares = targets.tokens, targets.shares(targets.valid).to(maps)
    others = (tokens[:, :, None] != tokens[:, None, :]).any(-1).triu(1)
    pairs = shares[:, :, None] * shares[:, None, :] * others
    shared = overlap(maps[:, :, None], maps[:, None, :]) * pairs * targets.pair_weights.to(maps)
    return shared.sum((1, 2)) / pairs.sum((1, 2)).clamp_min(1e-12)
