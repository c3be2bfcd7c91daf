"""Paint-with-words (eDiff-I): a word's scores are raised where it is painted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from attnguide.attention.edits import Edit
from attnguide.attention.sites import Site, SiteSelector
from attnguide.guidance.per_row import EachRow, PerRow
from attnguide.injection.base import Injection, WindowEdit, finite, one_of
from attnguide.prompt.drawing import binary_mask, sampled_mask
from attnguide.prompt.regions import rasterise
from attnguide.prompt.targets import Targets
from attnguide.prompt.tokens import TokenizedPrompt
from attnguide.schedules import MOST_SIGMA, Unit, Window
from attnguide.types import PassContext, Region

_PIXELS_PER_CELL = 8
"""Pixels along one side of a latent cell; the reference draws its masks at picture size."""

Seeds = Mapping[str, int] | None


class PaintWithWords(Injection):
    """Adds ``scale * w * u`` to the scaled scores of cross-attention, conditional half only.

    ``w`` is the sum of ``weight * mask`` over the regions of a token, and ``u`` one number per row and site: ``log(1 + sigma)
    max S`` (eDiff-I, https://arxiv.org/abs/2211.01324), or, from the reimplementation cloneofsimo/paint-with-words-sd whose
    settings are the defaults, ``log(1 + sigma) std S`` and ``log(1 + sigma^2) std S``, over all heads, queries and tokens.
    Sigma is limited to 16, since it is infinite where flow matching begins.

    Args:
        weight_function: ``max``, ``std`` or ``std_squared`` (the three above).
        scale: Strength, one number or one per row; the reference's examples use 0.4.
        start: First bound of the window, in ``unit``.
        stop: Second bound of the window, in ``unit``.
        unit: ``progress``, ``timestep`` (t / 1000) or ``sigma``.
        region_seeds: Phrase -> seed of the noise inside that phrase's regions; one mapping, or one per row.
        quirks: ``reference`` raises the scores of every occurrence of the region's tokens instead of the one that is meant,
            samples masks at points (corners aligned) instead of averaging over cells, and adds up the noise of seeded regions
            weighted by their masks, which changes its variance at edges and overlaps.

    Raises:
        ValueError: If an option is out of range; for a batch, if a seed's phrase belongs to no region.
    """

    name = "paint_with_words"
    needs_regions = "place"

    def __init__(
        self,
        *,
        weight_function: Literal["max", "std", "std_squared"] = "max",
        scale: PerRow = 0.1,
        start: float = 0.0,
        stop: float = 1.0,
        unit: Unit = "progress",
        region_seeds: Seeds | Sequence[Seeds] = None,
        quirks: Literal["none", "reference"] = "none",
    ) -> None:
        one_of("weight_function", weight_function, ("max", "std", "std_squared"))
        one_of("quirks", quirks, ("none", "reference"))
        finite("scale", scale)
        self.weight_function, self.scale, self.region_seeds, self.quirks = weight_function, scale, region_seeds, quirks
        self.window = Window(start, stop, unit)

    def edits(self, targets: Targets) -> Sequence[Edit]:
        return [_Painting(self, targets)]

    @property
    def changes_noise(self) -> bool:
        seeds = self.region_seeds
        return any(seeds) if isinstance(seeds, Sequence) else bool(seeds)

    def initial_noise(self, noise: Tensor, targets: Targets) -> Tensor:
        if not self.region_seeds:
            return noise
        known = {region.phrase for regions in targets.regions for region in regions if region.has_place}
        noise = noise.clone()
        given = EachRow[Mapping[str, int] | None](self.region_seeds, "region_seeds").over(len(targets.regions))
        for row, regions in enumerate(targets.regions):
            seeds = given[row] or {}
            for phrase in seeds:
                if phrase not in known:
                    raise ValueError(f"region_seeds must name phrases of placed regions ({', '.join(known)}); got {phrase!r}.")
            seeded = [(region, seeds[region.phrase]) for region in regions if region.has_place and region.phrase in seeds]
            noise[row] = self._seeded(noise[row], seeded)
        return noise

    def _seeded(self, noise: Tensor, seeded: Sequence[tuple[Region, int]]) -> Tensor:
        """One row's noise, ``channels height width``, with each region's own inside it; later regions lie on top."""
        drawn = [torch.randn(noise.shape, generator=torch.Generator().manual_seed(seed)).to(noise) for _, seed in seeded]
        height, width = noise.shape[-2:]
        if self.quirks == "none":
            for (region, _), inside in zip(seeded, drawn, strict=True):
                noise = torch.where(binary_mask(region, height, width).to(noise.device), inside, noise)
            return noise
        masks = [_on_picture(region, height, width)[None, None].to(noise) for region, _ in seeded]
        soft = [F.interpolate(mask, (height, width), mode="bilinear")[0] for mask in masks]
        if not soft:
            return noise
        painted = torch.stack([inside * mask for inside, mask in zip(drawn, soft, strict=True)]).sum(0)
        return torch.where(torch.stack(soft).sum(0) > 0, painted, noise)


def _on_picture(region: Region, height: int, width: int) -> Tensor:
    """Binary mask at picture size, for latents of ``height x width``."""
    return (rasterise(region, height * _PIXELS_PER_CELL, width * _PIXELS_PER_CELL) >= 0.5).float()


def _occurrences(prompt: TokenizedPrompt, positions: Sequence[int]) -> list[int]:
    """Token positions of every occurrence of a region's tokens, searched in each segment."""
    found: list[int] = []
    for room in prompt.rooms():
        wanted = [prompt.ids[position] for position in positions if position in room]
        starts = [at for at in room if wanted and list(prompt.ids[at : at + len(wanted)]) == wanted]
        found += [start + offset for start in starts for offset in range(len(wanted))]
    return found


def _spread(scores: Tensor) -> Tensor:
    """Standard deviation of each batch element's finite scores, ``batch 1 1 1``; scores of padding are minus infinity."""
    if bool(torch.isfinite(scores).all()):
        return scores.std((1, 2, 3), keepdim=True)
    return torch.stack([element[torch.isfinite(element)].std() for element in scores]).view(-1, 1, 1, 1)


class _Painting(WindowEdit):
    """Edit of scores of a :class:`PaintWithWords` for one batch of rows."""

    def __init__(self, method: PaintWithWords, targets: Targets) -> None:
        super().__init__(SiteSelector(kind="cross"), ("scores",), method.window, method.scale, len(targets.regions))
        self.method, self.targets = method, targets
        self._painted: dict[tuple[int, int], Tensor] = {}

    def scores(self, scores: Tensor, site: Site, context: PassContext) -> Tensor:
        kind, sigma = self.method.weight_function, min(context.step.sigma, MOST_SIGMA)
        unit = scores.amax((1, 2, 3), keepdim=True) if kind == "max" else _spread(scores)
        growth = math.log1p(sigma**2 if kind == "std_squared" else sigma)
        painted = self._weights(site).to(scores)[list(context.rows)].unsqueeze(1)
        return scores + self.gate(scores, context) * growth * unit * painted

    def _weights(self, site: Site) -> Tensor:
        """Weights ``w`` of every row, ``batch query key``."""
        targets, size = self.targets, (site.height, site.width)
        if size in self._painted:
            return self._painted[size]
        if self.method.quirks == "none":
            masks = targets.masks(*size).flatten(2) * targets.weights[..., None]
            painted = torch.einsum("brq,brk->bqk", masks, (targets.tokens > 0).to(masks))
        else:
            painted = torch.zeros(len(targets.regions), size[0] * size[1], targets.tokens.shape[-1])
            for row, regions in enumerate(targets.regions):
                for region, positions in zip(regions, targets.token_indices[row], strict=True):
                    if region.has_place:
                        drawn = sampled_mask(region, *size, _PIXELS_PER_CELL << site.level, "corners").flatten()
                        for position in _occurrences(targets.tokenized[row], positions):
                            painted[row, :, position] += region.weight * drawn
        self._painted[size] = painted.to(targets.device)
        return self._painted[size]
