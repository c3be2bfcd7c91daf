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
