"""Expected cost of rows in network passes, computed from their methods before any model is loaded."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch

from attnguide.batching import build_methods
from attnguide.engine.fused import fused_guidance
from attnguide.engine.inversion import replay_forwards
from attnguide.guidance.base import Guidance
from attnguide.injection.base import Injection
from attnguide.methods import method_info, method_options
from attnguide.models.base import halves
from attnguide.models.schedulers import DiscreteScheduler, named_scheduler
from attnguide.sampling.best_of_k import BOTH, DENOISING
from attnguide.sampling.denoising import nearest_steps
from attnguide.sampling.source_maps import expected_forwards
from attnguide.types import ExpectedCost, Sample, Step

_BETA_START, _BETA_END, _TRAINED = 0.00085, 0.012, 1000
"""Noise schedule of Stable Diffusion, to tell which steps a window in sigma or timesteps includes."""


def total(costs: Iterable[ExpectedCost]) -> ExpectedCost:
    """Sum of costs over rows."""
    return sum(costs, ExpectedCost())


def expected_costs(samples: Iterable[Sample], *, distilled: bool = False) -> list[ExpectedCost]:
    """:func:`expected_cost` of each row, computed once for rows with the same methods and settings."""
    known: dict[tuple[Any, ...], ExpectedCost] = {}
    costs = []
    for sample in samples:
        sources = [id(region) for region in sample.regions if region.source is not None]
        prompts = (sample.prompt, sample.seed) if sources else ()
        branches = halves(sample, distilled=distilled)
        key = (id(sample.methods), sample.steps, branches, sample.scheduler, sample.denoising_steps, *sources, *prompts)
        if key not in known:
            known[key] = expected_cost(sample, distilled=distilled)
        costs.append(known[key])
    return costs


def expected_cost(sample: Sample, *, distilled: bool = False) -> ExpectedCost:
    """Network passes of one row, assuming a first-order scheduler unless it names one.

    Args:
        sample: The row.
        distilled: Whether the network takes the CFG scale as an input (guidance-distilled), and so needs no unconditional half.

    Raises:
        ValueError: If a method's option is out of range, or the scheduler cannot make so few steps.
    """
    schedule = _steps(sample.steps) if sample.scheduler is None else _steps_of(sample.scheduler, sample.steps)
    steps = _last(schedule, sample.denoising_steps)
    guidances, injections = build_methods([sample])
    branches = len(halves(sample, distilled=distilled))
    forwards = sum(branches + _further(injections, step, branches) for step in steps)
    fused = fused_guidance(guidances, injections)
    guided = [_guided(guidance, steps, branches, fused=guidance is fused) for guidance in guidances]
    cost = total([ExpectedCost(forwards, 0, forwards, 0), *guided])
    sources = expected_forwards(sample, distilled=distilled) if sample.methods else 0  # a plain picture needs no map
    sources += sum(replay_forwards(guidance.source, sample.steps) for guidance in guidances)
    sources += sum(replay_forwards(injection.source, sample.steps) for injection in injections)
    apart = sources + _judging(sample, schedule)
    return ExpectedCost(apart, 0, apart, 0) + cost * _tries(sample)


@functools.cache
def _steps(count: int) -> tuple[Step, ...]:
    """Steps spread evenly over the timesteps, as most schedulers spread them."""
    return tuple(_spread(count))


def _spread(count: int) -> Iterable[Step]:
    kept, alpha_bars = 1.0, []
    for index in range(_TRAINED):
        share = index / (_TRAINED - 1)
        kept *= 1 - (_BETA_START**0.5 + (_BETA_END**0.5 - _BETA_START**0.5) * share) ** 2
        alpha_bars.append(kept)
    for index in range(count):
        timestep = (count - 1 - index) * (_TRAINED // count) + 1
        alpha_bar = alpha_bars[min(timestep, _TRAINED - 1)]
        yield Step.at_sigma(index, count, float(timestep), math.sqrt((1 - alpha_bar) / alpha_bar))


@functools.cache
def _steps_of(scheduler: str, count: int) -> tuple[Step, ...]:
    """Evaluations of a scheduler with Stable Diffusion's noise schedule and its other settings at their defaults."""
    config = {"beta_start": _BETA_START, "beta_end": _BETA_END, "beta_schedule": "scaled_linear", "steps_offset": 1}
    made = named_scheduler(scheduler, {**config, "num_train_timesteps": _TRAINED})
    return DiscreteScheduler(made, count, torch.device("cpu")).steps


def _last(steps: tuple[Step, ...], count: int) -> tuple[Step, ...]:
    """The evaluations of the last ``count`` denoising steps, those of a row that starts from a picture (img2img)."""
    first = max(step.number for step in steps) + 1 - count
    left = [step for step in steps if step.number >= first]
    if len(left) == len(steps):
        return steps
    return tuple(replace(s, index=i, count=len(left), number=s.number - first) for i, s in enumerate(left))


def _further(injections: Sequence[Injection], step: Step, branches: int) -> int:
    """Number of extra branches that injections read at a step; a branch shared by several counts once."""
    named = {branch for injection in injections for branch in injection.branches(step)}
    own = any(injection.source is not None and injection.source.trajectory == "own" for injection in injections)
    return len(named) + (branches if own else 0)


def _guided(guidance: Guidance, steps: Sequence[Step], branches: int, *, fused: bool) -> ExpectedCost:
    """Passes of a guidance beside the denoising passes; a fused guidance backpropagates through the denoising pass itself."""
    update, cost = guidance.update, guidance.trials_cost(len(steps), branches)
    for step in steps:
        if not guidance.acts(step):
            continue
        refinement = update.refinement(step, _span(steps, step))
        least, most = (0, 0) if refinement is None else (1, refinement.iterations)
        always = update.iterations
        passes = 0 if fused else always
        cost += ExpectedCost(least + passes, always, most + passes, most + always)
    return cost


def _span(steps: Sequence[Step], step: Step) -> int:
    """Number of network evaluations in the denoising step that ``step`` belongs to."""
    return sum(other.number == step.number for other in steps)


def _tries(sample: Sample) -> int:
    """Pictures made for each one kept: the ``k`` of best-of-k, 1 without it."""
    return math.prod(int(options.get("k", 1)) for options in _baselines(sample))


def _judging(sample: Sample, schedule: Sequence[Step]) -> int:
    """Forwards in which the network judges the pictures of best-of-k itself; 0 for other judges."""
    itself = any(options.get("judge") in (DENOISING, BOTH) for options in _baselines(sample))
    return _tries(sample) * len(nearest_steps(schedule)) if itself else 0


def _baselines(sample: Sample) -> list[dict[str, Any]]:
    """All options of the row's baselines, with defaults."""
    found = [config for config in sample.methods if method_info(config.name).family == "baseline"]
    return [{**method_options(config.name), **config.options} for config in found]
