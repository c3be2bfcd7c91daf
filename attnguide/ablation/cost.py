"""What rows will cost, read from their methods before any model is loaded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields

from attnguide.guidance.base import Guidance
from attnguide.injection.base import Injection
from attnguide.methods import build_methods, method_info, method_options
from attnguide.sampling.replay import replay_forwards
from attnguide.sampling.source_maps import expected_forwards
from attnguide.types import Sample, Step

_BETA_START, _BETA_END, _TRAINED = 0.00085, 0.012, 1000
"""Noise schedule of Stable Diffusion, to tell which steps a window in sigma or timesteps includes."""


@dataclass(frozen=True)
class Expected:
    """Network passes of a row, as the record will count them.

    Attributes:
        forwards: Evaluations for one branch each, if no threshold asks for a repetition.
        backwards: Gradients, likewise.
        most: Evaluations if every threshold asks until its last iteration.
        most_backwards: Gradients, likewise.
    """

    forwards: int
    backwards: int
    most: int
    most_backwards: int

    def __add__(self, other: Expected) -> Expected:
        return self.combined(other, 1)

    def combined(self, other: Expected, times: int) -> Expected:
        """This and ``times`` the other."""
        return Expected(*(getattr(self, f.name) + times * getattr(other, f.name) for f in fields(self)))


_NOTHING = Expected(0, 0, 0, 0)


def total(costs: Iterable[Expected]) -> Expected:
    """Sum over rows."""
    return sum(costs, _NOTHING)


def expected_cost(sample: Sample) -> Expected:
    """Passes of one row, for a scheduler with one evaluation a step.

    Raises:
        ValueError: If a method's option is out of range.
    """
    steps = list(_steps(sample.steps))
    guidances, injections = build_methods([sample])
    halves = 2 if sample.cfg_scale > 1 else 1
    forwards = sum(halves + _further(injections, step, halves) for step in steps)
    cost = total([Expected(forwards, 0, forwards, 0), *(_guided(guidance, steps, halves) for guidance in guidances)])
    sources = expected_forwards(sample) if sample.methods else 0  # a plain picture needs no map
    sources += sum(replay_forwards(guidance.source, sample.steps) for guidance in guidances)
    sources += sum(replay_forwards(injection.source, sample.steps) for injection in injections)
    return Expected(sources, 0, sources, 0).combined(cost, _tries(sample))


def _steps(count: int) -> Iterable[Step]:
    """Steps spread evenly over the timesteps, as most schedulers spread them."""
    kept, alpha_bars = 1.0, []
    for index in range(_TRAINED):
        share = index / (_TRAINED - 1)
        kept *= 1 - (_BETA_START**0.5 + (_BETA_END**0.5 - _BETA_START**0.5) * share) ** 2
        alpha_bars.append(kept)
    for index in range(count):
        timestep = (count - 1 - index) * (_TRAINED // count) + 1
        alpha_bar = alpha_bars[min(timestep, _TRAINED - 1)]
        yield Step(index, count, float(timestep), math.sqrt((1 - alpha_bar) / alpha_bar))


def _further(injections: Sequence[Injection], step: Step, halves: int) -> int:
    """Branches beside the row's own halves, once however many injections read them."""
    named = {branch for injection in injections for branch in injection.branches(step)}
    own = any(injection.source is not None and injection.source.trajectory == "own" for injection in injections)
    return len(named) + (halves if own else 0)


def _guided(guidance: Guidance, steps: Sequence[Step], halves: int) -> Expected:
    update, cost = guidance.update, Expected(*astuple(guidance.trials_cost(len(steps), halves)))
    for step in steps:
        if not guidance.window.active(step):
            continue
        refinement = update.refinement(step)
        least, most = (0, 0) if refinement is None else (1, refinement.iterations)
        always = update.iterations
        cost += Expected(least + always, always, most + always, most + always)
    return cost


def _tries(sample: Sample) -> int:
    """Pictures that are made for one that is kept."""
    baselines = [config for config in sample.methods if method_info(config.name).family == "baseline"]
    return math.prod(int({**method_options(config.name), **config.options}.get("k", 1)) for config in baselines)
