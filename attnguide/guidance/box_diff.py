"""BoxDiff: strong attention inside the box, weak outside, and the box's outline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from attnguide.attention.maps import AttentionMaps
from attnguide.attention.sites import Site
from attnguide.guidance.base import Guidance, LossOutput, cross_sites, require_cells
from attnguide.guidance.quirks import repeats_slips
from attnguide.guidance.update import PerRow, Thresholds, Update, refinements_at
from attnguide.guidance.word_maps import blur_deviation, word_maps
from attnguide.losses.containment import inner_box, outer_box
from attnguide.losses.shape import corner_distance, near
from attnguide.prompt.drawing import Rule, cell_edges
from attnguide.prompt.targets import Targets
from attnguide.schedules import Window, sqrt_linear
from attnguide.types import Step

THRESHOLDS: Thresholds = {0.0: 0.05, 0.2: 0.5, 0.4: 0.8}
"""Progress -> mean of the strongest attention inside every box to reach by that step."""


class BoxDiff(Guidance):
    """Three loss terms per box, summed over the phrases that have a place (https://arxiv.org/abs/2307.10816).

    On the maps of attend-and-excite: one minus the mean of the strongest fifth inside, the mean of the strongest fifth outside,
    and the distance of the outlines near the box's edges. A refinement, as in attend-and-excite, descends on the inner term of
    the worst box alone. Several regions of one phrase count as their union; a region's ``weight`` scales its terms.

    Args:
        step_size: Peak of the step size; it falls as ``sqrt(linspace(1, 0.5))``.
        stop: Progress at which guidance ends.
        thresholds: Progress -> mean of the strongest attention inside every box to reach there by repeated updates; empty for
            none; one table, or one per row.
        max_refinements: Most updates at each of those points.
        fraction: Share of the cells inside and outside that is averaged.
        reach: Number of cells on either side of a box's edge where outlines are compared.
        blur_std: Standard deviation of the 3x3 blur in cells; 0 for none.
        until_end: Let only words compete in the token softmax, not the end token and padding (the code's choice for SD 2.x).
        levels: Map levels to read; the model's guidance level when ``None``.
        scale: Factor on the step size, one number or one per row.
        quirks: ``"reference"`` rounds the edges of boxes to cells, as the published code does, and repeats what that code does
            unintended: the inner (outer) term of a box with fewer than ``1 / fraction`` cells inside (outside) is 0, also of a
            box that has none; the update after a refinement descends on the inner terms only; and the slips shared with
            attend-and-excite (blur wider by ``sqrt(2)``, one refinement too many).

    Raises:
        ValueError: While running, if a place is too small for the maps.
    """

    name = "box_diff"
    needs_regions = "place"

    def __init__(
        self,
        *,
        step_size: float = 20.0,
        stop: float = 0.5,
        thresholds: Thresholds = THRESHOLDS,
        max_refinements: int = 20,
        fraction: float = 0.2,
        reach: int = 1,
        blur_std: float = 0.5,
        until_end: bool = False,
        levels: tuple[int, ...] | None = None,
        scale: PerRow = 1.0,
        quirks: Literal["none", "reference"] = "none",
    ) -> None:
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction must lie in (0, 1]; got {fraction}.")
        if reach < 0:
            raise ValueError(f"reach must be at least 0; got {reach}.")
        self.reference = repeats_slips(quirks)
        self.rule: Rule = "rounded" if self.reference else "half"
        super().__init__(
            sites=cross_sites(levels),
            window=Window(0.0, stop),
            update=Update(
                sqrt_linear(step_size),
                scale,
                refinements=refinements_at(thresholds, lambda mean: 1 - mean, max_refinements, self.reference),
            ),
        )
        self.fraction, self.reach, self.until_end = fraction, reach, until_end
        self.blur_std = blur_deviation(blur_std, self.reference)

    def check(self, targets: Targets, sites: Sequence[Site]) -> None:
        if not self.reference:  # the published code goes on without the cells
            require_cells(targets, sites)

    def loss(self, maps: AttentionMaps, targets: Targets, step: Step) -> LossOutput:
        terms = [self._terms(maps, targets, height, width) for height, width in maps.resolutions]
        inner, outer, corner = (torch.stack(sizes).mean(0) for sizes in zip(*terms, strict=True))
        weights = targets.weights * targets.shares(targets.placed)
        missing = inner.masked_fill(~(targets.placed & targets.counted), 0.0)
        worst = (missing * targets.weights).amax(1)
        inside = (inner * weights).sum(1)
        total = inside + ((outer + corner) * weights).sum(1)
        return LossOutput(total, missing.amax(1).detach(), refining=worst, refined=inside if self.reference else None)

    def _terms(self, maps: AttentionMaps, targets: Targets, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Inner, outer and corner term at one map size, ``batch regions`` each."""
        words = word_maps(maps, targets, blur_std=self.blur_std, until_end=self.until_end, height=height, width=width)
        masks = targets.joined_binary_masks(height, width, self.rule).to(words.dtype)
        inner = inner_box(words, masks, self.fraction).clamp_min(0)
        outer = outer_box(words, masks, self.fraction)
        if self.reference:
            cells = masks.sum((-2, -1))
            inner = inner.masked_fill(cells * self.fraction < 1, 0.0)
            outer = outer.masked_fill((height * width - cells) * self.fraction < 1, 0.0)
            return inner, outer, corner_distance(words, masks, self.reach, self._lost_edges(targets, masks))
        return inner, outer, corner_distance(words, masks, self.reach)

    def _lost_edges(self, targets: Targets, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Columns and rows near the edges of boxes whose rounded mask is empty, where the published code compares outlines.

        Shapes ``batch regions width`` and ``batch regions height``, 0 or 1.
        """
        height, width = masks.shape[-2:]
        columns, rows = masks.new_zeros((*masks.shape[:2], width)), masks.new_zeros((*masks.shape[:2], height))
        for row, regions in enumerate(targets.regions):
            for index, region in enumerate(regions):
                if region.box is not None and not bool(masks[row, index].any()):
                    x0, y0, x1, y1 = cell_edges(region.box, height, width, "rounded")
                    columns[row, index] = near((x0, x1), width, self.reach).to(columns)
                    rows[row, index] = near((y0, y1), height, self.reach).to(rows)
        return columns, rows
