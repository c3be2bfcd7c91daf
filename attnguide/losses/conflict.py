"""Do the cells of one word look at the cells of another?"""

from __future__ import annotations

import torch
from torch import Tensor

from attnguide.losses.stray import levels, otsu_level

_TINY = 1e-12


def foreground(maps: Tensor, at_threshold: bool = False) -> Tensor:
    """Mask of cells above Otsu's threshold, bool, ``... height width``; a flat map's threshold is 0.

    Args:
        maps: Maps in [0, 1], ``... height width``.
        at_threshold: Include cells at the threshold.
    """
    fixed = maps.detach()
    return levels(fixed) >= otsu_level(fixed)[..., None, None] + (0 if at_threshold else 1)


def aggregated_self_maps(words: Tensor, own: Tensor, at_threshold: bool = False) -> Tensor:
    """Self-attention of a word's cells: ``A_r = sum_p C_r(p) S(p, .)`` over the cells ``p`` of its :func:`foreground`.

    The aggregated self-attention map of Self-Cross guidance (https://arxiv.org/abs/2411.18936).

    Args:
        words: Maps ``C`` of the words in [0, 1], ``batch regions height width``.
        own: Self-attention ``S``, ``batch query key`` over the cells of the same map.
        at_threshold: See :func:`foreground`.

    Returns:
        ``batch regions height width``.
    """
    strong = torch.where(foreground(words, at_threshold), words, torch.zeros_like(words))
    return (strong.flatten(2) @ own.to(words)).view(words.shape)


def self_cross_overlap(words: Tensor, seen: Tensor, margin: float = 0.0) -> Tensor:
    """Overlap of normalised maps, ``sum_p min(C_i / sum C_i, A_j / sum A_j)``, in [0, 1]; 0 for disjoint maps.

    Args:
        words: Maps ``C`` of the words, at least 0, ``batch regions height width``.
        seen: Maps ``A`` of :func:`aggregated_self_maps`, at least 0, same shape.
        margin: Number added to each sum; the published code of Self-Cross adds 0.0001.

    Returns:
        ``batch regions regions``, overlap of ``C_i`` (second axis) with ``A_j`` (third axis).
    """
    first, second = (maps / (maps.sum((-2, -1), keepdim=True) + margin).clamp_min(_TINY) for maps in (words, seen))
    return torch.minimum(first[:, :, None], second[:, None]).sum((-2, -1))
