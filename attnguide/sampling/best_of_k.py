"""Best of k, the baseline for every method: several seeds, the best picture kept."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from attnguide.engine.observer import Observer, Observers
from attnguide.methods import baseline_of, build_method
from attnguide.types import Cost, Sample, SampleResult

Run = Callable[[Sequence[Sample], Observer], list[SampleResult]]
"""Samples one batch."""

_STRIDE = 1_000_003
"""Distance between a row's seeds, so that rows with neighbouring seeds do not repeat each other's pictures."""


class BestOfK:
    """Samples every row under ``k`` seeds and keeps the picture with the highest score; the first among equals.

    Each try is made with all other methods of the row. Compare at equal compute: a guidance costs as much as ``k`` plain
    pictures if it makes as many network passes.

    Args:
        k: Tries per row; their seeds are the row's own plus multiples of a large prime.
        judge: ``module:function``, from a :class:`~attnguide.types.SampleResult` to scores by name, higher is better, whose
            mean counts; the default knows the world of coloured shapes.

    Raises:
        ValueError: If ``k`` is below 1 or the judge does not exist; while running, if it gives a picture no score.
    """

    name = "best_of_k"
    needs_regions: str | None = None

    def __init__(self, *, k: int = 2, judge: str = "attnguide.metrics.scoring:shapes_scores") -> None:
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ValueError(f"k must be a whole number of at least 1; got {k}.")
        module, _, function = judge.partition(":")
        try:
            self._judge: Callable[[SampleResult], Mapping[str, float]] = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f"judge must be module:function of something that exists; got {judge!r} ({error}).") from error
        self.k, self.judge = k, judge

    def sample(self, run: Run, samples: Sequence[Sample], observer: Observer) -> list[SampleResult]:
        """Make all tries and keep the best of each row.

        Tries are not observed. For an observer, the kept seeds are sampled once more; that is not counted in the cost.

        Args:
            run: Samples one batch.
            samples: Rows that share a batch.
            observer: Observer of the kept pictures only.

        Returns:
            One result per row, with the row's id, the kept seed, and the cost of all tries.
        """
        seeds = [[replace(sample, seed=sample.seed + index * _STRIDE) for sample in samples] for index in range(self.k)]
        tries = list(zip(*(run(rows, Observer()) for rows in seeds), strict=True))
        kept = [max(row, key=self.score) for row in tries]
        costs = {result.sample.id: _sum([one.cost for one in row]) for result, row in zip(kept, tries, strict=True)}
        if type(observer) is not Observer:
            kept = run([result.sample for result in kept], _Counting(observer, costs))
        return [replace(result, cost=costs[result.sample.id]) for result in kept]

    def score(self, result: SampleResult) -> float:
        """Mean of the judge's scores; minus infinity for a row that stopped.

        Raises:
            ValueError: If the judge gives a picture no score.
        """
        if result.image is None:
            return float("-inf")
        scores = self._judge(result)
        if not scores:
            raise ValueError(f"{self.name}: judge {self.judge!r} has no score for the prompt {result.sample.prompt!r}.")
        return fmean(scores.values())


def build_baseline(sample: Sample) -> BestOfK | None:
    """The row's baseline; ``None`` if it names none.

    Raises:
        ValueError: If the row names several baselines, or an option is out of range.
    """
    named = baseline_of(sample)
    built: Any = build_method(named.name, named.options) if named else None
    return built


class _Counting(Observers):
    """Forwards to an observer, with the cost of all tries in the results."""

    def __init__(self, observer: Observer, costs: Mapping[str, Cost]) -> None:
        super().__init__([observer])
        self._costs = costs

    def on_sample_end(self, results: Sequence[SampleResult]) -> None:
        super().on_sample_end([replace(result, cost=self._costs[result.sample.id]) for result in results])


def _sum(costs: Sequence[Cost]) -> Cost:
    return Cost(
        sum(cost.unet_forwards for cost in costs),
        sum(cost.unet_backwards for cost in costs),
        sum(cost.seconds for cost in costs),
        max(cost.peak_memory_mb for cost in costs),
    )
