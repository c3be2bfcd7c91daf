"""Does a word's attention have the outline of its mask?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from attnguide.attention.maps import is_flat, min_max

_TINY = 1e-12
_SOBEL = ((1.0, 0.0, -1.0), (2.0, 0.0, -2.0), (1.0, 0.0, -1.0))


def corner_distance(maps: Tensor, masks: Tensor, reach: int = 1, further: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Distance between the max-projections of map and mask onto both axes, near the mask's edges; 0 is best.

    The corner term of BoxDiff (https://arxiv.org/abs/2307.10816): ``mean_x(w |max_y a - max_y m|)`` plus the same along y, with
    ``w = 1`` within ``reach`` cells of where a projection begins or ends (its end counts as the first cell outside).

    Args:
        maps: ``... height width`` in [0, 1].
        masks: The same shape; a cell of at least 0.5 is inside.
        reach: Cells to either side of an edge, at least 0.
        further: Further columns ``... width`` and rows ``... height`` that count as near an edge, 0 or 1.
    """
    inside = masks >= 0.5
    total = maps.new_zeros(maps.shape[:-2])
    for number, axis in enumerate((-2, -1)):
        drawn = inside.any(axis)
        difference = (maps.amax(axis) - drawn.to(maps.dtype)).abs()
        weights = _near_edges(drawn, reach)
        weights = weights if further is None else torch.maximum(weights, further[number].to(weights))
        total = total + (difference * weights).mean(-1)
    return total


def near(edges: Sequence[int], count: int, reach: int) -> Tensor:
    """Weights of ``count`` cells: 1 within ``reach`` cells of an index in ``edges``, else 0."""
    cells = torch.arange(count)
    return torch.stack([(cells - edge).abs() <= reach for edge in edges]).any(0).float()


def _near_edges(projection: Tensor, reach: int) -> Tensor:
    """Weights ``... cells``: 1 within ``reach`` cells of the beginning or end of a run of True, else 0."""
    padded = F.pad(projection.float(), (1, 1))
    edges = (padded[..., 1:] != padded[..., :-1]).float()  # one more than cells: an edge before each, and after the last
    wide = F.max_pool1d(edges.reshape(-1, 1, edges.shape[-1]), 2 * reach + 1, stride=1, padding=reach)
    return wide.view(edges.shape)[..., :-1]


def bounding_rectangle(cells: Tensor, exclusive: bool = False) -> Tensor:
    """Fill the smallest upright rectangle around the True cells; ``... height width``, bool.

    Args:
        cells: bool; without a True cell the rectangle is empty.
        exclusive: Leave out its last row and column.
    """
    filled = torch.ones_like(cells)
    for axis in (-2, -1):
        seen = cells.any(axis, keepdim=True).int()
        other = -1 if axis == -2 else -2
        before = seen.cumsum(other) > 0
        after = seen.flip(other).cumsum(other).flip(other) - (seen if exclusive else 0) > 0
        filled = filled & before & after
    return filled


def adaptive_threshold(maps: Tensor, masks: Tensor) -> Tensor:
    """``0.4 mean inside + 0.6 mean outside`` the mask for each map, of the leading axes; a mean over no cells is 0."""
    inside = (maps * masks).sum((-2, -1)) / masks.sum((-2, -1)).clamp_min(1)
    outside = (maps * (1 - masks)).sum((-2, -1)) / (1 - masks).sum((-2, -1)).clamp_min(1)
    return 0.4 * inside + 0.6 * outside


def region_misfit(maps: Tensor, masks: Tensor, thresholds: Tensor, exclusive: bool = False) -> tuple[Tensor, Tensor]:
    """Misfit between the mask and the rectangle around a map's strong cells, and their intersection over union.

    The region-aware loss of R&B (https://arxiv.org/abs/2310.08872). With ``b`` the rectangle around ``a > threshold``, ``u``
    the intersection over union of ``b`` and ``m``, and ``D`` a straight-through estimate (its value is the rectangle, its
    gradient the map's), the value is

    ``1 - (1 - u) S(m D_b&m) / |S(D_b)| + 1 - (1 - u) |S(m D_b&m)| / S(D_b)``

    with ``S`` the sum over cells and ``|.|`` taken as a constant, plus twice ``1 - (1 - u) / 2`` times the same quotient of
    ``sigmoid(20 (a - threshold))`` inside the mask and everywhere.

    Args:
        maps: Scaled to [0, 1], ``... height width``.
        masks: 0 or 1, the same shape and type.
        thresholds: Threshold of each map, of the leading axes.
        exclusive: See :func:`bounding_rectangle`.

    Returns:
        Value and intersection over union, of the leading axes.
    """
    level = thresholds[..., None, None]
    box = bounding_rectangle(maps.detach() > level.detach(), exclusive).to(maps.dtype)
    both = box * masks
    union = torch.maximum(box, masks).sum((-2, -1))
    iou = both.sum((-2, -1)) / union.clamp_min(1)
    whole = ((box - maps).detach() + maps).sum((-2, -1))
    part = (masks * ((both - maps).detach() + maps)).sum((-2, -1))
    soft = torch.sigmoid(20 * (maps - level))
    shape = _two_sided(part, whole, 1 - iou)
    return shape + _two_sided((masks * soft).sum((-2, -1)), soft.sum((-2, -1)), 0.5 * (1 - iou)), iou


