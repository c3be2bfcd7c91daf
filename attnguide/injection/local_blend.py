"""Local blend of prompt-to-prompt: latents outside of some words' attention become the source's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from attnguide.attention.sites import Site, SiteSelector
from attnguide.guidance.update import PerRow
from attnguide.injection.base import LatentsEdit, WindowEdit
from attnguide.injection.source import Words, word_attention, word_positions
from attnguide.prompt.targets import Targets
from attnguide.schedules import Window
from attnguide.types import PassContext, Step


class LocalBlend(WindowEdit, LatentsEdit):
    """Latents are the row's own where its words or the source's attend (https://arxiv.org/abs/2208.01626).

    Cross-attention maps of both prompts' words, summed over steps so far and averaged over heads and the largest sites of at
    most ``cells``, are dilated by a 3x3 maximum and resized to the latents; a cell belongs to the words where a map exceeds
    ``threshold`` times its peak. Attention is not changed.

    Args:
        targets: All rows.
        scale: Strength, one number or one per row; 0 for rows that are not blended.
        words: Comma-separated phrases of the prompt; one text, or one per row.
        source_words: Comma-separated phrases of the source prompt, one text, or one per row; ``words`` when ``None``.
        threshold: Share of a map's peak above which a cell belongs to the words.
        start: Progress at which blending begins.
        cells: Number of cells of the largest maps that are read.

    Attributes:
        blends: Whether any row has words.

    Raises:
        ValueError: If a phrase does not occur, or there is neither one text nor one per row.
    """

    def __init__(
        self,
        targets: Targets,
        scale: PerRow,
        *,
        words: Words | Sequence[Words],
        source_words: Words | Sequence[Words],
        threshold: float,
        start: float,
        cells: int,
    ) -> None:
        maps = SiteSelector(kind="cross", where=lambda site: site.height * site.width <= cells)
        super().__init__(maps, ("probs",), Window(), scale, len(targets.regions))
        self.words = word_positions(targets, words, source_words, ("blend", "blend_source"))
        self.threshold, self.start = threshold, start
        self.blends = any(map(any, self.words))
        self._sums: dict[Site, Tensor] = {}

    def active(self, context: PassContext) -> bool:
        return super().active(context) and self.blends

    def probs(self, probs: Tensor, site: Site, context: PassContext) -> Tensor:
        if not context.positions("source"):
            return probs
        found = word_attention(probs, self.words, context)
        self._sums[site] = self._sums[site] + found if site in self._sums else found
        return probs

    def after_step(self, latents: Tensor, source: Tensor | None, step: Step) -> Tensor:
        if source is None or step.progress < self.start or not self._sums:
            return latents
        largest = max((site.height * site.width, site.height, site.width) for site in self._sums)[1:]
        chosen = [total for site, total in self._sums.items() if (site.height, site.width) == largest]
        maps = F.max_pool2d(torch.stack(chosen).mean(0).unflatten(-1, largest), 3, stride=1, padding=1)
        maps = F.interpolate(maps, latents.shape[-2:])
        peak = maps.amax((-2, -1), keepdim=True).clamp_min(1e-30)
        inside = (maps / peak > self.threshold).any(0).unsqueeze(1)
        blends = [scale != 0 and any(words) for scale, *words in zip(self.scales, *self.words, strict=True)]
        return torch.where(inside | ~torch.tensor(blends, device=latents.device).view(-1, 1, 1, 1), latents, source)
