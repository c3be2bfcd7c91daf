"""A better initial noise: drawn, optimised, judged, and drawn anew where it was not good enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attnguide.attention.maps import AttentionMaps
from attnguide.guidance.base import Trials
from attnguide.guidance.noise_distribution import NoiseDistribution
from attnguide.prompt.targets import Targets


@dataclass(frozen=True, eq=False)
class NoiseJudgement:
    """What maps say about noise, one value per row.

    Attributes:
        loss: Differentiated. ``batch``.
        scores: To compare noises by; lower is better.
        succeeded: Whether noise is good enough as it is.
    """

    loss: Tensor
    scores: Sequence[float]
    succeeded: Sequence[bool]


@dataclass(frozen=True)
class NoiseSearch:
    """InitNO's search for noise (https://arxiv.org/abs/2404.04650), whatever it is judged by.

    In each round a row's noise is optimised until it succeeds or the passes are used up; a row without success begins the next
    round from fresh noise of its own seed, and after the last its best noise is optimised for longer.

    Args:
        rounds: Most rounds.
        iterations: Passes in each.
        last_iterations: Passes on the best noise if no round succeeds.
        learning_rate: See :class:`~attnguide.guidance.noise_distribution.NoiseDistribution`.
        kl_limit: Likewise.
        by_score_alone: Take the lowest score for the best, success or not, and optimise it again if it did not succeed.
    """

    rounds: int
    iterations: int
    last_iterations: int
    learning_rate: float
    kl_limit: float
    by_score_alone: bool = False

    def run(
        self,
        latents: Tensor,
        rows: Sequence[int],
        trials: Trials,
        judge: Callable[[AttentionMaps, Targets], NoiseJudgement],
    ) -> Tensor:
        """Latents with the noise of ``rows`` replaced; one row's does not depend on another's.

        Args:
            latents: Of all rows of the trials, ``batch channels height width``.
            rows: Whose noise may change.
            trials: Passes before the first step.
            judge: Of one conditional pass.
        """
        tried: dict[int, list[NoiseDistribution]] = {row: [] for row in rows}
        waiting = list(rows)
        for number in range(self.rounds):
            for row in waiting:
                tried[row].append(self._around(latents[row] if number == 0 else trials.noise(row, latents[row])))
            _descend({row: tried[row][-1] for row in waiting}, trials, judge, self.iterations)
            waiting = [row for row in waiting if not tried[row][-1].succeeded]
        best = {row: min(found, key=self._rank) for row, found in tried.items()}
        failed = [row for row, noise in best.items() if not noise.succeeded and self.last_iterations]
        again = {row: self._around(best[row].noise) for row in failed}
        _descend(again, trials, judge, self.last_iterations)
        chosen = {**best, **again}
        return torch.stack([chosen[row].sample() if row in chosen else latents[row] for row in range(len(latents))])

    def _around(self, noise: Tensor) -> NoiseDistribution:
        return NoiseDistribution(noise, self.learning_rate, self.kl_limit)

    def _rank(self, noise: NoiseDistribution) -> tuple[bool, float]:
        return (not noise.succeeded and not self.by_score_alone, noise.score)


def _descend(
    noises: dict[int, NoiseDistribution],
    trials: Trials,
    judge: Callable[[AttentionMaps, Targets], NoiseJudgement],
    iterations: int,
) -> None:
    """Optimise one noise of each row, together, until each succeeds or the passes are used up."""
    for _ in range(iterations):
        rows = [row for row, noise in noises.items() if not noise.succeeded]
        if not rows:
            return
        seen: list[NoiseJudgement] = []

        def loss(maps: AttentionMaps, targets: Targets, seen: list[NoiseJudgement] = seen) -> Tensor:
            seen.append(judge(maps, targets))
            return seen[0].loss

        gradients = trials.gradient(torch.stack([noises[row].sample() for row in rows]), rows, loss)
        for row, score, succeeded, gradient in zip(rows, seen[0].scores, seen[0].succeeded, gradients, strict=True):
            noises[row].score, noises[row].succeeded = score, succeeded
            if not succeeded:
                noises[row].move(gradient)
