"""Schedules (values per step) and windows (ranges of steps), each in a named unit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from attnguide.types import Step

Unit = Literal["progress", "timestep", "sigma"]
UNITS: tuple[Unit, ...] = ("progress", "timestep", "sigma")

MOST_SIGMA = 16.0
"""Upper bound on sigma (noise over signal); a Stable Diffusion model's first step has 14.6.

Flow matching begins with signal 0, where values that grow with sigma (or with ``1 / signal``) would be unbounded.
"""

_ROUNDING = 1e-9
"""Relative rounding error allowed in a sigma or timestep compared with a window's bounds."""


def position(step: Step, unit: Unit) -> float:
    """Position of ``step`` in ``unit``: progress 0 to 1, timestep / 1000 from 1 (noise) to 0 (picture), or sigma.

    Under flow matching sigma (noise over signal) is infinite in the first step, and timestep / 1000 is the noise share.
    """
    if unit == "progress":
        return step.progress
    return step.timestep / 1000 if unit == "timestep" else step.sigma


@dataclass(frozen=True)
class Window:
    """The part of the schedule in which a method acts.

    Attributes:
        start: First bound, in ``unit``.
        stop: Second bound. Progress runs upwards (``start < stop``: 0 to 0.5 is the first half, ``stop`` excluded);
            timestep / 1000 and sigma run downwards, and the two bounds, in either order, form a closed range.
        unit: ``"progress"`` (share of the picture's steps; img2img counts those that its ``strength`` leaves),
            ``"timestep"`` (t / 1000) or ``"sigma"``.

    Example:
        >>> Window(0.8, 1.0, "timestep").active(Step.at_sigma(0, 10, 999.0, 14.6))
        True

    Raises:
        ValueError: If a bound is negative or not finite, the unit is unknown, or a progress window is empty.
    """

    start: float = 0.0
    stop: float = 1.0
    unit: Unit = "progress"

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ValueError(f"window unit must be one of {', '.join(UNITS)}; got {self.unit!r}.")
        for name in ("start", "stop"):
            value = getattr(self, name)
            if not value >= 0 or (math.isinf(value) and self.unit != "sigma"):
                raise ValueError(f"window {name} must be a number of at least 0; got {value}.")
        if self.unit == "progress" and not (self.start <= self.stop <= 1):
            raise ValueError(f"a progress window needs start <= stop <= 1; got {self.start} to {self.stop}.")

    def active(self, step: Step) -> bool:
        """Whether ``step`` lies inside."""
        at = position(step, self.unit)
        if self.unit == "progress":
            return self.start <= at < self.stop
        low, high = sorted((self.start, self.stop))
        return low * (1 - _ROUNDING) <= at <= high * (1 + _ROUNDING)


Schedule = Callable[[Step], float]
"""A value as a function of the step."""


def _require_finite(value: float) -> None:
    if not math.isfinite(value):
        raise ValueError(f"step size must be finite; got {value}.")


def constant(value: float) -> Schedule:
    """The same value at every step."""
    _require_finite(value)
    return lambda step: value


def sqrt_linear(value: float, start: float = 1.0, stop: float = 0.5) -> Schedule:
    """``value * sqrt(linspace(start, stop, count)[index])``, the step size of attend-and-excite.

    ``index`` and ``count`` are those of the whole schedule, ``Step.overall_index`` and ``Step.overall_count``
    (https://arxiv.org/abs/2301.13826).
    """
    _require_finite(value)

    def at(step: Step) -> float:
        share = step.overall_index / (step.overall_count - 1) if step.overall_count > 1 else 0.0
        return value * math.sqrt(start + (stop - start) * share)

    return at


def linear(start: float, stop: float, end: float = 1.0) -> Schedule:
    """From ``start`` at progress 0 to ``stop`` at progress ``end``, then constant."""
    _require_finite(start)
    return lambda step: start + (stop - start) * min(step.progress / end, 1.0)


def noise_variance(value: float) -> Schedule:
    """``value * (1 - alpha_bar)``, which falls to 0 at the end; on variance-exploding latents this is ``value * sigma^2``.

    Under flow matching ``1 - alpha_bar = noise^2 / (signal^2 + noise^2)``.
    """
    _require_finite(value)
    return lambda step: value * (1 - step.alpha_bar)


SCHEDULES: dict[str, Callable[[float], Schedule]] = {
    "constant": constant,
    "sqrt_linear": sqrt_linear,
    "linear_to_zero": lambda value: linear(value, 0.0),
    "noise_variance": noise_variance,
}
"""Step-size rules by name, each from one peak value."""
