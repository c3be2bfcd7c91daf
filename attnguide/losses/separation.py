"""Do words share cells that they should not, or lose cells that they had?"""

from __future__ import annotations

import torch
from torch import Tensor

_TINY = 1e-12


def overlap(first: Tensor, second: Tensor) -> Tensor:
    """Shared attention ``sum min(a, b) / sum (a + b)``, in [0, 1/2]; 0 for maps that do not touch, 1/2 for equal maps.

    The measure of A-STAR (https://arxiv.org/abs/2306.14544), for segregation and, as ``1 - overlap``, for retention.

    Args:
        first: Maps, at least 0, ``... height width``.
        second: Maps, broadcast against ``first``.

    Returns:
        One value per pair of maps, of the leading axes.
    """
    return torch.minimum(first, second).sum((-2, -1)) / (first + second).sum((-2, -1)).clamp_min(_TINY)
