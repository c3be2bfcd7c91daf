"""Self-Cross: the cells of one word must not attend to the cells of another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from attnguide.attention.maps import AttentionMaps, gaussian_smooth
from attnguide.attention.sites import Site, SiteSelector
from attnguide.guidance.base import Guidance, LossOutput, Trials
from attnguide.guidance.memory import StepMemory
from attnguide.guidance.noise_search import NoiseJudgement, NoiseSearch
from attnguide.guidance.per_row import EachRow
from attnguide.guidance.quirks import repeats_slips
from attnguide.guidance.update import PerRow, Refinement, Update
from attnguide.guidance.word_maps import blur_deviation, word_maps
from attnguide.losses.conflict import aggregated_self_maps, self_cross_overlap
from attnguide.losses.presence import mean_peak_absence
from attnguide.losses.stray import stray_peak
from attnguide.prompt.targets import Targets
from attnguide.schedules import Window, sqrt_linear
from attnguide.types import ExpectedCost, Step

_ABSENT = 0.5
"""Value of the first term (absence of the worst word) above which the self-cross terms are 0."""


@dataclass(frozen=True, eq=False)
class Terms:
    """Self-Cross's loss terms, one value per row.

    Attributes:
        cross: One minus the mean of the strongest cells of the worst word's map.
        own: Mean overlap, over pairs, of a word's map with another word's aggregated self-attention; 0 if ``cross`` > 1/2.
        before: That overlap between maps of this step and of the previous one, in both directions; 0 in a row's first step.
        clean: Sum over words of peaks outside the main blob.
    """

    cross: Tensor
    own: Tensor
    before: Tensor
    clean: Tensor


class SelfCross(Guidance):
    """Self-Cross guidance (https://arxiv.org/abs/2411.18936), for subjects that look alike.

    ``L = max_i (1 - mean of the strongest cells of C_i) + L_sc + 0.1 sum_i clean(C_i)``, with ``C_i`` the word's map as
    attend-and-excite reads it, and ``L_sc`` the mean over ordered pairs of words of
    :func:`~attnguide.losses.conflict.self_cross_overlap` between ``C_i`` and the aggregated self-attention map ``A_j``. From a
    row's second step on ``L_sc`` is added twice more, between the maps now and those of the last pass of the step before. It
    counts only once the first term is at most 1/2. A region's ``weight`` scales its word's part, and pairs of words count by
    the geometric mean of their weights.

    Self-attention is read at the sites whose cross-attention is read: the guidance level of a UNet, and in joint attention,
    where the square of image positions is the largest tensor of the pass, the blocks between ``depths`` of the network.

    Args:
        step_size: Peak of the step size; it falls as ``sqrt(linspace(1, 0.5))``.
        stop: Progress at which guidance ends.
        strongest: Number of cells of a word's map that are averaged; the paper's number is for a map of 64x64 cells.
        refine_at: Progress points at which updates are repeated (steps 4 and 10 of 28).
        max_refinements: Most updates at each point of ``refine_at``; 0 for none.
        cross_limit: Value of the first term at which refinement ends, if ``L_sc`` is at most ``own_limit``.
        own_limit: Value of ``L_sc`` at which refinement ends, if the first term is at most ``cross_limit``.
        rounds: Most rounds of InitNO's search for a better initial noise (:mod:`attnguide.guidance.noise_search`) before the
            first step; 0, the default, leaves the noise as it is, and 5 is what the published code can do.
        iterations: Guide passes in each round, and on the best noise if no round succeeds.
        blur_std: Standard deviation of the 3x3 blur in cells; 0 for none.
        until_end: Let only words compete in the token softmax, not the end token and padding.
        levels: Map level to read, of both kinds of attention, a single one; the model's guidance level when ``None``.
        depths: First and last depth of the blocks of a joint transformer that are read (blocks 5 to 12 of 24).
        scale: Factor on the step size, one number or one per row; 0 also leaves a row's noise as it is.
        quirks: ``"reference"`` repeats slips of the published code: a blur wider by ``sqrt(2)``, one refinement too many, a
            foreground and a blob that also take the cells at Otsu's threshold, and 0.0001 added to the sums that maps are
            divided by.

    Raises:
        ValueError: If an option is out of range.
    """

    name = "self_cross"
    needs_regions = "phrase"

    def __init__(
        self,
        *,
        step_size: float = 20.0,
        stop: float = 0.5,
        strongest: int = 16,
        refine_at: Sequence[float] = (1 / 7, 5 / 14),
        max_refinements: int = 20,
        cross_limit: float = 0.2,
        own_limit: float = 0.3,
        rounds: int = 0,
        iterations: int = 10,
        blur_std: float = 0.5,
        until_end: bool = False,
        levels: tuple[int, ...] | None = None,
        depths: tuple[float, float] = (0.2, 0.53),
        scale: PerRow = 1.0,
        quirks: Literal["none", "reference"] = "none",
    ) -> None:
        if strongest < 1:
            raise ValueError(f"strongest must be at least 1; got {strongest}.")
        if rounds < 0 or iterations < 0:
            raise ValueError(f"rounds and iterations must be at least 0; got {rounds} and {iterations}.")
        if levels is not None and len(levels) != 1:
            raise ValueError(f"levels must hold one level; got {levels}.")
        if len(depths) != 2 or not 0 <= depths[0] <= depths[1] <= 1:
            raise ValueError(f"depths must be two numbers, 0 <= first <= last <= 1; got {depths}.")
        self.reference = repeats_slips(quirks)
        refinement = Refinement(0.0, max_refinements, tuple(refine_at), self.reference) if max_refinements else None
        super().__init__(
            window=Window(0.0, stop),
            update=Update(sqrt_linear(step_size), scale, refinements=() if refinement is None else (refinement,)),
        )
        self.levels, self.depths = levels, depths
        self.optimise_at = 0.0 if rounds else None
        self.search = NoiseSearch(rounds, iterations, iterations, 0.01, 1e-3, by_score_alone=self.reference)
        self.strongest, self.cross_limit, self.own_limit = strongest, cross_limit, own_limit
        self.blur_std, self.until_end = blur_deviation(blur_std, self.reference), until_end
        self._memory = StepMemory()

    def usual_sites(self, level: int) -> SiteSelector:
        return SiteSelector(levels=self.levels or (level,), where=self._reads)

    def _reads(self, site: Site) -> bool:
        first, last = self.depths
        return site.queries is None or first <= site.depth <= last

    def start(self, targets: Targets) -> None:
        self._memory.clear()

    def loss(self, maps: AttentionMaps, targets: Targets, step: Step) -> LossOutput:
        terms = self.terms(maps, targets, step)
        missed = torch.maximum(terms.cross - self.cross_limit, terms.own - self.own_limit)
        return LossOutput(terms.cross + terms.own + terms.before + 0.1 * terms.clean, missed.detach())

    def terms(self, maps: AttentionMaps, targets: Targets, step: Step | None) -> Terms:
        """The loss terms; without a step no maps are stored, and ``before`` is 0."""
        cross, own = (maps.choose(SiteSelector(kind=kind)) for kind in ("cross", "self"))
        height, width = cross.resolutions[0]
        words = word_maps(cross, targets, blur_std=self.blur_std, until_end=self.until_end, height=height, width=width)
        seen = aggregated_self_maps(words, own.average(height, width).flatten(1, 2), self.reference)
        seen = gaussian_smooth(seen, self.blur_std) if self.blur_std > 0 else seen
        weights = targets.weights.to(words)
        absent = (mean_peak_absence(words, self.strongest) * weights).masked_fill(~targets.valid, 0.0).amax(1)
        present = (absent.detach() <= _ABSENT).to(words)
        stray = stray_peak(words, self.reference) * weights * targets.shares(targets.valid).to(words)
        before = torch.zeros_like(absent) if step is None else self._before(words, seen, targets, step)
        return Terms(absent, present * self._conflict(words, seen, targets), present * before, stray.sum(1))

    def _conflict(self, words: Tensor, seen: Tensor, targets: Targets) -> Tensor:
        """Mean overlap over ordered pairs of different words, each word once, ``batch``; 0 for a single word."""
        shares = targets.shares(targets.valid).to(words)
        others = (targets.tokens[:, :, None] != targets.tokens[:, None, :]).any(-1)
        pairs = shares[:, :, None] * shares[:, None, :] * others
        shared = self_cross_overlap(words, seen, 1e-4 if self.reference else 0.0) * targets.pair_weights.to(words)
        return (shared * pairs).sum((1, 2)) / pairs.sum((1, 2)).clamp_min(1e-12)

    def _before(self, words: Tensor, seen: Tensor, targets: Targets, step: Step) -> Tensor:
        """Overlap of this pass with the last pass of the previous step, in both directions, ``batch``."""
        both = torch.stack([words, seen], 1)
        counts = [len(regions) for regions in targets.regions]  # a pass of fewer rows may have a shorter regions axis
        recalled = self._memory.recall(targets.rows, step, [row[:, :n] for row, n in zip(both, counts, strict=True)])
        past = torch.zeros_like(both)
        for row, (memory, count) in enumerate(zip(recalled, counts, strict=True)):
            if memory.previous is not None:
                past[row, :, :count] = memory.previous
        known = torch.tensor([memory.previous is not None for memory in recalled], device=words.device)
        total = self._conflict(words, past[:, 1], targets) + self._conflict(past[:, 0], seen, targets)
        return torch.where(known, total, torch.zeros_like(total))

    def optimise(self, latents: Tensor, trials: Trials) -> Tensor:
        scales = EachRow(self.update.scale, "scale").at(trials.targets.rows, latents).tolist()
        return self.search.run(latents, [row for row, scale in enumerate(scales) if scale != 0], trials, self.judged)

    def trials_cost(self, steps: int, halves: int) -> ExpectedCost:
        if self.optimise_at is None:
            return ExpectedCost()
        most, least = (self.search.rounds + 1) * self.search.iterations, min(1, self.search.iterations)
        return ExpectedCost(least, least, most, most)

    def judged(self, maps: AttentionMaps, targets: Targets) -> NoiseJudgement:
        """Loss, score and success of every row's noise from the maps of one pass."""
        terms = self.terms(maps, targets, None)
        pairs = list(zip(terms.cross.tolist(), terms.own.tolist(), strict=True))
        return NoiseJudgement(
            terms.cross + terms.own + terms.clean,
            [cross + own for cross, own in pairs],
            [cross < self.cross_limit and own < self.own_limit for cross, own in pairs],
        )
