"""Centre, size, shape and appearance of words' attention, and their distances from wanted ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from attnguide.attention.maps import AttentionMaps
from attnguide.losses.shape import appearance, centroid, soft_shape

ROUNDING = 1e-5
"""Rounding difference between two passes that should agree; differences up to this have no gradient."""


@dataclass(frozen=True, eq=False)
class Properties:
    """Properties of maps or masks in self-guidance (https://arxiv.org/abs/2306.00986).

    Attributes:
        centre: Centre of mass in fractions of the picture, ``batch regions 2``.
        size: Mean of the shape, ``batch regions``.
        shape: Soft mask in [0, 1], ``batch regions height width``.
    """

    centre: Tensor
    size: Tensor
    shape: Tensor

    @classmethod
    def of_words(cls, maps: Tensor, sharpness: float) -> Properties:
        """Properties of attention maps ``batch regions height width``; see :func:`~attnguide.losses.shape.soft_shape`."""
        shape = soft_shape(maps, sharpness)
        return cls(centroid(maps), shape.mean((-2, -1)), shape)

    @classmethod
    def of_masks(cls, masks: Tensor) -> Properties:
        """Properties of masks in [0, 1], which are their own shape; ``batch regions height width``."""
        return cls(centroid(masks), masks.mean((-2, -1)), masks)

    def distance(self, wanted: Properties, weights: Mapping[str, float], slack: float = 0.0) -> Tensor:
        """Weighted sum of the properties' distances, ``batch regions``.

        Args:
            wanted: Wanted properties of the same regions.
            weights: Weights of ``centre`` (summed over both axes), ``size`` and ``shape`` (averaged over cells).
            slack: Differences up to this count as 0.
        """
        centre = apart(self.centre, wanted.centre, slack).sum(-1)
        outline = apart(self.shape, wanted.shape, slack).mean((-2, -1))
        size = apart(self.size, wanted.size, slack)
        return weights["centre"] * centre + weights["size"] * size + weights["shape"] * outline


def apart(first: Tensor, second: Tensor, slack: float = ROUNDING) -> Tensor:
    """Absolute difference; 0 without gradient up to ``slack``."""
    difference = (first - second).abs()
    return torch.where(difference > slack, difference, 0.0)


def appearances(maps: AttentionMaps, words: Sequence[Properties]) -> list[Tensor]:
    """Appearance of every phrase under its mean shape, ``batch regions channels`` for each feature site of ``maps``.

    Args:
        maps: Maps with features.
        words: The phrases' properties at several sites of one map size; there is no gradient through them.
    """
    found = []
    for site, features in maps.features.items():
        size = (site.height, site.width)
        shapes = [F.interpolate(one.shape.detach(), size, mode="bilinear", align_corners=False) for one in words]
        found.append(appearance(features, torch.stack(shapes).mean(0)))
    return found
