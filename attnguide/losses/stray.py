"""Is a word attended to in more than one place?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_BINS = 256


def levels(maps: Tensor) -> Tensor:
    """Maps in [0, 1] quantised to levels 0 to 255, int64."""
    return (maps.detach() * 255).to(torch.int64).clamp(0, _BINS - 1)


def otsu_level(maps: Tensor) -> Tensor:
    """Otsu's threshold: the level that splits a map's values into two groups with the largest variance between them (1979).

    The lower group has values up to this level; the smallest of equally good levels is taken, and 0 for a flat map.

    Args:
        maps: Maps in [0, 1], ``... height width``.

    Returns:
        int64, 0 to 255, of the leading axes.
    """
    values = levels(maps).flatten(-2)
    share = torch.zeros(*values.shape[:-1], _BINS, dtype=torch.float64, device=maps.device)
    share.scatter_add_(-1, values, torch.full(values.shape, 1 / values.shape[-1], dtype=torch.float64, device=maps.device))
    level = torch.arange(_BINS, dtype=torch.float64, device=maps.device)
    below, mass = share.cumsum(-1), (share * level).cumsum(-1)
    split = (below > 1e-9) & (below < 1 - 1e-9)
    between = (mass[..., -1:] * below - mass).square() / (below * (1 - below)).masked_fill(~split, 1.0)
    between = between.masked_fill(~split, 0.0)
    best = between >= between.amax(-1, keepdim=True) * (1 - 1e-12)
    return torch.where(best, level, _BINS).amin(-1).to(torch.int64)


def connected(cells: Tensor, seeds: Tensor) -> Tensor:
    """Connected components (4-neighbourhood) of ``cells`` that contain a seed, bool.

    Args:
        cells: Mask, bool, ``... height width``.
        seeds: Mask of seeds, bool, same shape; seeds outside ``cells`` are ignored.
    """
    flat = cells.reshape(-1, *cells.shape[-2:])
    grown = seeds.reshape(flat.shape) & flat
    while True:
        wide = grown.float()[:, None]
        across = F.max_pool2d(wide, (1, 3), stride=1, padding=(0, 1))
        along = F.max_pool2d(wide, (3, 1), stride=1, padding=(1, 0))
        further = (torch.maximum(across, along)[:, 0] > 0) & flat
        if torch.equal(further, grown):
            return grown.view(cells.shape)
        grown = further


def stray_peak(maps: Tensor, at_threshold: bool = False) -> Tensor:
    """The strongest cell outside the blob that holds the map's peak, where it exceeds the blob's weakest; else 0.

    The blob is the connected part, around the peak, of the cells above Otsu's threshold: the clean term of InitNO
    (https://arxiv.org/abs/2404.04650), which is not in the paper but in its code.

    Args:
        maps: Maps in [0, 1], ``... height width``.
        at_threshold: Count cells at the threshold as above it, which joins blobs on an even background.
    """
    fixed = maps.detach()
    strong = levels(fixed) >= otsu_level(fixed)[..., None, None] + (0 if at_threshold else 1)
    peak = F.one_hot(fixed.flatten(-2).argmax(-1), fixed.shape[-2] * fixed.shape[-1])
    blob = connected(strong, peak.view(fixed.shape).bool())
    beside = maps.masked_fill(blob, 0.0).amax((-2, -1))
    weakest = fixed.masked_fill(~blob, 1.0).amin((-2, -1))
    return torch.where(beside.detach() > weakest, beside, torch.zeros_like(beside))
