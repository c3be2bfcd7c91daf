"""SAGA: a distribution of latents at an intermediate step is optimised, and sampling continues from a draw of it."""

from __future__ import annotations

import torch
from torch import Tensor

from attnguide.attention.maps import AttentionMaps
from attnguide.guidance.base import Guidance, LossOutput, Trials, cross_sites
from attnguide.guidance.per_row import EachRow
from attnguide.guidance.update import PerRow, Update
from attnguide.guidance.word_maps import mean_overlap, word_maps
from attnguide.losses.presence import peak_absence
from attnguide.prompt.targets import Targets
from attnguide.schedules import Window, sqrt_linear
from attnguide.types import ExpectedCost, Step


class Saga(Guidance):
    """Signal-aligned latents ("Learning Signal-Aligned Distributions for Improved Text-to-Image Generation", AAAI 2026).

    At an intermediate step, ``z = a m + b eps`` with ``a^2 + b^2 = 1`` the step's shares of signal and noise: gradient descent
    moves ``m``, with fresh ``eps`` from the row's own seed in each iteration, and sampling goes on from a last draw. ``m``
    starts as the mean of every channel of the clean latents that the network predicts there, and its deviation from that mean
    is never larger than that of those clean latents, which would saturate the picture. The loss is half of
    attend-and-excite's and half of the mean overlap of pairs of words; a region's ``weight`` scales its word's part, and that
    of a pair by the geometric mean of the two.

    Implemented from the paper alone, as there is no published code. Chosen here, because the paper does not say: the step; the
    conditional prediction; deviations per channel. The paper's variant "+" goes on with attend-and-excite's updates, here on
    the same loss.

    Args:
        at: Progress at which the distribution is optimised.
        iterations: Iterations of the gradient descent.
        learning_rate: Learning rate of the gradient descent.
        step_size: Peak of the step size of later updates; it falls as ``sqrt(linspace(1, 0.5))``.
        stop: Progress at which later updates end; 0 for no updates.
        blur_std: Standard deviation of the 3x3 blur in cells; 0 for none.
        until_end: Let only words compete in the token softmax, not the end token and padding.
        levels: Map levels to read; the model's guidance level when ``None``.
        scale: Factor on learning rate and step size, one number or one per row; 0 leaves a row as it is.

    Raises:
        ValueError: If an option is out of range.
    """

    name = "saga"
    needs_regions = "phrase"

    def __init__(
        self,
        *,
        at: float = 0.2,
        iterations: int = 50,
        learning_rate: float = 20.0,
        step_size: float = 20.0,
        stop: float = 0.0,
        blur_std: float = 0.5,
        until_end: bool = False,
        levels: tuple[int, ...] | None = None,
        scale: PerRow = 1.0,
    ) -> None:
        if not 0 <= at < 1:
            raise ValueError(f"at must lie in [0, 1); got {at}.")
        if iterations < 0:
            raise ValueError(f"iterations must be at least 0; got {iterations}.")
        if not 0 <= learning_rate < float("inf"):
            raise ValueError(f"learning_rate must be at least 0; got {learning_rate}.")
        if 0 < stop <= at:
            raise ValueError(f"stop must be 0, for no updates afterwards, or above at; got {stop} with at {at}.")
        super().__init__(
            sites=cross_sites(levels),
            window=Window(min(at, stop), stop),
            update=Update(sqrt_linear(step_size), scale),
        )
        self.optimise_at = at if iterations else None
        self.iterations, self.learning_rate = iterations, learning_rate
        self.blur_std, self.until_end = blur_std, until_end

    def loss(self, maps: AttentionMaps, targets: Targets, step: Step) -> LossOutput:
        loss = self._loss(maps, targets)
        return LossOutput(loss, loss.detach())

    def _loss(self, maps: AttentionMaps, targets: Targets) -> Tensor:
        """Loss of each row, ``batch``."""
        sizes = []
        for height, width in maps.resolutions:
            words = word_maps(maps, targets, blur_std=self.blur_std, until_end=self.until_end, height=height, width=width)
            absent = (peak_absence(words) * targets.weights).masked_fill(~targets.valid, 0.0).amax(1)
            sizes.append((absent + mean_overlap(words, targets)) / 2)
        return torch.stack(sizes).mean(0)

    def optimise(self, latents: Tensor, trials: Trials) -> Tensor:
        scales = EachRow(self.update.scale, "scale").at(trials.targets.rows, latents)
        rows = [row for row, scale in enumerate(scales.tolist()) if scale != 0]
        if not rows:
            return latents
        chosen = latents[rows]
        signal, noise = trials.step.signal, trials.step.noise
        wide = torch.promote_types(latents.dtype, torch.float32)
        clean = trials.denoised(chosen, rows).to(wide)
        centre, spread = clean.mean((-2, -1), keepdim=True), clean.std((-2, -1), keepdim=True)
        means = centre.expand_as(clean)
        rates = self.learning_rate * scales[rows].view(-1, 1, 1, 1)

        def draw() -> Tensor:
            fresh = torch.stack([trials.noise(row, latents[row]) for row in rows])
            return (signal * means + noise * fresh).to(latents.dtype)

        for _ in range(self.iterations):
            gradient = trials.gradient(draw(), rows, self._loss).to(wide)
            means = means - rates * signal * gradient
            deviation = means - centre
            means = centre + deviation * (spread / deviation.std((-2, -1), keepdim=True).clamp_min(1e-12)).clamp_max(1.0)
        found = latents.clone()
        found[rows] = draw()
        return found

    def trials_cost(self, steps: int, halves: int) -> ExpectedCost:
        count = 0 if self.optimise_at is None else self.iterations
        return ExpectedCost(count + (count > 0), count, count + (count > 0), count)
