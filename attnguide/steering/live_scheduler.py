"""The pipeline's own scheduler while the pipeline steps it: the schedule, and each evaluation's position in it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Self

from torch import Tensor

from attnguide.models.schedulers import DiscreteScheduler, FlowScheduler, NoiseScheduler, is_flow
from attnguide.steering.calls import Call
from attnguide.steering.errors import SteerError
from attnguide.steering.forms import Packing
from attnguide.types import Step


class _Live(NoiseScheduler):
    """A scheduler whose timesteps are set and whose steps are made by the pipeline.

    Args:
        scheduler: Scheduler of diffusers; it is read, never stepped.
        timestep: Timestep of the first evaluation.
        exact: Tolerance of ``timestep``.
        count: Evaluations that the pipeline will make; those to the end of the schedule when ``None``.
        goes_on: Whether an earlier call made the evaluations before the first (``denoising_start``), so that progress counts
            them; else the picture begins here, from noise or from another picture (``strength``).

    Attributes:
        begin: Index of the first evaluation in the whole schedule.
        packing: Packing of the latents that the scheduler moves; ``None`` for ``batch channels height width``.

    Raises:
        SteerError: If the scheduler's class or configuration is not supported, or it has no such timestep.
    """

    packing: Packing | None = None

    def __init__(self, scheduler: Any, timestep: float, exact: float, count: int | None, goes_on: bool = False) -> None:
        try:
            self._check_kind(scheduler)
        except ValueError as error:
            raise SteerError(f"The pipeline's scheduler cannot be followed: {error}") from error
        self._scheduler = scheduler
        self._timesteps: Tensor = scheduler.timesteps
        whole = self._laid_out()
        told = [step.timestep for step in whole]
        self.begin = _beginning(scheduler, told, timestep, exact)
        left = len(whole) - self.begin
        count = left if count is None else min(count, left)
        chosen = whole[self.begin : self.begin + count]
        first = chosen[0].number
        self._timesteps = self._timesteps[self.begin : self.begin + count]
        earlier, later = self.begin if goes_on else 0, left - count
        self.steps = tuple(
            replace(step, index=index, count=count, number=max(step.number - first, 0), earlier=earlier, later=later)
            for index, step in enumerate(chosen)
        )
        self._asked = sum(step.begins for step in chosen)

    @property
    def asked(self) -> int:
        """Number of denoising steps."""
        return self._asked

    @property
    def whole(self) -> bool:
        """Whether the pipeline begins at the schedule's first evaluation, hence with noise alone."""
        return self.begin == 0

    def tells(self, index: int) -> Tensor:
        """The scheduler's timestep of evaluation ``index``, a view of its tensor."""
        return self._timesteps[index]

    def anew(self) -> Self:
        raise SteerError("A pipeline's own call cannot be begun anew; attnguide.sample can.")

    def latents_moved(self, change: Tensor, step: Step) -> None:
        last = getattr(self._scheduler, "last_sample", None)
        if last is not None and self.packing is not None and last.shape != change.shape:
            change = self.packing.pack(change, last)
        super().latents_moved(change, replace(step, index=step.index + self.begin, count=step.count + self.begin))


class LiveDiscrete(_Live, DiscreteScheduler):
    """The pipeline's scheduler for a network that predicts noise, ``v`` or clean latents."""


class LiveFlow(_Live, FlowScheduler):
    """The pipeline's scheduler for a network that predicts the velocity of flow matching."""


def live_scheduler(
    scheduler: Any, timestep: float, exact: float, count: int | None, goes_on: bool = False
) -> LiveDiscrete | LiveFlow:
    """A pipeline's scheduler, whose timesteps are set; see :class:`_Live` for arguments and errors."""
    kind = LiveFlow if is_flow(scheduler) else LiveDiscrete
    return kind(scheduler, timestep, exact, count, goes_on)


def _beginning(scheduler: Any, told: list[float], timestep: float, exact: float) -> int:
    """Index of the first evaluation in the schedule.

    The timestep alone is ambiguous, as second-order schedulers repeat timesteps: the scheduler's ``begin_index`` or
    ``step_index``, where set, decides.
    """
    found = [index for index, one in enumerate(told) if abs(one - timestep) <= max(exact, 1e-4 * max(1.0, abs(timestep)))]
    if not found:
        raise SteerError(
            f"The network was called at timestep {timestep:g}, which is none of the pipeline's scheduler ({len(told)} from "
            f"{told[0]:g} to {told[-1]:g})."
        )
    for known in (getattr(scheduler, "begin_index", None), getattr(scheduler, "step_index", None)):
        if known is not None and known in found:
            return int(known)
    return min(found, key=lambda index: abs(told[index] - timestep))


def same_time(call: Call, expected: Tensor) -> bool:
    """Whether a network call has the expected timestep.

    A view of the scheduler's own tensor is recognised by its address, since reading it would synchronise with the device.
    """
    given = call.arguments[call.form.timestep]
    if isinstance(given, Tensor) and given.data_ptr() == expected.data_ptr() and call.form.time_scale == 1:
        return True
    time, exact = call.time
    return abs(time - float(expected)) <= exact
