"""Self-guidance: properties of a word's attention are pulled to wanted values through the noise prediction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from attnguide.attention.maps import AttentionMaps
from attnguide.attention.sites import Site
from attnguide.guidance.base import Guidance, LossOutput, cross_sites, require_cells
from attnguide.guidance.quirks import repeats_slips
from attnguide.guidance.update import PerRow, Update
from attnguide.losses.shape import centroid, soft_shape
from attnguide.prompt.targets import Targets, region_maps
from attnguide.schedules import Window, constant
from attnguide.types import Step


@dataclass(frozen=True)
class _ThenEverySecond(Window):
    """A window in progress in which, from some point on, only every second step acts."""

    alternate: float = 1.0

    def active(self, step: Step) -> bool:
        return super().active(step) and (step.progress < self.alternate or step.index % 2 == 0)


class SelfGuidance(Guidance):
    """Centre, size and shape of each phrase's map become those of its region (https://arxiv.org/abs/2306.00986).

    ``g = centre_weight |c - c*|_1 + size_weight |s - s*| + shape_weight mean |m - m*|`` of every site's map, the mean over
    heads, with ``m`` its soft shape, ``s`` the mean of ``m``, ``c`` the map's centre of mass in fractions of the picture, and
    the stars the same of the region's mask; the mean over sites, the sum over phrases. The noise prediction, after
    classifier-free guidance, gets ``step_size * sqrt(1 - alpha_bar)`` times the gradient; latents stay where they are.

    The formulas follow two independent ports; the paper published no code, and the schedule is from memory of its text. Of the
    paper, two things are left out: appearance, which compares features inside the shape with those of a source picture, and
    words pinned to a source picture's properties. Several regions of one phrase are their union; a region's ``weight`` scales
    its terms.

    Args:
        step_size: Factor on the gradient, ``v``; the ports use 0.5 and call their weights very sensitive.
        stop: Progress at which guidance ends.
        alternate: Progress from which it acts in every second step only.
        centre_weight: See above.
        size_weight: See above.
        shape_weight: See above.
        sharpness: Of the soft shape; ports use 10 to 30.
        levels: Map levels to read; the model's guidance level when ``None``.
        scale: Factor on the step size, one number or one per row.
        quirks: There is no published code whose slips could be repeated; both values mean the same.

    Raises:
        ValueError: If an option is out of range; while running, if a place covers no cell of the maps.
    """

    name = "self_guidance"
    needs_regions = "place"

    def __init__(
        self,
        *,
        step_size: float = 0.5,
        stop: float = 0.75,
        alternate: float = 0.1875,
        centre_weight: float = 1.0,
        size_weight: float = 3.0,
        shape_weight: float = 4.0,
        sharpness: float = 10.0,
        levels: tuple[int, ...] | None = None,
        scale: PerRow = 1.0,
        quirks: Literal["none", "reference"] = "none",
    ) -> None:
        repeats_slips(quirks)
        self.weights = {"centre_weight": centre_weight, "size_weight": size_weight, "shape_weight": shape_weight}
        for name, weight in self.weights.items():
            if not 0 <= weight < math.inf:
                raise ValueError(f"{name} must be at least 0; got {weight}.")
        if not sharpness > 0:
            raise ValueError(f"sharpness must be above 0; got {sharpness}.")
        super().__init__(
            sites=cross_sites(levels),
            window=_ThenEverySecond(0.0, stop, alternate=alternate),
            update=Update(constant(step_size), scale, space="noise"),
        )
        self.sharpness = sharpness

    def check(self, targets: Targets, sites: Sequence[Site]) -> None:
        require_cells(targets, sites)

    def loss(self, maps: AttentionMaps, targets: Targets, step: Step) -> LossOutput:
        values = [self._differences(site, probs, targets) for site, probs in maps.probs.items()]
        loss = (torch.stack(values).mean(0) * targets.weights * targets.shares(targets.placed)).sum(1)
        return LossOutput(loss, loss.detach())

    def _differences(self, site: Site, probs: Tensor, targets: Targets) -> Tensor:
        """Weighted distance of each phrase's properties at one site, ``batch regions``."""
        words = region_maps(probs.mean(1), targets.tokens).unflatten(-1, (site.height, site.width))
        masks = targets.joined_masks(site.height, site.width).to(words.dtype)
        shape = soft_shape(words, self.sharpness)
        centre = (centroid(words) - centroid(masks)).abs().sum(-1)
        size = (shape.mean((-2, -1)) - masks.mean((-2, -1))).abs()
        outline = (shape - masks).abs().mean((-2, -1))
        weights = self.weights
        return weights["centre_weight"] * centre + weights["size_weight"] * size + weights["shape_weight"] * outline
