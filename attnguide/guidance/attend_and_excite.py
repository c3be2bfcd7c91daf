"""Attend-and-Excite: every named word must be attended to somewhere."""

from __future__ import annotations

from typing import Literal

import torch

from attnguide.attention.maps import AttentionMaps
from attnguide.guidance.base import Guidance, LossOutput, cross_sites
from attnguide.guidance.quirks import repeats_slips
from attnguide.guidance.update import PerRow, Thresholds, Update, refinements_at
from attnguide.guidance.word_maps import blur_deviation, word_maps
from attnguide.losses.presence import peak_absence
from attnguide.prompt.targets import Targets
from attnguide.schedules import Window, sqrt_linear
from attnguide.types import Step

THRESHOLDS: Thresholds = {0.0: 0.05, 0.2: 0.5, 0.4: 0.8}
"""Progress -> peak of every word's map to reach by that step."""


class AttendAndExcite(Guidance):
    """Raises the peak of the least attended word's map (https://arxiv.org/abs/2301.13826).

    ``L = max_s w_s (1 - max_p (G * A_s)(p))`` over the regions' phrases, with ``A`` the token softmax of the mean map and ``w``
    the region's ``weight``, 1 in the paper; where maps of several sizes are read, each word's terms are averaged over them.
    Thresholds are compared with unweighted peaks, of all words whose weight is not 0.

    Args:
        step_size: Peak of the step size; it falls as ``sqrt(linspace(1, 0.5))``.
        stop: Progress at which guidance ends.
        thresholds: Progress -> peak of every word's map to reach there by repeated updates; empty for none; one table, or one
            per row.
        max_refinements: Most updates at each of those points.
        blur_std: Standard deviation of the 3x3 blur in cells; 0 for none.
        until_end: Let only words compete in the token softmax, not the end token and padding (the paper's choice for SD 2.x).
        levels: Map levels to read; the model's guidance level when ``None``.
        scale: Factor on the step size, one number or one per row.
        quirks: ``"reference"`` repeats two slips of the published code: the blur's effective deviation is ``sqrt(2)`` times
            the stated one, which leaves .33 instead of .62 of a lone cell, so that the same thresholds ask for more; and
            refinement goes on for one update after the threshold is met.
    """

    name = "attend_and_excite"

    def __init__(
        self,
        *,
        step_size: float = 20.0,
        stop: float = 0.5,
        thresholds: Thresholds = THRESHOLDS,
        max_refinements: int = 20,
        blur_std: float = 0.5,
        until_end: bool = False,
        levels: tuple[int, ...] | None = None,
        scale: PerRow = 1.0,
        quirks: Literal["none", "reference"] = "none",
    ) -> None:
        reference = repeats_slips(quirks)
        refinements = refinements_at(thresholds, lambda peak: 1 - peak, max_refinements, reference)
        super().__init__(
            sites=cross_sites(levels),
            window=Window(0.0, stop),
            update=Update(sqrt_linear(step_size), scale, refinements=refinements),
        )
        self.blur_std = blur_deviation(blur_std, reference)
        self.until_end = until_end

    def loss(self, maps: AttentionMaps, targets: Targets, step: Step) -> LossOutput:
        sizes = [
            peak_absence(word_maps(maps, targets, blur_std=self.blur_std, until_end=self.until_end, height=height, width=width))
            for height, width in maps.resolutions
        ]
        absent = torch.stack(sizes).mean(0).masked_fill(~targets.counted, 0.0)
        return LossOutput((absent * targets.weights).amax(1), absent.amax(1).detach())
