"""TACA: scores of image queries with text keys are scaled up in the first steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attnguide.attention.edits import Edit
from attnguide.attention.sites import Site, SiteSelector
from attnguide.guidance.update import PerRow
from attnguide.injection.base import Injection, WindowEdit, finite
from attnguide.prompt.targets import Targets
from attnguide.schedules import Unit, Window
from attnguide.types import Branch, PassContext

_EVERY: tuple[Branch, ...] = ("uncond", "cond", "perturbed", "negative", "source_uncond", "source")


class Taca(Injection):
    """Temperature-adjusted cross-modal attention (https://arxiv.org/abs/2506.07986).

    In joint attention text competes with many more image positions in one softmax: scores of image queries with text keys are
    multiplied by ``gamma`` before it, at every site and every text position, padding too, in both halves of classifier-free
    guidance. Scores have signs: this sharpens attention to text instead of adding mass to it. All other scores are unchanged.
    In a network with cross-attention it is the inverse temperature of cross-attention.

    The published code does the same for pictures of 1024 pixels, and nothing on SD3.5 at other sizes; its LoRA weights are not
    included.

    Args:
        gamma: Factor on the scores at ``scale`` 1.
        start: First bound of the window, in ``unit``.
        stop: Second bound of the window, in ``unit`` (the first 3 of 30 steps).
        unit: ``progress``, ``timestep`` (t / 1000) or ``sigma``.
        scale: Strength, one number or one per row: the factor is ``1 + scale (gamma - 1)``.

    Raises:
        ValueError: If a number is not finite.
    """

    name = "taca"
    needs_regions = None

    def __init__(
        self, *, gamma: float = 1.2, start: float = 0.0, stop: float = 0.1, unit: Unit = "progress", scale: PerRow = 1.0
    ) -> None:
        finite("gamma", gamma)
        finite("scale", scale)
        self.gamma, self.scale, self.window = gamma, scale, Window(start, stop, unit)

    def edits(self, targets: Targets) -> Sequence[Edit]:
        return [_Temperature(self, targets)] if self.gamma != 1 else []


class _Temperature(WindowEdit):
    """Gain of a :class:`Taca` for one batch of rows."""

    whole_text = True

    def __init__(self, method: Taca, targets: Targets) -> None:
        super().__init__(SiteSelector("cross"), ("gain",), method.window, method.scale, len(targets.regions))
        self.more = method.gamma - 1

    def gain(self, site: Site, context: PassContext, device: torch.device) -> Tensor | None:
        return 1 + self.more * self.gate(torch.empty(0, device=device), context, _EVERY)
