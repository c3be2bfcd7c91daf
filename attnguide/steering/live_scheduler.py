"""The pipeline's own scheduler while the pipeline moves it: where each evaluation of the network lies in the schedule."""

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
    """A scheduler that somebody else has set to its steps and moves on.

    Args:
        scheduler: Of diffusers; it is read, never moved.
        timestep: Of the first evaluation.
        exact: How far it may be off.
        count: Evaluations that the pipeline will make; those to the end of the schedule when ``None``.
        goes_on: Whether another call has made the evaluations before the first (``denoising_start``), so that progress is
            counted with them; else the picture begins here, from noise or from another picture (``strength``).

    Attributes:
        begin: The first evaluation's number in the whole schedule.
        packing: The shape of the latents that the scheduler moves, where it is another than theirs.

    Raises:
        SteerError: If the scheduler is of a class or set up in a way that is not supported, or has no such timestep.
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
        """Denoising steps."""
        return self._asked

    @property
    def whole(self) -> bool:
        """Whether the pipeline begins at the first evaluation, hence with noise alone."""
        return self.begin == 0

    def tells(self, index: int) -> Tensor:
        """What evaluation ``index`` is told of the time, as the scheduler has it."""
        return self._timesteps[index]

    def anew(self) -> Self:
        raise SteerError("A pipeline's own call cannot be begun anew; attnguide.sample can.")

    def latents_moved(self, change: Tensor, step: Step) -> None:
        last = getattr(self._scheduler, "last_sample", None)
        if last is not None and self.packing is not None and last.shape != change.shape:
            change = self.packing.pack(change, last)
        super().latents_moved(change, replace(step, index=step.index + self.begin, count=step.count + self.begin))


class LiveDiscrete(_Live, DiscreteScheduler):
    """Of a network that predicts noise, ``v`` or clean latents."""


class LiveFlow(_Live, FlowScheduler):
    """Of a network that predicts the velocity of flow matching."""


def live_scheduler(
    scheduler: Any, timestep: float, exact: float, count: int | None, goes_on: bool = False
) -> LiveDiscrete | LiveFlow:
    """A pipeline's scheduler, whose timesteps are set; see :class:`_Live` for arguments and errors."""
    kind = LiveFlow if is_flow(scheduler) else LiveDiscrete
    return kind(scheduler, timestep, exact, count, goes_on)


def _beginning(scheduler: Any, told: list[float], timestep: float, exact: float) -> int:
    """The number of the first evaluation.

    Timesteps repeat (a second-order scheduler has every one of them twice), and a pipeline that begins at a picture leaves some
    out: it says where it begins, or the scheduler knows where it stands.
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
    """Whether a call of the network is told what a scheduler tells at an evaluation.

    A view of the scheduler's own tensor is recognised without reading it, which would wait for the device.
    """
    given = call.arguments[call.form.timestep]
    if isinstance(given, Tensor) and given.data_ptr() == expected.data_ptr() and call.form.time_scale == 1:
        return True
    time, exact = call.time
    return abs(time - float(expected)) <= exact
