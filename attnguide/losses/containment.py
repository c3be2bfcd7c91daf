"""Does a word's attention lie where its mask is?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from attnguide.attention.maps import min_max

_TINY = 1e-8


def mass_outside(maps: Tensor, masks: Tensor) -> Tensor:
    """Squared share of attention outside the mask, ``(1 - in / all)^2``; 0 is best, 1 is worst.

    The energy of layout guidance (https://arxiv.org/abs/2304.03373), here on maps averaged over heads.

    Args:
        maps: Attention, at least 0, ``... height width``.
        masks: Soft masks in [0, 1] of the same shape.

    Returns:
        The leading axes.
    """
    inside = (maps * masks).sum((-2, -1)) / maps.sum((-2, -1)).clamp_min(_TINY)
    return (1 - inside).square()


def missing_share(maps: Tensor, masks: Tensor, wanted: Tensor) -> Tensor:
    """Squared relative shortfall of attention inside the mask from a wanted share, ``max(0, 1 - (in / all) / wanted)^2``.

    In [0, 1], 0 is best; there is no gradient from the wanted share on, and it fades to 0 near it.

    Args:
        maps: Attention, at least 0, ``... height width``.
        masks: Soft masks in [0, 1] of the same shape.
        wanted: Wanted share of attention inside the mask, above 0, of the leading axes.

    Returns:
        The leading axes.
    """
    inside = (maps * masks).sum((-2, -1)) / maps.sum((-2, -1)).clamp_min(_TINY)
    return F.relu(1 - inside / wanted).square()


def mask_cross_entropy(maps: Tensor, masks: Tensor) -> Tensor:
    """Binary cross-entropy between the min-max scaled map and the mask, mean over cells; 0 is best.

    Args:
        maps: ``... height width``.
        masks: Soft masks in [0, 1] of the same shape.
    """
    scaled = min_max(maps).clamp(1e-4, 1 - 1e-4)
    return F.binary_cross_entropy(scaled, masks, reduction="none").mean((-2, -1))


def logit_cross_entropy(maps: Tensor, masks: Tensor, positive_weight: float = 10.0) -> Tensor:
    """Binary cross-entropy with the min-max scaled map read as logits, mean over cells.

    ``mean(-w m log s(a) - (1 - m) log(1 - s(a)))`` with ``s`` the logistic function and ``a`` the scaled map: the layout loss
    of CountGen (https://arxiv.org/abs/2406.10210). Logits in [0, 1] keep it well above 0.

    Args:
        maps: ``... height width``.
        masks: Soft masks in [0, 1] of the same shape.
        positive_weight: ``w``.

    Returns:
        The leading axes.
    """
    scaled = min_max(maps)
    values = positive_weight * masks * F.softplus(-scaled) + (1 - masks) * F.softplus(scaled)
    return values.mean((-2, -1))


def soft_iou_distance(maps: Tensor, masks: Tensor) -> Tensor:
    """One minus the soft intersection over union of the min-max scaled map and the mask, in [0, 1].

    ``1 - sum(a m) / sum(a + m - a m)`` with ``a`` the scaled map.

    Args:
        maps: ``... height width``.
        masks: Soft masks in [0, 1] of the same shape.
    """
    scaled = min_max(maps)
    overlap = (scaled * masks).sum((-2, -1))
    return 1 - overlap / (scaled + masks - scaled * masks).sum((-2, -1)).clamp_min(_TINY)


def _masked_top_mean(values: Tensor, inside: Tensor, fraction: float) -> Tensor:
    """Mean of the strongest ``fraction`` of the cells that ``inside`` marks, at least one cell; 0 where it marks none."""
    flat, keep = values.flatten(-2), inside.flatten(-2)
    counts = keep.sum(-1)
    k = (counts * fraction).floor().clamp_min(1)
    ordered = flat.masked_fill(~keep, float("-inf")).sort(-1, descending=True).values
    rank = torch.arange(flat.shape[-1], device=flat.device)
    chosen = (rank < k[..., None]) & (rank < counts[..., None])
    return ordered.masked_fill(~chosen, 0).sum(-1) / k.to(values.dtype)


def inner_box(maps: Tensor, masks: Tensor, fraction: float = 0.2) -> Tensor:
    """One minus the mean of the strongest attention inside each mask; 0 is best, 1 is worst.

    The inner-box term of BoxDiff (https://arxiv.org/abs/2307.10816).

    Args:
        maps: ``... height width`` in [0, 1].
        masks: The same shape; a cell of at least 0.5 is inside.
        fraction: Share of the mask's cells that is averaged, in (0, 1]; at least one cell.
    """
    return 1 - _masked_top_mean(maps, masks >= 0.5, fraction)


def outer_box(maps: Tensor, masks: Tensor, fraction: float = 0.2) -> Tensor:
    """Mean of the strongest attention outside each mask; 0 is best, 1 is worst.

    The outer-box term of BoxDiff (https://arxiv.org/abs/2307.10816).

    Args:
        maps: ``... height width`` in [0, 1].
        masks: The same shape; a cell of at least 0.5 is inside.
        fraction: Share of the cells outside that is averaged, in (0, 1]; at least one cell.
    """
    return _masked_top_mean(maps, masks < 0.5, fraction)