def _two_sided(part: Tensor, whole: Tensor, factor: Tensor) -> Tensor:
    """Sum of two terms ``1 - factor part / whole``: gradient through the numerator in one, the denominator in the other."""
    empty = whole.detach() <= _TINY
    safe = torch.where(empty, torch.ones_like(whole), whole)
    return 2 - factor * (part / safe.detach() + part.detach() / safe)


def edge_misfit(maps: Tensor, masks: Tensor, iou: Tensor) -> Tensor:
    """``1 - (1 - u) s`` with ``s`` the share of a map's edges inside the mask; in [0, 1], 0 is best.

    The boundary-aware loss of R&B (https://arxiv.org/abs/2310.08872), with edges by the Sobel operator on all but the outermost
    cells; a flat map has no edges and no gradient.

    Args:
        maps: Smoothed maps, at least 0, ``... height width``.
        masks: Masks of 0 and 1, same shape and dtype.
        iou: Intersection over union ``u`` of :func:`region_misfit`, of the leading axes.
    """
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    across = torch.tensor(_SOBEL, dtype=maps.dtype, device=maps.device).view(1, 1, 3, 3)
    squared = F.conv2d(flat, across).square() + F.conv2d(flat, across.transpose(-1, -2)).square()
    # The square root has no slope at 0, where a map is flat.
    edges = squared.clamp_min(1e-20).sqrt().view(*maps.shape[:-2], maps.shape[-2] - 2, maps.shape[-1] - 2)
    inside = (edges * masks[..., 1:-1, 1:-1]).sum((-2, -1))
    share = inside / edges.sum((-2, -1))
    return 1 - (1 - iou) * torch.where(is_flat(maps)[..., 0, 0], torch.zeros_like(share), share)


def soft_shape(maps: Tensor, sharpness: float = 10.0) -> Tensor:
    """A map as a soft mask: scaled to [0, 1], pushed towards both ends by a logistic function, scaled again.

    ``norm(sigmoid(s (norm(a) - 1/2)))``, the shape of an object in self-guidance (https://arxiv.org/abs/2306.00986); its mean
    is the object's size.

    Args:
        maps: ``... height width``.
        sharpness: ``s``.
    """
    return min_max(torch.sigmoid(sharpness * (min_max(maps) - 0.5)))


def centroid(maps: Tensor) -> Tensor:
    """Centre of mass as fractions of width and height, ``... 2``; (1/2, 1/2) for a map without mass.

    Args:
        maps: Maps, at least 0, ``... height width``.
    """
    total = maps.sum((-2, -1))
    axes = []
    for axis, other in ((-1, -2), (-2, -1)):
        cells = maps.shape[axis]
        place = (torch.arange(cells, device=maps.device, dtype=maps.dtype) + 0.5) / cells - 0.5
        axes.append((maps.sum(other) * place).sum(-1) / total.clamp_min(_TINY) + 0.5)
    return torch.stack(axes, -1)


def appearance(features: Tensor, shapes: Tensor) -> Tensor:
    """Mean features under soft shapes, ``sum(m F) / sum(m)``, of self-guidance (https://arxiv.org/abs/2306.00986).

    Args:
        features: ``batch channels height width``.
        shapes: Soft masks, at least 0, ``batch regions height width``; an empty one has appearance 0.

    Returns:
        ``batch regions channels``.
    """
    masses = shapes.sum((-2, -1)).clamp_min(_TINY)
    return torch.einsum("bchw,brhw->brc", features, shapes.to(features)) / masses[..., None].to(features)
