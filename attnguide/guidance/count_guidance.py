"""Count guidance: a word's attention must cover the places of all its instances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from attnguide.attention.edits import Edit
from attnguide.attention.maps import AttentionMaps
from attnguide.attention.sites import Site, SiteSelector
from attnguide.guidance.base import Guidance, LossOutput, Trials, cross_sites, require_cells
from attnguide.guidance.instances import FirstPass
from attnguide.guidance.per_row import EachRow
from attnguide.guidance.quirks import repeats_slips
from attnguide.guidance.update import PerRow, Thresholds, Update, refinements_at
from attnguide.injection.base import WindowEdit
from attnguide.losses.containment import logit_cross_entropy
from attnguide.prompt.targets import Targets, region_maps
from attnguide.schedules import Window, sqrt_linear
from attnguide.types import ExpectedCost, PassContext, Step

THRESHOLDS: Thresholds = {0.0: 1.3, 0.2: 1.2, 0.4: 1.15}
"""Progress -> loss of the worst phrase to reach by that step."""


class CountGuidance(Guidance):
    """CountGen: attention on the mask of all instances, given or found in a first pass (https://arxiv.org/abs/2406.10210).

    The mask of a phrase is the union of its regions: as many of them as there should be instances. With ``count``, phrases
    without a place get their mask from a first pass: the row is sampled plainly up to ``first_stop``, instances are found in
    its attention (:func:`~attnguide.guidance.instances.find_instances`, self-attention of the decoder in the last of those
    steps, cross-attention of all of them), and some are dropped or added until there are ``count``
    (:func:`~attnguide.guidance.instances.with_count`). The paper adds instances by a trained network, which is not part of
    this: a rule of geometry takes its place, so that added instances are not arranged as such objects usually are.

    The word's map (the last token of the phrase, its noun) is scaled to [0, 1] and read as logits of a binary cross-entropy
    with that mask. With ``self_mask``, self-attention probs of the decoder from background queries to instance keys are set to
    0, in both halves of the denoising passes up to ``self_stop``. Losses of several phrases are summed; a region's ``weight``
    scales its phrase's.

    Args:
        count: Instances of every phrase without a place, one number or one per row; without it such phrases are left alone.
        first_stop: Progress of the last step of the first pass (the published code clusters at step 25 of 50).
        step_size: Peak of the step size; it falls as ``sqrt(linspace(1, 0.5))``.
        stop: Progress at which guidance ends.
        thresholds: Progress -> loss of the worst phrase to reach there by repeated updates; empty for none; one table, or one
            per row.
        max_refinements: Most updates at each of those points.
        positive_weight: Factor on cells inside the mask.
        self_mask: Whether self-attention is edited.
        self_stop: Progress at which the edit of self-attention ends (the first 11 of 50 steps).
        levels: Map levels to read and edit; the model's guidance level when ``None`` (the published code has 32x32 on SDXL).
        scale: Factor on the step size, one number or one per row; 0 also leaves self-attention alone.
        quirks: ``"reference"`` repeats two slips of the published code: self-attention probs from background queries to all
            keys are set to 0, and refinement goes on for one update after the threshold is met.

    Raises:
        ValueError: While running, if a place covers no cell of the maps.
    """

    name = "count_guidance"
    needs_regions = "place"

    def __init__(
        self,
        *,
        count: int | Sequence[int | None] | None = None,
        first_stop: float = 0.5,
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
        for number in [count] if isinstance(count, int | None) else count:
            if number is not None and number < 1:
                raise ValueError(f"count must be at least 1; got {number}.")
        if not 0 <= first_stop <= 1:
            raise ValueError(f"first_stop must lie in [0, 1]; got {first_stop}.")
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
        self.count, self.first_stop = count, first_stop
        if count is not None:
            self.needs_regions = "phrase"
        self.optimise_at = None if count is None else 0.0
        self._found: dict[int, Tensor] = {}

    def start(self, targets: Targets) -> None:
        self._found.clear()

    def check(self, targets: Targets, sites: Sequence[Site]) -> None:
        require_cells(targets, sites)

    def optimise(self, latents: Tensor, trials: Trials) -> Tensor:
        """Find instances in a first pass without guidance; the latents are returned unchanged."""
        targets = trials.targets
        free = (targets.valid & ~targets.placed).any(1).tolist()
        scales = EachRow(self.update.scale, "scale").at(targets.rows, latents).tolist()
        counts = [self.count if isinstance(self.count, int | None) else self.count[row] for row in targets.rows]
        wanted = {row: counts[row] for row in range(len(counts)) if free[row] and scales[row] != 0}
        rows = [row for row, count in wanted.items() if count is not None]
        if rows:
            levels = (trials.level,) if self.sites is None or self.sites.levels is None else self.sites.levels
            finest = SiteSelector(levels=(min(levels),), where=lambda site: site.kind == "cross" or site.place == "up")
            first = FirstPass(targets.select(rows))
            trials.preview(latents[rows], rows, finest, self.first_stop, first)
            for row, masks in zip(rows, first.masks([wanted[row] or 1 for row in rows]), strict=True):
                self._found[targets.rows[row]] = masks
        return latents

    def trials_cost(self, steps: int, halves: int) -> ExpectedCost:
        made = sum(index / steps <= self.first_stop for index in range(steps))
        return ExpectedCost(most=0 if self.optimise_at is None else made * halves)

    def masks(self, targets: Targets, height: int, width: int) -> Tensor:
        """Masks of instances, given or found: bool, ``batch regions height width``."""
        masks = targets.binary_masks(height, width).clone()
        for index, row in enumerate(targets.rows):
            if row in self._found:
                found = F.adaptive_max_pool2d(self._found[row].float(), (height, width)) > 0
                masks[index, : len(found)] |= found[: targets.count].to(masks.device)
        return masks

    def edits(self, targets: Targets, level: int) -> Sequence[Edit]:
        levels = (level,) if self.sites is None else self.sites.levels
        return [_BackgroundRows(self, targets, SiteSelector("self", levels, places=("up",)))] if self.self_mask else []

    def loss(self, maps: AttentionMaps, targets: Targets, step: Step) -> LossOutput:
        sizes = [self._one_size(maps.average(height, width), targets) for height, width in maps.resolutions]
        value = torch.stack(sizes).mean(0)
        found = torch.tensor([row in self._found for row in targets.rows], device=targets.device)
        wanted = targets.placed | (targets.valid & found[:, None])
        loss = (value * targets.weights * targets.shares(wanted)).sum(1)
        return LossOutput(loss, value.masked_fill(~(wanted & targets.counted), 0.0).amax(1).detach())

    def _one_size(self, mean: Tensor, targets: Targets) -> Tensor:
        height, width = mean.shape[1:3]
        words = region_maps(mean.flatten(1, 2), targets.last_tokens).unflatten(-1, (height, width))
        masks = targets.joined_binary_masks(height, width) | self.masks(targets, height, width)
        return logit_cross_entropy(words, masks.to(words.dtype), self.positive_weight)


class _BackgroundRows(WindowEdit):
    """Sets self-attention probs from background queries to instance keys to 0, without renormalising."""

    def __init__(self, method: CountGuidance, targets: Targets, sites: SiteSelector) -> None:
        super().__init__(sites, ("probs",), method.self_window, method.update.scale, len(targets.regions))
        self.targets, self.method = targets, method

    def probs(self, probs: Tensor, site: Site, context: PassContext) -> Tensor:
        masks = self.method.masks(self.targets, site.height, site.width).any(1).flatten(1)
        inside = masks[list(context.rows)].to(probs.device)
        hidden = ~inside[:, :, None] & (torch.ones_like(inside) if self.method.reference else inside)[:, None, :]
        touched = self.gate(probs, context, ("cond", "uncond", "perturbed")) != 0
        return probs.masked_fill(hidden[:, None] & touched, 0.0)
