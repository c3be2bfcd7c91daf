"""Layout guidance (backward): each head's attention to a word must lie inside its box."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from attnguide.attention.maps import AttentionMaps
from attnguide.attention.sites import SiteSelector
from attnguide.guidance.base import Guidance, LossOutput, cross_sites
from attnguide.guidance.per_row import EachRow
from attnguide.guidance.quirks import repeats_slips
from attnguide.guidance.update import PerRow, Refinement, Update
from attnguide.losses.containment import mass_outside
from attnguide.prompt.targets import Targets
from attnguide.schedules import Window, noise_variance
from attnguide.types import Step


class LayoutGuidance(Guidance):
    """Squared share of attention outside the box, per head (https://arxiv.org/abs/2304.03373).

    ``L = mean over sites, phrases, the phrase's tokens and heads of (1 - in / all)^2`` on the raw probs of the middle block
    and of the upward sites at the guidance level; ``z <- z - step_size sigma^2 dL/dz`` up to five times a step while ``L >
    until``. Several regions of one phrase are their union; a region's ``weight`` scales its loss.

    Args:
        step_size: Factor on ``sigma^2`` times the gradient, on variance-exploding latents (other schedulers' are converted).
        stop: Progress at which guidance ends (the first 10 of 51 steps).
        iterations: Most updates a step.
        until: A row whose loss is at or below this makes no update; one number, or one per row.
        levels: Cross-attention levels to read, at all places; the sites named above when ``None``.
        scale: Factor on the step size, one number or one per row.
        quirks: ``"reference"`` repeats the published code: a row goes on as long as the loss *before* its last update was above
            ``until``, and once it is not the row is never guided again; box edges are truncated to whole cells, and an empty
            box adds its full loss. (Its word indices, which took every word for one token, are not repeated.)
    """

    name = "layout_guidance"
    needs_regions = "place"

    def __init__(
        self,
        *,
        step_size: float = 30.0,
        stop: float = 0.196,
        iterations: int = 5,
        until: PerRow = 0.2,
        levels: tuple[int, ...] | None = None,
        scale: PerRow = 1.0,
        quirks: Literal["none", "reference"] = "none",
    ) -> None:
        super().__init__(
            sites=cross_sites(levels),
            window=Window(0.0, stop),
            update=Update(noise_variance(step_size), scale, iterations=0, refinements=(Refinement(until, iterations),)),
        )
        self.reference = repeats_slips(quirks)
        self.until = until
        self._last: dict[int, float] = {}

    def usual_sites(self, level: int) -> SiteSelector:
        middle = SiteSelector(kind="cross", places=("mid",))
        return SiteSelector(kind="cross", levels=(level,), places=("mid", "up", "block"), also=(middle,))

    def start(self, targets: Targets) -> None:
        self._last.clear()

    def loss(self, maps: AttentionMaps, targets: Targets, step: Step) -> LossOutput:
        weights = targets.weights * targets.shares(targets.placed)
        values = torch.stack([self._one_site(maps.rows(s), targets, s.height, s.width) for s in maps.probs]).mean(0)
        loss = (values * weights).sum(1) / targets.shares(targets.placed).sum(1).clamp_min(1)
        return LossOutput(loss, self._stale(loss, targets) if self.reference else loss.detach())

    def masks(self, targets: Targets, height: int, width: int) -> Tensor:
        """Soft masks, or binary ones as the published code draws them; ``batch regions height width``."""
        if self.reference:
            return targets.joined_binary_masks(height, width, "truncated")
        return targets.joined_masks(height, width)

    def _one_site(self, probs: Tensor, targets: Targets, height: int, width: int) -> Tensor:
        """Squared share of attention outside the mask, mean over heads and tokens at one site, ``batch regions``."""
        masks = self.masks(targets, height, width)
        tokens = targets.tokens.to(probs)
        used = tokens.flatten(0, 1).any(0)  # tokens of any region in the batch, to save the memory of the others' maps
        heads = probs[..., used].movedim(-1, 1).unflatten(-1, (height, width)).unsqueeze(1)
        drawn = masks.to(probs)[:, :, None, None].expand(-1, -1, *heads.shape[2:4], -1, -1)
        outside = mass_outside(heads.expand_as(drawn), drawn).mean(-1)
        return (outside * tokens[..., used]).sum(-1)

    def _stale(self, loss: Tensor, targets: Targets) -> Tensor:
        """Each row's loss before its last update; it is no longer updated once it is at most ``until``."""
        limits = EachRow(self.until, "until").at(targets.rows, loss).tolist()
        before = [self._last.get(row, math.inf) for row in targets.rows]
        for row, last, limit, now in zip(targets.rows, before, limits, loss.detach().tolist(), strict=True):
            self._last[row] = now if last > limit else last
        return torch.tensor(before, device=loss.device)
