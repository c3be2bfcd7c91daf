"""Divide & Bind: every noun's attention must have structure, and its attributes must attend where it does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from attnguide.attention.maps import AttentionMaps
from attnguide.attention.sites import Site, SiteSelector
from attnguide.guidance.base import Guidance, LossOutput, cross_sites
from attnguide.guidance.groups import require_groups
from attnguide.guidance.quirks import repeats_slips
from attnguide.guidance.update import PerRow, Thresholds, Update, refinements_at
from attnguide.guidance.word_maps import blur_deviation, token_maps
from attnguide.losses.binding import attribute_divergence
from attnguide.losses.presence import total_variation
from attnguide.prompt.pairs import TokenGroup
from attnguide.prompt.targets import Targets
from attnguide.schedules import Window, sqrt_linear
from attnguide.types import Step

THRESHOLDS: Thresholds = {0.0: 0.05, 0.2: 0.2, 0.4: 0.3}
"""Progress -> total variation of every noun's map to reach by that step."""


class DivideAndBind(Guidance):
    """Raises the smallest total variation of the nouns' maps, and binds attributes (https://arxiv.org/abs/2307.10864).

    ``L = max over nouns s of (-TV(A_s) + c mean over its modifiers r of JSD(A_s, A_r))`` with ``c = 1``, 5 from progress 0.2,
    10 from 0.4. Nouns are read at the guidance level, modifiers at all finer levels, shrunk to it, both as attend-and-excite
    reads words. Nouns and modifiers are the row's groups (:mod:`attnguide.prompt.pairs`). A guide pass has to run to the
    finest site, which costs twice as much; without ``bind`` only nouns are read.

    Args:
        bind: Add the binding term for nouns with modifiers.
        step_size: Peak of the step size; it falls as ``sqrt(linspace(1, 0.5))``.
        stop: Progress at which guidance ends.
        thresholds: Progress -> total variation of every noun's map to reach there by repeated updates; empty for none; one
            table, or one per row.
        max_refinements: Most updates at each of those points.
        first_refinements: Most updates at progress 0.
        blur_std: Standard deviation of the 3x3 blur in cells; 0 for none.
        until_end: Let only words compete in the token softmax, not the end token and padding.
        levels: Map levels to read, nouns at the coarsest; all up to the guidance level when ``None``.
        scale: Factor on the step size, one number or one per row.
        quirks: ``"reference"`` repeats slips of the published code: vertical differences are taken to the last row, the maps
            compared in the binding term do not sum to 1, the blur is wider by ``sqrt(2)``, one refinement too many.
    """

    name = "divide_and_bind"
    needs_regions = None

    def __init__(
        self,
        *,
        bind: bool = True,
        step_size: float = 20.0,
        stop: float = 0.5,
        thresholds: Thresholds = THRESHOLDS,
        max_refinements: int = 50,
        first_refinements: int = 100,
        blur_std: float = 0.5,
        until_end: bool = False,
        levels: tuple[int, ...] | None = None,
        scale: PerRow = 1.0,
        quirks: Literal["none", "reference"] = "none",
    ) -> None:
        self.reference = repeats_slips(quirks)
        refinements = refinements_at(
            thresholds, lambda least: -least, lambda at: max_refinements if at > 0 else first_refinements, self.reference
        )
        super().__init__(
            sites=cross_sites(levels),
            window=Window(0.0, stop),
            update=Update(sqrt_linear(step_size), scale, refinements=refinements),
        )
        self.bind, self.until_end = bind, until_end
        self.blur_std = blur_deviation(blur_std, self.reference)

    def usual_sites(self, level: int) -> SiteSelector:
        return SiteSelector(kind="cross", levels=tuple(range(level + 1)) if self.bind else (level,))

    def check(self, targets: Targets, sites: Sequence[Site]) -> None:
        require_groups(self.name, targets, "a noun")

    def loss(self, maps: AttentionMaps, targets: Targets, step: Step) -> LossOutput:
        height, width = maps.resolutions[-1]

        def read(chosen: AttentionMaps, mode: str | None = None) -> Tensor:
            return token_maps(
                chosen, targets, blur_std=self.blur_std, until_end=self.until_end, height=height, width=width, mode=mode
            )

        nouns = read(maps)
        finer = maps.among([site for site in maps.probs if (site.height, site.width) != (height, width)] or [*maps.probs])
        attributes = read(finer, "nearest") if self.bind else nouns
        found = [self._one_row(nouns[i], attributes[i], groups, step) for i, groups in enumerate(targets.groups)]
        losses, least = (torch.stack(parts) for parts in zip(*found, strict=True))
        return LossOutput(losses, -least.detach())

    def _one_row(self, nouns: Tensor, attributes: Tensor, groups: Sequence[TokenGroup], step: Step) -> tuple[Tensor, Tensor]:
        """Loss and smallest total variation of one row's ``tokens height width`` maps."""
        if not groups:
            return nouns.sum() * 0, nouns.sum() * 0 + torch.inf
        variations, losses = [], []
        for group in groups:
            noun = nouns[list(group.noun)].mean(0)
            variation = total_variation(noun, last_row=self.reference)
            variations.append(variation)
            losses.append(-variation)
            if self.bind and group.modifiers:
                words = torch.stack([attributes[list(word)].mean(0) for word in group.modifiers])
                quantile = torch.where(variation < 0.1, 0.3, 0.2).to(noun)
                apart = attribute_divergence(noun.expand_as(words), words, quantile.expand(len(words)), not self.reference)
                losses[-1] = losses[-1] + _strength(step) * apart.mean()
        return torch.stack(losses).amax(), torch.stack(variations).amin()


def _strength(step: Step) -> float:
    """Weight of the binding term: 1, 5 from step 10 of 50, 10 from step 20."""
    index, count = step.overall_index, step.overall_count
    return 1.0 if index < round(0.2 * count) else 5.0 if index < round(0.4 * count) else 10.0
