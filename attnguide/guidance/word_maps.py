"""Maps of words as attend-and-excite compares them; several methods read these."""

from __future__ import annotations

from torch import Tensor

from attnguide.attention.maps import AttentionMaps, gaussian_smooth, token_softmax
from attnguide.losses.separation import overlap
from attnguide.prompt.targets import Targets, region_maps


def blur_deviation(stated: float, reference: bool) -> float:
    """Of the blur that is meant, or of the published code's: dividing by twice the deviation inside the square widens it."""
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
    """One smoothed map a token, after a token softmax; :func:`word_maps` for every token instead of every region.

    Args:
        maps: Conditional probs.
        targets: Of the same rows.
        blur_std: Standard deviation of the 3x3 blur in cells; 0 for none.
        until_end: Let only words compete, not the end token and padding.
        height: Of the map.
        width: Of the map.
        mode: Average all sites after resizing them so, instead of only those of this size.

    Returns:
        ``batch tokens height width``.
    """
    return _smoothed(_compared(maps, targets, until_end, height, width, mode).movedim(-1, 1), blur_std)


def word_maps(maps: AttentionMaps, targets: Targets, *, blur_std: float, until_end: bool, height: int, width: int) -> Tensor:
    """The maps attend-and-excite compares: token softmax at temperature 100, then one smoothed map a region.

    Returns:
        ``batch regions height width``.
    """
    words = region_maps(_compared(maps, targets, until_end, height, width).flatten(1, 2), targets.tokens)
    return _smoothed(words.unflatten(-1, (height, width)), blur_std)


def mean_overlap(maps: Tensor, targets: Targets) -> Tensor:
    """Mean :func:`~attnguide.losses.separation.overlap` over pairs of different words, each word once; 0 for a single word.

    A pair's overlap counts by the geometric mean of its regions' weights.

    Args:
        maps: One a region, ``batch regions height width``.
        targets: Of the same rows.

    Returns:
        ``batch``.
    """
    tokens, shares = targets.tokens, targets.shares(targets.valid).to(maps)
    others = (tokens[:, :, None] != tokens[:, None, :]).any(-1).triu(1)
    pairs = shares[:, :, None] * shares[:, None, :] * others
    shared = overlap(maps[:, :, None], maps[:, None, :]) * pairs * targets.pair_weights.to(maps)
    return shared.sum((1, 2)) / pairs.sum((1, 2)).clamp_min(1e-12)
