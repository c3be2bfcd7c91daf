"""FOCUS: words of one subject attend to the same place, subjects to different ones, by control of the prediction."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from attnguide.attention.maps import AttentionMaps, gaussian_smooth
from attnguide.attention.sites import SiteSelector
from attnguide.guidance.base import Guidance, LossOutput, cross_sites
from attnguide.guidance.quirks import repeats_slips
from attnguide.guidance.update import PerRow, Update
from attnguide.losses.divergence import jensen_shannon_of_groups
from attnguide.prompt.targets import Targets
from attnguide.schedules import MOST_SIGMA, Schedule, Window
from attnguide.types import Step

_MARGIN = 1e-3
"""Offset that keeps the diffusion coefficient of the memoryless schedule finite at pure noise."""


class Focus(Guidance):
    """Optimal control of the prediction (https://arxiv.org/abs/2510.02315).

    The cost of a row is ``(mean_s w_s JS(tokens of s) + w (1 - JS(subjects))) / 2``, ``JS`` as in
    :func:`~attnguide.losses.divergence.jensen_shannon_of_groups`. The first term makes the tokens of each region that has
    several attend to one place; the second makes regions, each by the mean of its tokens' maps, attend to different places,
    and is 0 for a single region. Maps are averaged over heads and sites and smoothed (3x3). A region's ``weight`` is ``w_s``,
    and ``w`` the mean, over pairs of regions, of the geometric mean of their weights; regions of weight 0 are left out, and
    regions of the same word count once.

    With ``t`` the share of signal (1 - sigma in flow matching) the velocity ``v = noise - data`` becomes
    ``v + step_size (1 - t) s(t) dC/dx`` with ``s(t) = 2 (1 - t + 0.001) / (t + 0.001)``. The sign descends the cost, as the
    sampler walks against ``v``. Latents of models that are not of flow matching are scaled to ``signal + noise = 1`` for this.

    The factor grows steeply towards pure noise, 2002 in the first of the published code's 28 steps and 143 in the second, so
    that the first gradient would outweigh all others: it is limited to ``most``.

    Args:
        step_size: Factor on the control; 1 to 5 in the paper.
        start: Progress at which control begins.
        stop: Progress at which control ends.
        most: Limit of the factor ``(1 - t) s(t)`` on the gradient, before ``step_size``.
        blur_std: Standard deviation of the 3x3 blur in cells; 0 for none.
        power: Exponent of the maps before the divergence.
        levels: Map levels to read; the model's guidance level when ``None``, without FLUX's single-stream blocks.
        fused: Take the gradient from the conditional denoising pass itself instead of a guide pass.
        scale: Factor on the step size, one number or one per row.
        quirks: ``"reference"`` leaves the factor without a limit. The published code for FLUX also subtracts where it should
            add, and climbs its cost; that is not repeated.

    Raises:
        ValueError: If an option is out of range.
    """

    name = "focus"
    needs_regions = "phrase"

    def __init__(
        self,
        *,
        step_size: float = 1.0,
        start: float = 0.0,
        stop: float = 1.0,
        most: float = 100.0,
        blur_std: float = 1.0,
        power: float = 3.0,
        levels: tuple[int, ...] | None = None,
        fused: bool = False,
        scale: PerRow = 1.0,
        quirks: Literal["none", "reference"] = "none",
    ) -> None:
        if not (most > 0 and power > 0):
            raise ValueError(f"most and power must be above 0; got {most} and {power}.")
        limit = math.inf if repeats_slips(quirks) else most
        super().__init__(
            sites=cross_sites(levels),
            window=Window(start, stop),
            update=Update(memoryless_control(step_size, limit), scale, space="noise", fused=fused),
        )
        self.blur_std, self.power = blur_std, power

    def usual_sites(self, level: int) -> SiteSelector:
        return SiteSelector(kind="cross", levels=(level,), where=lambda site: not site.name.startswith("single_"))

    def loss(self, maps: AttentionMaps, targets: Targets, step: Step) -> LossOutput:
        height, width = maps.resolutions[0]
        words = maps.resized_average(height, width).movedim(-1, 1)
        words = gaussian_smooth(words, self.blur_std) if self.blur_std > 0 else words
        loss = (self._coherence(words, targets) + self._separation(words, targets)) / 2
        return LossOutput(loss, loss.detach())

    def _coherence(self, words: Tensor, targets: Targets) -> Tensor:
        """Mean divergence within the words of one subject, ``batch``, from ``batch tokens height width``."""
        members = (targets.tokens > 0).to(words)
        several = targets.shares(targets.counted & (members.sum(-1) > 1)).to(words)
        apart = jensen_shannon_of_groups(words, members, self.power)
        return (apart * several * targets.weights.to(words)).sum(1) / several.sum(1).clamp_min(1e-12)

    def _separation(self, words: Tensor, targets: Targets) -> Tensor:
        """One minus the divergence of the subjects from one another, ``batch``; 0 for a single subject."""
        subjects = torch.einsum("bthw,brt->brhw", words, targets.tokens.to(words))
        shares = targets.shares(targets.counted).to(words)
        apart = jensen_shannon_of_groups(subjects, shares[:, None], self.power)[:, 0]
        pairs = shares[:, :, None] * shares[:, None, :] * _different(targets)
        weight = (pairs * targets.pair_weights.to(words)).sum((1, 2)) / pairs.sum((1, 2)).clamp_min(1e-12)
        return torch.where(shares.sum(1) > 1.5, weight * (1 - apart), torch.zeros_like(apart))


def _different(targets: Targets) -> Tensor:
    """Mask of pairs of regions with different words, bool, ``batch regions regions``."""
    return (targets.tokens[:, :, None] != targets.tokens[:, None, :]).any(-1)


def memoryless_control(value: float, most: float) -> Schedule:
    """Step size for the noise prediction that adds ``value (1 - t) s(t)`` times the gradient to the velocity.

    See :class:`Focus`. A change ``d`` of the predicted noise changes the velocity by ``d / t``, and the gradient is that of
    latents with ``signal`` in the place of ``t``: ``d = signal (1 - t) s(t) dC/dx``.

    Args:
        value: Factor.
        most: Limit of ``(1 - t) s(t)``.

    Raises:
        ValueError: If ``value`` is not finite.
    """
    if not math.isfinite(value):
        raise ValueError(f"step size must be finite; got {value}.")

    def at(step: Step) -> float:
        time = step.signal / (step.signal + step.noise)
        weight = (1 - time) * 2 * (1 - time + _MARGIN) / (time + _MARGIN)
        # A flow scheduler divides a shift of the noise by a signal that it takes to be at least this.
        signal = max(step.signal, 1 / MOST_SIGMA)
        return value * min(weight, most) * signal / max(1 - step.alpha_bar, 1e-24) ** 0.5

    return at
