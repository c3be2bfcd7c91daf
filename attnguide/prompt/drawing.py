"""Binary masks of regions on a map, by named rules.

Published code draws boxes in different ways. Each method names its rule, and all rules are here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, get_args

from attnguide.prompt.regions import describe_place, place_name, rasterise
from attnguide.types import Box, Region

if TYPE_CHECKING:  # torch loads where a tensor is made
    from jaxtyping import Bool, Float
    from torch import Tensor

Rule = Literal["half", "rounded", "truncated"]
RULES: tuple[Rule, ...] = get_args(Rule)

VANISHES = 0.05
"""A region that covers every cell of a map by less than this share is too small for it."""

_SLACK = 1e-6
"""Tolerance for cells that are covered by exactly the share of a threshold, in single precision."""


def soft_mask(region: Region, height: int, width: int) -> Float[Tensor, "height width"]:
    """A region's soft mask in [0, 1], from :func:`~attnguide.prompt.regions.rasterise`.

    A box, polygon or blob that covers no cell by half is scaled until its fullest cell is 1, as losses would else ask for a
    share of attention that a map cannot reach. Masks are taken as they are.

    Args:
        region: A region with a place.
        height: Rows of the map.
        width: Columns of the map.
    """
    cells = rasterise(region, height, width)
    fullest = float(cells.max())
    is_shape = any(place is not None for place in (region.box, region.polygon, region.blob))
    return cells / fullest if is_shape and 0 < fullest < 0.5 - _SLACK else cells


def binary_mask(region: Region, height: int, width: int, rule: Rule = "half") -> Bool[Tensor, "height width"]:
    """Binary mask of a region.

    * ``half``: cells covered at least by half; where there is none, cells at least half as full as the fullest. Never empty.
    * ``rounded``: whole cells between the box's edges, each rounded to the nearest cell edge, to the even one from the middle
      between two: ``round(edge * cells)``, as BoxDiff and Bounded Attention draw. May be empty.
    * ``truncated``: whole cells between truncated edges, ``int(edge * cells)``, as layout guidance and R&B draw. May be empty.

    ``rounded`` and ``truncated`` are for boxes; other places are always drawn by ``half``.

    Args:
        region: A region with a place.
        height: Rows of the map.
        width: Columns of the map.
        rule: One of the above.

    Raises:
        ValueError: If there is no such rule, or as for :func:`~attnguide.prompt.regions.rasterise`.
    """
    import torch

    if rule not in RULES:
        raise ValueError(f"rule must be one of {', '.join(RULES)}; got {rule!r}.")
    if rule == "half" or region.box is None:
        cells = rasterise(region, height, width)
        fullest = float(cells.max())
        least = 0.5 if fullest >= 0.5 - _SLACK else 0.5 * fullest
        return (cells >= least - _SLACK) & (cells > 0)
    x0, y0, x1, y1 = cell_edges(region.box, height, width, rule)
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[y0:y1, x0:x1] = True
    return mask


def cell_edges(box: Box, height: int, width: int, rule: Literal["rounded", "truncated"]) -> tuple[int, int, int, int]:
    """``x0, y0, x1, y1`` of a box in whole cells by a published rule; ``x1`` and ``y1`` are exclusive."""
    whole: Callable[[float], int] = round if rule == "rounded" else int
    x0, y0, x1, y1 = box
    return whole(x0 * width), whole(y0 * height), whole(x1 * width), whole(y1 * height)


def require_cell(region: Region, height: int, width: int, rule: Rule = "half") -> None:
    """Refuse a region that is too small for a map: below :data:`VANISHES` for ``half``, an empty mask for other rules.

    Raises:
        ValueError: Naming region and map size.
    """
    by_share = rule == "half" or region.box is None
    if rasterise(region, height, width).max() >= VANISHES if by_share else binary_mask(region, height, width, rule).any():
        return
    how = "" if rule == "half" else f" with its edges {rule}, as the published code draws it"
    raise ValueError(
        f"Region {region.phrase!r} covers no cell of the {height}x{width} map{how} ({describe_place(region)}); "
        f"use a larger {place_name(region)} or a finer site."
    )


def sampled_mask(
    region: Region, height: int, width: int, finer: int, mode: Literal["nearest", "corners"]
) -> Float[Tensor, "height width"]:
    """A mask drawn on a finer grid and downsampled, as code does that starts from a painted picture.

    The finer mask has the cells that are covered at least by half, without a fallback.

    Args:
        region: A region with a place.
        height: Rows of the map.
        width: Columns of the map.
        finer: Factor between the sides of the finer grid and the map.
        mode: ``nearest`` takes every n-th cell, 0 or 1, as DenseDiffusion does; ``corners`` interpolates bilinearly with
            aligned corners, in [0, 1], as paint-with-words does.
    """
    import torch.nn.functional as F

    painted = (rasterise(region, height * finer, width * finer) >= 0.5).float()[None, None]
    if mode == "nearest":
        return F.interpolate(painted, (height, width), mode="nearest")[0, 0]
    return F.interpolate(painted, (height, width), mode="bilinear", align_corners=True)[0, 0]
