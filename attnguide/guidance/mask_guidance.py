"""Mask guidance: each word's attention must fill its mask. The project's own method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from attnguide.attention.maps import AttentionMaps
from attnguide.attention.sites import Site, SiteSelector, depth_range
from attnguide.guidance.base import Guidance, LossOutput, require_cells
from attnguide.guidance.per_row import EachRow
from attnguide.guidance.update import PerRow, Refinement, Space, Update
from attnguide.losses.containment import inner_box, mask_cross_entropy, mass_outside, outer_box, soft_iou_distance
from attnguide.prompt.targets import Targets, region_maps
from attnguide.schedules import SCHEDULES, Unit, Window
from attnguide.types import Step

TERMS = {
    "mass": mass_outside,
    "cross_entropy": mask_cross_entropy,
    "iou": soft_iou_distance,
    "inside": inner_box,
    "outside": outer_box,
}
"""Loss terms by name, each ``(maps, masks) -> values``."""


HARD_TERMS = frozenset({"inside", "outside"})
"""Terms that need binary masks."""


def _limits(until: float | Sequence[float | None]) -> PerRow:
    """Limits of the indicator for all rows or per row; minus infinity, under which a row never stops, for ``None``."""
    given = EachRow[float | None](until, "until")
    limits = [-math.inf if limit is None else float(limit) for limit in given.values]
    return limits[0] if given.common else limits


class MaskGuidance(Guidance):
    """Moves latents until each phrase's cross-attention lies inside its mask.

    The loss is a weighted sum of terms, averaged over the regions that have a place, over map sizes and, where ``per_head``
    is set, over heads.

    Args:
        losses: Term -> weight. Terms: ``mass`` (squared share of attention outside), ``cross_entropy``, ``iou``, ``inside``
            (one minus the mean of the strongest fifth inside) and ``outside`` (mean of the strongest fifth outside).
        step_size: Peak of the step size; more moves objects surely and strains pictures.
        step_rule: ``constant``, ``sqrt_linear``, ``linear_to_zero`` or ``noise_variance``.
        start: First bound of the window, in ``unit``.
        stop: Second bound of the window, in ``unit``.
        unit: ``progress``, ``timestep`` (t / 1000) or ``sigma``.
        iterations: Updates a step.
        until: A row whose indicator (the worst region's loss over the sum of the terms' weights) is at or below this makes
            no update; one number, or one per row; every row always updates when ``None``.
        levels: Map levels to read; the model's guidance level when ``None``.
        places: ``down``, ``mid``, ``up``; all when ``None``.
        depths: First and last depth of the blocks, 0 the network's first and 1 its last; all when ``None``.
        per_head: Apply the loss to every head's map instead of their mean.
        max_norm: Largest norm of one update as a share of the latents' norm.
        space: ``latents`` moves them; ``noise`` adds the gradient, times ``sqrt(1 - alpha_bar)``, to the noise prediction
            instead, with one update a step and no ``until``.
        fused: In space ``noise``, take the gradient from the conditional denoising pass itself: two forwards and a backward a
            guided step, and no guide pass.
        scale: Factor on the step size, one number or one per row.

    Raises:
        ValueError: If an option is out of range; while running, if a term needs a binary mask (``inside``, ``outside``)
            and a region covers no cell of the map.
    """

    name = "mask_guidance"
    needs_regions = "place"

    def __init__(
        self,
        *,
        losses: Mapping[str, float] | None = None,
        step_size: float = 120.0,
        step_rule: Literal["constant", "sqrt_linear", "linear_to_zero", "noise_variance"] = "noise_variance",
        start: float = 0.0,
        stop: float = 0.5,
        unit: Unit = "progress",
        iterations: int = 1,
        until: float | Sequence[float | None] | None = None,
        levels: tuple[int, ...] | None = None,
        places: tuple[str, ...] | None = None,
        depths: Sequence[float] | None = None,
        per_head: bool = False,
        max_norm: float | None = None,
        space: Space = "latents",
        fused: bool = False,
        scale: PerRow = 1.0,
    ) -> None:
        losses = {"mass": 1.0} if losses is None else dict(losses)
        unknown = sorted(set(losses) - set(TERMS))
        if unknown or not losses:
            raise ValueError(f"losses must name terms among {', '.join(TERMS)}; got {unknown or 'none'}.")
        if not all(weight > 0 and math.isfinite(weight) for weight in losses.values()):
            raise ValueError(f"weights of losses must be finite and above 0; got {losses}.")
        if step_rule not in SCHEDULES:
            raise ValueError(f"step_rule must be one of {', '.join(SCHEDULES)}; got {step_rule!r}.")
        rule = SCHEDULES[step_rule](step_size)
        repeated = () if until is None else (Refinement(_limits(until), iterations),)
        always = iterations if until is None else 0
        update = Update(rule, scale, iterations=always, refinements=repeated, space=space, max_norm=max_norm, fused=fused)
        super().__init__(window=Window(start, stop, unit), update=update)
        self.losses, self.levels, self.places, self.depths = losses, levels, places, depth_range(depths)
        self.per_head = per_head

    def sites_at(self, level: int) -> SiteSelector:
        levels = (level,) if self.levels is None else tuple(self.levels)
        places = None if self.places is None else tuple(self.places)
        return SiteSelector(kind="cross", levels=levels, places=places, depths=self.depths)

    def check(self, targets: Targets, sites: Sequence[Site]) -> None:
        if HARD_TERMS & self.losses.keys():
            require_cells(targets, sites)

    def loss(self, maps: AttentionMaps, targets: Targets, step: Step) -> LossOutput:
        parts = [self._one_size(maps, targets, height, width) for height, width in maps.resolutions]
        values = torch.stack(parts).mean(0)
        placed = targets.placed
        weights = targets.weights * placed
        loss = (values * weights).sum(1) / placed.sum(1).clamp_min(1)
        worst = (values.detach() / sum(self.losses.values())).masked_fill(~(placed & targets.counted), 0.0).amax(1)
        return LossOutput(loss, worst)

    def _one_size(self, maps: AttentionMaps, targets: Targets, height: int, width: int) -> Tensor:
        """Weighted terms at one map size, ``batch regions``."""
        if self.per_head:
            sites = [maps.rows(site) for site in maps.probs if (site.height, site.width) == (height, width)]
            heads = maps.normalised(torch.cat(sites, dim=1))
            words = torch.einsum("bhqt,brt->brhq", heads, targets.tokens.to(heads.dtype)).unflatten(-1, (height, width))
        else:
            mean = maps.average(height, width).flatten(1, 2)
            words = region_maps(mean, targets.tokens).unflatten(-1, (height, width)).unsqueeze(2)
        total = words.new_zeros(words.shape[:3])
        for name, weight in self.losses.items():
            drawn = self._masks(name, targets, height, width)
            total = total + weight * TERMS[name](words, drawn.to(words.dtype).unsqueeze(2).expand_as(words))
        return total.mean(2)

    def _masks(self, name: str, targets: Targets, height: int, width: int) -> Tensor:
        """Masks for a term: one per region for ``inside``, the union of a word's regions for all other terms."""
        if name not in HARD_TERMS:
            return targets.joined_masks(height, width)
        return targets.binary_masks(height, width) if name == "inside" else targets.joined_binary_masks(height, width)
