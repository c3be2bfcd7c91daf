"""Best of k, the baseline for every method: several seeds, the best picture kept, by a judge or by the network itself."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from operator import add
from statistics import fmean
from typing import Any

from attnguide.engine.observer import Observer, Observers
from attnguide.methods import baseline_of, build_method
from attnguide.sampling.contrast import Contrast, require_nouns
from attnguide.sampling.denoising import Denoising, nearest_steps
from attnguide.types import Cost, Sample, SampleResult, Step

Run = Callable[[Sequence[Sample], Observer], list[SampleResult]]
"""Samples one batch."""

ATTENTION, DENOISING = "attention", "denoising"
BOTH = f"{ATTENTION}+{DENOISING}"
"""Judges that need no network of their own: the contrast of the nouns' attention, the error of denoising the picture, both."""

DEFAULT_JUDGE = "attnguide.metrics.scoring:shapes_scores"
"""Judge that knows the world of coloured shapes."""

_STRIDE = 1_000_003
"""Distance between a row's seeds, so that rows with neighbouring seeds do not repeat each other's pictures."""

Try = tuple[float | None, SampleResult]
"""Score and result of one seed; ``None`` where the judge has no score."""


class BestOfK:
    """Samples every row under ``k`` seeds and keeps the picture with the highest score; the first among equals.

    Each try is made with all other methods of the row. Compare at equal compute: a guidance costs as much as ``k`` plain
    pictures if it makes as many network passes.

    Args:
        k: Tries per row; their seeds are the row's own plus multiples of a large prime.
        judge: ``module:function``, from a :class:`~attnguide.types.SampleResult` to scores by name, higher is better, whose
            mean counts; the default knows the world of coloured shapes. Or one that any model brings along: ``denoising``
            keeps the picture that the network denoises best when it is noised again a little, for three forwards a picture
            (:class:`~attnguide.sampling.denoising.Denoising`); ``attention`` keeps the one whose least attended noun has the
            highest peak over its mean in the last pass (:class:`~attnguide.sampling.contrast.Contrast`); with
            ``attention+denoising`` the sum of both logs counts.

    Raises:
        ValueError: If ``k`` is below 1 or the judge does not exist.
    """

    name = "best_of_k"
    needs_regions: str | None = None

    def __init__(self, *, k: int = 2, judge: str = DEFAULT_JUDGE) -> None:
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ValueError(f"k must be a whole number of at least 1; got {k}.")
        self.k, self.judge = k, judge
        self._tried = _OWN.get(judge) or _by_function(_function(judge))

    def check(self, sample: Sample, steps: Sequence[Step]) -> None:
        """Refuse a row that the judge cannot score.

        Args:
            sample: The row.
            steps: Evaluations of its schedule.

        Raises:
            ValueError: If attention decides and the prompt has no noun, or denoising and no evaluation has noise and signal.
        """
        if self.judge in (ATTENTION, BOTH):
            require_nouns(sample)
        if self.judge in (DENOISING, BOTH):
            nearest_steps(steps)

    def sample(self, run: Run, samples: Sequence[Sample], observer: Observer) -> list[SampleResult]:
        """Make all tries and keep the best of each row.

        The observer does not see the tries. For it, the kept seeds are sampled once more; that is not counted in the cost.

        Args:
            run: Samples one batch.
            samples: Rows that share a batch.
            observer: Observer of the kept pictures only.

        Returns:
            One result per row, with the row's id, the kept seed, and the cost of all tries; without a picture, and with the
            reason as its status, where the judge gives none of a row's pictures a score.
        """
        seeds = [[replace(sample, seed=sample.seed + index * _STRIDE) for sample in samples] for index in range(self.k)]
        tries = list(zip(*(self._tried(run, rows) for rows in seeds), strict=True))
        best = [max(row, key=_rank) for row in tries]
        costs = {
            result.sample.id: reduce(add, (one.cost for _, one in row)) for (_, result), row in zip(best, tries, strict=True)
        }
        unjudged = {result.sample.id for score, result in best if score is None and result.image is not None}
        kept = [result for _, result in best if result.sample.id not in unjudged]
        lost = [self._unjudged(result, costs[result.sample.id]) for _, result in best if result.sample.id in unjudged]
        if type(observer) is not Observer and kept:
            kept = run([result.sample for result in kept], _Counting(observer, costs))
        if lost:
            observer.on_rows_given_up(lost)
        found = {result.sample.id: result for result in [*(replace(one, cost=costs[one.sample.id]) for one in kept), *lost]}
        return [found[sample.id] for sample in samples]

    def _unjudged(self, result: SampleResult, cost: Cost) -> SampleResult:
        why = f"{self.name}: judge {self.judge!r} has no score for the prompt {result.sample.prompt!r}"
        return replace(result, image=None, latents=None, cost=cost, status=why)


def _by_function(judge: Callable[[SampleResult], Mapping[str, float]]) -> Callable[[Run, Sequence[Sample]], list[Try]]:
    """Pictures of one seed a row, with the mean of a function's scores."""

    def tried(run: Run, rows: Sequence[Sample]) -> list[Try]:
        results = run(rows, Observer())
        found = [{} if result.image is None else judge(result) for result in results]
        return [(fmean(own.values()) if own else None, result) for own, result in zip(found, results, strict=True)]

    return tried


def _by_contrast(run: Run, rows: Sequence[Sample]) -> list[Try]:
    """Pictures of one seed a row, with the contrast of their nouns' attention."""
    watch = Contrast()
    results = run(rows, watch)
    scores: Sequence[float | None] = watch.scores or [None] * len(results)
    return list(zip(scores, results, strict=True))


def _by_denoising(run: Run, rows: Sequence[Sample]) -> list[Try]:
    """Pictures of one seed a row, with how well the network denoises them; that counts as part of their cost."""
    watch = Denoising()
    return list(zip(*watch.scored(run(rows, watch)), strict=True))


def _by_both(run: Run, rows: Sequence[Sample]) -> list[Try]:
    """Pictures of one seed a row, with log contrast less the log error of denoising them."""
    contrast, denoising = Contrast(), Denoising()
    scores, results = denoising.scored(run(rows, Observers([contrast, denoising])))
    clear: Sequence[float | None] = contrast.scores or [None] * len(scores)
    pairs = zip(clear, scores, strict=True)
    both = [None if first is None or second is None else math.log(first) + second for first, second in pairs]
    return list(zip(both, results, strict=True))


_OWN: dict[str, Callable[[Run, Sequence[Sample]], list[Try]]] = {
    ATTENTION: _by_contrast,
    DENOISING: _by_denoising,
    BOTH: _by_both,
}
"""How pictures are tried and scored, by the name of a judge that any model brings along."""


def _rank(one: Try) -> tuple[bool, bool, float]:
    """Sort key of a try: a picture before none, a score before none, then the score."""
    score, result = one
    return result.image is not None, score is not None, score or 0.0


def _function(judge: str) -> Callable[[SampleResult], Mapping[str, float]]:
    """The function that ``module:function`` names.

    Raises:
        ValueError: If it does not exist.
    """
    module, _, name = judge.partition(":")
    try:
        found: Callable[[SampleResult], Mapping[str, float]] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"judge must be {DEFAULT_JUDGE} (the default), {', '.join(_OWN)}, or module:function of another that exists; "
            f"got {judge!r} ({error})."
        ) from error
    return found


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
