"""R&B: the rectangle around a word's strong attention must be its box, and its edges must lie inside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from attnguide.attention.maps import AttentionMaps, gaussian_smooth, min_max
from attnguide.attention.sites import Site, SiteSelector
from attnguide.guidance.base import Guidance, LossOutput, cross_sites
from attnguide.guidance.quirks import repeats_slips
from attnguide.guidance.update import PerRow, Refinement, Update
from attnguide.guidance.word_maps import blur_deviation
from attnguide.losses.shape import adaptive_threshold, edge_misfit, region_misfit
from attnguide.prompt.drawing import Rule
from attnguide.prompt.targets import Targets, region_maps
from attnguide.schedules import Window, constant
from attnguide.types import Step

GOOD_ENOUGH = 0.85
"""Intersection over union of rectangle and box from which a phrase has no loss."""


class RegionAndBoundary(Guidance):
    """Region-aware and boundary-aware losses (https://arxiv.org/abs/2310.08872).

    Maps of the guidance level, one level finer (upward) and the middle block are resized to latent size and averaged. For a
    phrase whose rectangle and box have an intersection over union below 0.85 the loss is
    :func:`~attnguide.losses.shape.region_misfit`, plus, with several phrases and the strongest cell outside the box,
    :func:`~attnguide.losses.shape.edge_misfit` on a sharpened map; the mean over phrases is taken. Several regions of one
    phrase count as their union; a region's ``weight`` scales its loss. The published script also replaces the negative prompt,
    which is not part of the method.

    The method ``groundit_global`` is this one with the numbers of GrounDiT's global update (https://arxiv.org/abs/2410.20474),
    whose edge loss is on maps without sharpening; GrounDiT's second part, patches denoised separately, is not included.

    Args:
        step_size: Constant factor on the gradient.
        stop: Progress at which guidance ends (the first 10 of 50 steps).
        iterations: Most updates a step.
        until: A row whose loss is at or below this makes no update; one number, or one per row.
        sharpness: Factor on maps before the softmax over tokens for the edge loss; 0 for maps without softmax.
        levels: Cross-attention levels to read, at all places; the sites named above when ``None``.
        scale: Factor on the step size, one number or one per row.
        quirks: ``"reference"`` repeats the published code: the rectangle leaves out its last row and column, box edges are
            truncated to whole cells, a box of the whole picture sets the threshold to 0, the blur is wider by ``sqrt(2)``, and
            a row whose loss was 0 after progress 0.1 is never guided again. A box that is truncated away is refused, and a flat
            map has no gradient, where the published code fails.

    Raises:
        ValueError: While running, if a place is too small for the latent.
    """

    name = "r_and_b"
    needs_regions = "place"

    def __init__(
        self,
        *,
        step_size: float = 70.0,
        stop: float = 0.2,
        iterations: int = 5,
        until: PerRow = 3e-5,
        sharpness: float = 120.0,
        levels: tuple[int, ...] | None = None,
        scale: PerRow = 1.0,
        quirks: Literal["none", "reference"] = "none",
    ) -> None:
        super().__init__(
            sites=cross_sites(levels),
            window=Window(0.0, stop),
            update=Update(constant(step_size), scale, iterations=0, refinements=(Refinement(until, iterations),)),
        )
        if not sharpness >= 0:
            raise ValueError(f"sharpness must be at least 0; got {sharpness}.")
        self.reference, self.sharpness = repeats_slips(quirks), sharpness
        self.rule: Rule = "truncated" if self.reference else "half"
        self._finished: set[int] = set()

    def usual_sites(self, level: int) -> SiteSelector:
        finer = (SiteSelector(kind="cross", levels=(level - 1,), places=("mid", "up", "block")),) if level else ()
        middle = SiteSelector(kind="cross", places=("mid",))
        return SiteSelector(kind="cross", levels=(level,), also=(*finer, middle))

    def start(self, targets: Targets) -> None:
        self._finished.clear()

    def check(self, targets: Targets, sites: Sequence[Site]) -> None:
        targets.require_cells(*_latent_size(sites), self.rule)

    def loss(self, maps: AttentionMaps, targets: Targets, step: Step) -> LossOutput:
        height, width = _latent_size(list(maps.probs))
        words, sharp = self._words(maps, targets, height, width)
        masks = targets.joined_binary_masks(height, width, self.rule).to(words.dtype)
        scaled = min_max(words)
        levels = adaptive_threshold(scaled, masks)
        if self.reference:
            levels = levels.masked_fill(masks.amin((-2, -1)) > 0, 0.0)
        value, iou = region_misfit(scaled, masks, levels, exclusive=self.reference)
        shares = targets.shares(targets.placed)
        count = shares.sum(1)
        astray = (words * masks).amax((-2, -1)) < (words * (1 - masks)).amax((-2, -1))
        edges = edge_misfit(self._smooth(sharp), masks, iou)
        value = value + torch.where(astray & (count[:, None] > 1.5), edges, torch.zeros_like(edges))
        value = torch.where(iou < GOOD_ENOUGH, value, torch.zeros_like(value))
        loss = (value * shares * targets.weights).sum(1) / count.clamp_min(1)
        return LossOutput(loss, self._asks(loss.detach(), targets.rows, step))

    def _words(self, maps: AttentionMaps, targets: Targets, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Word maps of all sites, and sharpened ones without the downward sites; ``batch regions height width`` each."""
        tokens = targets.tokens
        every = maps.resized_average(height, width)
        words = region_maps(every.flatten(1, 2), tokens).unflatten(-1, (height, width))
        if self.sharpness == 0:
            return words, words
        upward = maps.among([site for site in maps.probs if site.place != "down"] or [*maps.probs])
        rivals = targets.own & ~targets.sinks
        some = rivals.any(0)  # a shorter axis, since the order of summing depends on its length
        seen = upward.resized_average(height, width)[..., some] * self.sharpness
        sharp = seen.masked_fill(~rivals[:, None, None, some], -torch.inf).softmax(-1)
        return words, region_maps(sharp.flatten(1, 2), tokens[..., some]).unflatten(-1, (height, width))

    def _smooth(self, maps: Tensor) -> Tensor:
        peak = maps.detach().amax((-2, -1), keepdim=True).clamp_min(1e-12)
        return gaussian_smooth(maps / peak, blur_deviation(3.0, self.reference))

    def _asks(self, loss: Tensor, rows: Sequence[int], step: Step) -> Tensor:
        if not self.reference:
            return loss
        if step.progress >= 0.1:
            self._finished |= {row for row, value in zip(rows, loss.tolist(), strict=True) if value == 0}
        return loss.masked_fill(torch.tensor([row in self._finished for row in rows], device=loss.device), 0.0)


def _latent_size(sites: Sequence[Site]) -> tuple[int, int]:
    """Height and width of the latents, from the finest site; rounding up of halved sizes is not undone."""
    finest = min(sites, key=lambda site: site.level)
    return finest.height << finest.level, finest.width << finest.level
