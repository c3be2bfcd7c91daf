"""Count guidance: a word's attention must cover the places of all its instances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from attnguide.attention.edits import Edit
from attnguide.attention.maps import AttentionMaps
from attnguide.attention.sites import Site, SiteSelector
from attnguide.guidance.base import Guidance, LossOutput, cross_sites, require_cells
from attnguide.guidance.quirks import repeats_slips
from attnguide.guidance.update import PerRow, Thresholds, Update, refinements_at
from attnguide.injection.base import WindowEdit
from attnguide.losses.containment import logit_cross_entropy
from attnguide.prompt.targets import Targets, region_maps
from attnguide.schedules import Window, sqrt_linear
from attnguide.types import PassContext, Step

THRESHOLDS: Thresholds = {0.0: 1.3, 0.2: 1.2, 0.4: 1.15}
"""Progress -> loss to be reached by then."""


class CountGuidance(Guidance):
    """The second pass of CountGen, from a given instance mask (https://arxiv.org/abs/2406.10210).

    The mask of a phrase is the union of its regions: as many of them as there should be instances. The word's map (the last
    token of the phrase, its noun) is scaled to [0, 1] and read as logits of a binary cross-entropy with that mask. With
    ``self_mask``, background cells get nothing from the cells of instances in self-attention of the decoder, in both halves of
    the denoising passes, while it acts. Several phrases are summed; a region's ``weight`` scales its phrase.

    The paper's first pass, which finds instances in a plain picture and adds or removes some by a trained network, is not part
    of this.

    Args:
        step_size: Peak of the step size; it falls as ``sqrt(linspace(1, 0.5))``.
        stop: Progress at which guidance ends.
        thresholds: Progress -> loss of the worst phrase to be reached there by repeated updates; empty for none; one table, or
            one per row.
        max_refinements: Most updates at each of those points.
        positive_weight: Factor on cells inside the mask.
        self_mask: Whether self-attention is edited.
        self_stop: Progress at which that ends (the first 11 of 50 steps).
        levels: Map levels to read and edit; the model's guidance level when ``None`` (the published code has 32x32 on SDXL).
        scale: Factor on the step size, one number or one per row; 0 also leaves self-attention alone.
        quirks: ``"reference"`` repeats two slips of the published code: background cells get nothing from any cell at all, and
            refinement goes on for one update after the threshold is met.

    Raises:
        ValueError: While running, if a place covers no cell of the maps.
    """

    name = "count_guidance"
    needs_regions = "place"

    def __init__(
        self,
        *,
        step_size: float = 50.0,
        stop: float = 0.5,
        thresholds: Thresholds = THRESHOLDS,
        max_refinements: int = 20,
        positive_weight: float = 10.0,
        self_mask: bool = True,
        self_stop: float = 0.22,
        levels: tuple[int, ...] | None = None,
        scale: PerRow = 1.0,
        quirks: Literal["none", "reference"] = "none",
    ) -> None:
        if not 0 < positive_weight < float("inf"):
            raise ValueError(f"positive_weight must be above 0; got {positive_weight}.")
        self.reference = repeats_slips(quirks)
        super().__init__(
            sites=cross_sites(levels),
            window=Window(0.0, stop),
            update=Update(
                sqrt_linear(step_size),
                scale,
                refinements=refinements_at(thresholds, lambda value: value, max_refinements, self.reference),
            ),
        )
        self.positive_weight, self.self_mask, self.self_window = positive_weight, self_mask, Window(0.0, self_stop)

    def check(self, targets: Targets, sites: Sequence[Site]) -> None:
        require_cells(targets, sites)

    def edits(self, targets: Targets, level: int) -> Sequence[Edit]:
        levels = (level,) if self.sites is None else self.sites.levels
        return [_BackgroundRows(self, targets, SiteSelector("self", levels, places=("up",)))] if self.self_mask else []

    def loss(self, maps: AttentionMaps, targets: Targets, step: Step) -> LossOutput:
        sizes = [self._one_size(maps.average(height, width), targets) for height, width in maps.resolutions]
        value = torch.stack(sizes).mean(0)
        loss = (value * targets.weights * targets.shares(targets.placed)).sum(1)
        return LossOutput(loss, value.masked_fill(~targets.placed, 0.0).amax(1).detach())

    def _one_size(self, mean: Tensor, targets: Targets) -> Tensor:
        height, width = mean.shape[1:3]
        words = region_maps(mean.flatten(1, 2), targets.last_tokens).unflatten(-1, (height, width))
        masks = targets.joined_binary_masks(height, width).to(words.dtype)
        return logit_cross_entropy(words, masks, self.positive_weight)


class _BackgroundRows(WindowEdit):
    """Background cells get nothing from instances; rows are not brought back to a sum of 1."""

    def __init__(self, method: CountGuidance, targets: Targets, sites: SiteSelector) -> None:
        super().__init__(sites, ("probs",), method.self_window, method.update.scale, len(targets.regions))
        self.targets, self.reference = targets, method.reference

    def probs(self, probs: Tensor, site: Site, context: PassContext) -> Tensor:
        masks = (self.targets.masks(site.height, site.width) >= 0.5).any(1).flatten(1)[list(context.rows)]
        inside = masks.to(probs.device)
        hidden = ~inside[:, :, None] & (torch.ones_like(inside) if self.reference else inside)[:, None, :]
        touched = self.gate(probs, context, ("cond", "uncond")) != 0
        return probs.masked_fill(hidden[:, None] & touched, 0.0)
