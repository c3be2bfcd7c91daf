"""InitNO: a better initial noise first, then attend-and-excite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from attnguide.attention.maps import AttentionMaps, gaussian_smooth
from attnguide.attention.sites import SiteSelector
from attnguide.guidance.base import Guidance, LossOutput, Trials
from attnguide.guidance.noise_search import NoiseJudgement, NoiseSearch
from attnguide.guidance.per_row import EachRow
from attnguide.guidance.quirks import repeats_slips
from attnguide.guidance.update import PerRow, Refinement, Update
from attnguide.guidance.word_maps import blur_deviation, mean_overlap, word_maps
from attnguide.losses.presence import peak_absence
from attnguide.losses.stray import stray_peak
from attnguide.prompt.targets import Targets
from attnguide.schedules import Window, sqrt_linear
from attnguide.types import ExpectedCost, Step

_KEPT = 0.9
"""Weight of past maps in the running mean."""


@dataclass(frozen=True, eq=False)
class Terms:
    """InitNO's loss terms, one value per row.

    Attributes:
        cross: One minus the peak of the worst word's map.
        own: Mean overlap, over pairs of words, of the self-attention maps of the words' peak cells.
        clean: Sum over words of peaks outside the main blob.
        words: The words' maps, ``batch regions height width``.
    """

    cross: Tensor
    own: Tensor
    clean: Tensor
    words: Tensor


class InitNO(Guidance):
    """Optimises the initial noise, then guides the first half of sampling (https://arxiv.org/abs/2404.04650).

    The noise is ``eps exp(v / 2) + m``; Adam moves ``v`` and ``m``, which start at 0, on ``cross + own [cross <= 1/2] + clean``
    of one conditional pass at the first step, and further while the mean divergence of N(m, exp v) from N(0, 1) exceeds
    ``kl_limit``. A round ends when ``cross`` and ``own`` are below their limits; otherwise the next begins from fresh noise of
    the row's own seed, and after the last the best noise is optimised for longer: the one with the smallest ``cross + own``,
    where 1 stands for ``own`` if ``cross > 1/2`` (a word without a peak) or if ``own`` is 0, as in the published code. Then
    come attend-and-excite's updates on
    ``cross``, with refinements at progress 0.2 and 0.4 on ``cross + own + 0.1 clean + 0.1 align``, ``align`` the distance of
    the maps from their running mean. A region's ``weight`` scales its word's part in each of them, so also in what the limits
    are compared with; pairs of words count by the geometric mean of their weights.

    Args:
        step_size: Peak of the step size after the first step; it falls as ``sqrt(linspace(1, 0.5))``.
        stop: Progress at which guidance ends.
        rounds: Most rounds; 0 leaves the noise as it is.
        iterations: Guide passes in each round.
        last_iterations: Guide passes on the best noise if no round succeeds.
        learning_rate: Learning rate of Adam.
        cross_limit: Value of ``cross`` below which a round succeeds and a refinement ends.
        own_limit: Value of ``own`` below which a round succeeds and a refinement ends.
        kl_limit: Mean divergence from N(0, 1) to which the noise distribution is pulled back.
        max_refinements: Most updates at progress 0.2 and at 0.4; 0 for none.
        blur_std: Standard deviation of the 3x3 blur in cells; 0 for none.
        until_end: Let only words compete in the token softmax, not the end token and padding.
        levels: Map level to read, of both kinds of attention, a single one; the model's guidance level when ``None``.
        scale: Factor on the step size, one number or one per row; 0 also leaves a row's noise as it is.
        quirks: ``"reference"`` repeats slips of the published code: a blur wider by ``sqrt(2)``, one refinement too many, a
            main blob that also takes the cells at Otsu's threshold, and noise that met both limits is optimised again when an
            earlier one had a smaller sum of the two.

    Raises:
        ValueError: If an option is out of range.
    """

    name = "initno"
    needs_regions = "phrase"

    def __init__(
        self,
        *,
        step_size: float = 20.0,
        stop: float = 0.5,
        rounds: int = 5,
        iterations: int = 10,
        last_iterations: int = 50,
        learning_rate: float = 0.01,
        cross_limit: float = 0.2,
        own_limit: float = 0.3,
        kl_limit: float = 1e-3,
        max_refinements: int = 20,
        blur_std: float = 0.5,
        until_end: bool = False,
        levels: tuple[int, ...] | None = None,
        scale: PerRow = 1.0,
        quirks: Literal["none", "reference"] = "none",
    ) -> None:
        for name, number in (("rounds", rounds), ("iterations", iterations), ("last_iterations", last_iterations)):
            if number < 0:
                raise ValueError(f"{name} must be at least 0; got {number}.")
        if not (learning_rate > 0 and kl_limit > 0):
            raise ValueError(f"learning_rate and kl_limit must be above 0; got {learning_rate} and {kl_limit}.")
        if levels is not None and len(levels) != 1:
            raise ValueError(f"levels must hold one level; got {levels}.")
        self.reference = repeats_slips(quirks)
        refinements = (Refinement(0.0, max_refinements, (0.2, 0.4), self.reference),) if max_refinements else ()
        super().__init__(
            sites=None if levels is None else SiteSelector(levels=tuple(levels)),
            window=Window(0.0, stop),
            update=Update(sqrt_linear(step_size), scale, refinements=refinements),
        )
        self.optimise_at = 0.0 if rounds else None
        self.search = NoiseSearch(rounds, iterations, last_iterations, learning_rate, kl_limit, by_score_alone=self.reference)
        self.cross_limit, self.own_limit = cross_limit, own_limit
        self.blur_std, self.until_end = blur_deviation(blur_std, self.reference), until_end
        self._seen: dict[int, Tensor] = {}

    def usual_sites(self, level: int) -> SiteSelector:
        return SiteSelector(levels=(level,))

    def start(self, targets: Targets) -> None:
        self._seen.clear()

    def loss(self, maps: AttentionMaps, targets: Targets, step: Step) -> LossOutput:
        terms = self.terms(maps, targets)
        refining = terms.cross + terms.own + 0.1 * terms.clean + 0.1 * self._drift(terms.words, targets)
        missed = torch.maximum(terms.cross - self.cross_limit, terms.own - self.own_limit)
        return LossOutput(terms.cross, missed.detach(), refining=refining)

    def terms(self, maps: AttentionMaps, targets: Targets) -> Terms:
        """The loss terms of noise optimisation and guidance."""
        cross, own = (maps.choose(SiteSelector(kind=kind)) for kind in ("cross", "self"))
        height, width = cross.resolutions[0]
        words = word_maps(cross, targets, blur_std=self.blur_std, until_end=self.until_end, height=height, width=width)
        shares = targets.shares(targets.valid).to(words)
        peaks = words.detach().flatten(2).argmax(-1)
        seen = own.average(height, width).flatten(1, 2)
        around = seen.gather(1, peaks[..., None].expand(-1, -1, seen.shape[-1])).unflatten(-1, (height, width))
        around = gaussian_smooth(around, self.blur_std) if self.blur_std > 0 else around
        return Terms(
            (peak_absence(words) * targets.weights).masked_fill(~targets.valid, 0.0).amax(1),
            mean_overlap(around, targets),
            (stray_peak(words, at_threshold=self.reference) * shares * targets.weights).sum(1),
            words,
        )

    def _drift(self, words: Tensor, targets: Targets) -> Tensor:
        """Distance of each row's maps from their running mean, which this pass joins; ``batch``."""
        kept = []
        for row, new in zip(targets.rows, words.detach(), strict=True):
            mean, past = new.clone(), self._seen.get(row)
            if past is not None:  # a first map's mean is itself, exactly: rounding would give a gradient
                shared = min(len(past), len(new))  # passes of fewer rows have a shorter regions axis; beyond it is padding
                mean[:shared] = _KEPT * past[:shared] + (1 - _KEPT) * new[:shared]
            self._seen[row] = mean
            kept.append(mean)
        weights = targets.shares(targets.valid) * targets.weights
        return ((words - torch.stack(kept)).abs().mean((-2, -1)) * weights).sum(1)

    def optimise(self, latents: Tensor, trials: Trials) -> Tensor:
        scales = EachRow(self.update.scale, "scale").at(trials.targets.rows, latents).tolist()
        return self.search.run(latents, [row for row, scale in enumerate(scales) if scale != 0], trials, self.judged)

    def trials_cost(self, steps: int, halves: int) -> ExpectedCost:
        if self.optimise_at is None:
            return ExpectedCost()
        most = self.search.rounds * self.search.iterations + self.search.last_iterations
        least = min(1, self.search.iterations)
        return ExpectedCost(least, least, most, most)

    def judged(self, maps: AttentionMaps, targets: Targets) -> NoiseJudgement:
        """Loss, score and success of every row's noise from the maps of one pass."""
        terms = self.terms(maps, targets)
        pairs = list(zip(terms.cross.tolist(), terms.own.tolist(), strict=True))
        return NoiseJudgement(
            self.opening(terms),
            [cross + self.compared(cross, own) for cross, own in pairs],
            [cross < self.cross_limit and own < self.own_limit for cross, own in pairs],
        )

    @staticmethod
    def compared(cross: float, own: float) -> float:
        """``own`` in the score that ranks rounds: 1 where it is 0 or was left out of the loss."""
        counted = own if cross <= 0.5 else 0.0
        return counted if counted > 1e-6 else counted + 1.0

    @staticmethod
    def opening(terms: Terms) -> Tensor:
        """Loss of the initial noise, ``batch``."""
        return terms.cross + torch.where(terms.cross > 0.5, 0.0, terms.own) + terms.clean
