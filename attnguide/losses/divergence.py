"""How far do the maps of a group lie apart?"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_TINY = 1e-12


def jensen_shannon_of_groups(maps: Tensor, members: Tensor, power: float = 3.0) -> Tensor:
    """Jensen-Shannon divergence within each group of maps, over its largest value: 0 for equal maps, 1 for disjoint ones.

    ``JS = mean_t KL(q_t | m) / log T`` with ``q_t = a_t^power / sum a_t^power``, ``m = mean_t q_t`` and ``T`` the group's size:
    the measure of FOCUS (https://arxiv.org/abs/2510.02315), which sharpens maps by their third power, as otherwise the many
    cells with little attention decide.

    Args:
        maps: Maps of any scale, at least 0, ``batch maps height width``.
        members: Weight of each map in each group, at least 0, ``batch groups maps``; a group's size ``T`` is their sum.
        power: Sharpness, above 0.

    Returns:
        ``batch groups``; 0 for a group of at most one map.
    """
    flat = maps.flatten(2)
    sharp = (flat / flat.amax(-1, keepdim=True).clamp_min(_TINY)).pow(power)
    cells = sharp / sharp.sum(-1, keepdim=True).clamp_min(_TINY)
    size = members.sum(-1)
    shares = members / size.clamp_min(_TINY)[..., None]
    apart = (shares * _negative_entropy(cells)[:, None]).sum(-1) - _negative_entropy(shares @ cells)
    several = size > 1 + 1e-6
    most = size.clamp_min(1 + 1e-6).log().masked_fill(~several, math.log(2))
    return torch.where(several, apart / most, torch.zeros_like(apart))


def _negative_entropy(probs: Tensor) -> Tensor:
    """``sum p log p`` over the last axis, whose gradient stays finite where a cell is 0."""
    return (probs * probs.clamp_min(torch.finfo(probs.dtype).tiny).log()).sum(-1)
