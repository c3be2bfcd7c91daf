"""Search for a better initial noise: optimised in rounds, each from a new draw where the last was not good enough."""

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
    """Evaluation of noise by attention maps, one value per row.

    Attributes:
        loss: Loss to differentiate, ``batch``.
        scores: Score by which noises are ranked; lower is better.
        succeeded: Whether the noise is good enough.
    """

    loss: Tensor
    scores: Sequence[float]
    succeeded: Sequence[bool]


@dataclass(frozen=True)
class NoiseSearch:
    """InitNO's search for noise (https://arxiv.org/abs/2404.04650), for any judgement.

    In each round a row's noise is optimised until it succeeds or the passes are used up; a row without success begins the next
    round from fresh noise of its own seed, and after the last its best noise is optimised for longer.

    Args:
        rounds: Most rounds.
        iterations: Guide passes in each round.
        last_iterations: Guide passes on the best noise if no round succeeds.
        learning_rate: See :class:`~attnguide.guidance.noise_distribution.NoiseDistribution`.
        kl_limit: See :class:`~attnguide.guidance.noise_distribution.NoiseDistribution`.
        by_score_alone: Choose the noise with the lowest score, even over one that succeeded, and optimise it again if it did
            not succeed.
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
        """Latents with the noise of ``rows`` replaced, each independent of other rows.

        Args:
            latents: Initial latents of all rows of the trials, ``batch channels height width``.
            rows: Rows whose noise may change.
            trials: Network passes before the first step.
            judge: Evaluates the maps of one conditional pass.
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
    """Optimise one noise per row, in common passes, until each succeeds or ``iterations`` passes were made."""
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
