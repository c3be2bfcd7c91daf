"""The contract of a noise scheduler: a schedule of network evaluations, and the step of latents after each."""

from __future__ import annotations

import copy
import inspect
import itertools
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from attnguide.types import Step


class NoiseScheduler(ABC):
    """A diffusers scheduler, set to a number of steps.

    Args:
        scheduler: A new scheduler of diffusers, which must not be used elsewhere.
        steps: Denoising steps.
        device: Device of the latents.

    Attributes:
        steps: One entry per network evaluation.

    Raises:
        ValueError: If the scheduler's class or configuration is not supported, or it cannot make this many steps.
    """

    def __init__(self, scheduler: Any, steps: int, device: torch.device) -> None:
        self._check_kind(scheduler)
        self._scheduler = scheduler
        self._asked = steps
        self._set_timesteps(steps, device)
        self._fresh = copy.deepcopy(self._scheduler)
        self._timesteps: Tensor = self._scheduler.timesteps
        self._accepts = set(inspect.signature(self._scheduler.step).parameters)
        self.steps: tuple[Step, ...] = self._laid_out()

    def _laid_out(self) -> tuple[Step, ...]:
        """One entry per evaluation of the whole schedule."""
        begins = [self._begins(index) for index in range(len(self._timesteps))]
        numbers = [max(number - 1, 0) for number in itertools.accumulate(begins)]
        found = zip(self._levels(), begins, numbers, strict=True)
        return tuple(
            Step(index, len(begins), told, signal, noise, begin, number)
            for index, ((told, signal, noise), begin, number) in enumerate(found)
        )

    @abstractmethod
    def _check_kind(self, scheduler: Any) -> None:
        """Refuse a scheduler whose class or configuration is not supported.

        Raises:
            ValueError: Naming its class, and the setting that does not fit.
        """

    @abstractmethod
    def _set_timesteps(self, steps: int, device: torch.device) -> None:
        """Set the scheduler of diffusers to a number of steps.

        Raises:
            ValueError: If it cannot make this number of steps.
        """

    def _set_or_say(self, steps: int, **settings: Any) -> None:
        """Call ``set_timesteps`` of diffusers, with errors turned into one sentence.

        Raises:
            ValueError: Naming the scheduler, and whether more or fewer steps would work.
        """
        try:
            self._scheduler.set_timesteps(**settings)
        except (ValueError, IndexError, ZeroDivisionError) as error:
            told = re.search(r"(larger|smaller) than", str(error))  # other messages are about array shapes and indices
            wanted, why = ("fewer", f" ({error})") if told else ("more", "")
            raise ValueError(f"steps must be {wanted} for {self.name}; got {steps}{why}.") from error

    @abstractmethod
    def _levels(self) -> Sequence[tuple[float, float, float]]:
        """Timestep (1000 noise, 0 clean), signal and noise of every evaluation, in the network's input scale."""

    def anew(self) -> Self:
        """A copy of the scheduler before its first step."""
        other = copy.copy(self)
        other._scheduler = copy.deepcopy(self._fresh)
        return other

    def unset(self) -> Any:
        """A copy of the diffusers scheduler, for a pipeline that sets its timesteps and steps it."""
        return copy.deepcopy(self._fresh)

    def at(self, step: Step) -> Self:
        """A copy of the scheduler at ``step``, without state of earlier steps."""
        other = self.anew()
        if hasattr(other._scheduler, "_step_index"):
            other._scheduler._step_index = step.index
        return other

    @property
    def name(self) -> str:
        """Class name of the diffusers scheduler."""
        return type(self._scheduler).__name__

    @property
    @abstractmethod
    def prediction_type(self) -> str:
        """``epsilon``, ``v_prediction``, ``sample``, or ``flow_prediction`` (the velocity, noise minus data)."""

    @property
    def initial_sigma(self) -> float:
        """Factor on unit noise at the first step."""
        return 1.0

    def check(self) -> None:
        """Try one step on zero latents, to find a scheduler that does not fit the network before a run.

        Raises:
            ValueError: If the step fails, is not finite, or adds noise that is not drawn from the row's generator.
        """
        try:
            moved, again = (self._tried(self.anew()) for _ in range(2))
        except (ValueError, NotImplementedError) as error:
            raise ValueError(
                f"{self.name} does not work for a network that predicts {self.prediction_type!r} ({error})."
            ) from error
        finite = all(math.isfinite(step.signal) and math.isfinite(step.noise) for step in self.steps)
        if not bool((moved == again).all()) and bool(torch.isfinite(moved).all()):
            raise ValueError(
                f"{self.name} draws noise that no row's seed decides, with its settings and this version of diffusers; take a "
                "newer one, or another scheduler."
            )
        if not bool(torch.isfinite(moved).all()) or not finite:
            raise ValueError(f"steps must be more for {self.name}; got {self._asked} (its noise levels are not finite).")

    def _tried(self, trial: Self) -> Tensor:
        blank = torch.zeros(1, 1, 2, 2, device=self._timesteps.device)
        trial.scale_model_input(blank, trial.steps[0])
        return trial.step(blank, trial.steps[0], blank, [torch.Generator().manual_seed(0)])

    def _begins(self, index: int) -> bool:
        """Whether a denoising step begins at an evaluation.

        Second-order schedulers keep the latents of a step's first evaluation; a change at a later one would be lost.
        """
        if getattr(self._scheduler, "order", 1) == 2:
            return index % 2 == 0
        if self.name == "DPMSolverSinglestepScheduler":
            return bool(self._scheduler.order_list[index] == 1)
        return True

    def scale_model_input(self, latents: Tensor, step: Step) -> Tensor:
        """Latents in the network's input scale at ``step``."""
        if not hasattr(self._scheduler, "scale_model_input"):
            return latents
        scaled: Tensor = self._scheduler.scale_model_input(latents, self._timesteps[step.index])
        return scaled

    def input_scale(self, step: Step) -> float:
        """Factor of :meth:`scale_model_input`.

        1 on variance-preserving latents and under flow matching, ``1 / sqrt(1 + sigma^2)`` on variance-exploding ones.
        """
        return float(self.scale_model_input(torch.ones((), dtype=torch.float64), step))

    def own_scale(self, step: Step) -> float:
        """Factor from the network's input scale to the scheduler's: 1, or ``sqrt(1 + sigma^2)`` if variance-exploding.

        It is known at every step, unlike the inverse of :meth:`input_scale`, which diffusers knows only at its current step.
        """
        return 1.0

    def span(self, step: Step) -> int:
        """Number of evaluations of the denoising step that begins at ``step``."""
        later = [other.index for other in self.steps[step.index + 1 :] if other.begins]
        return (later[0] if later else len(self.steps)) - step.index

    def latents_moved(self, change: Tensor, step: Step) -> None:
        """Notify the scheduler that ``change`` was added to the latents at ``step``, which some would otherwise undo.

        The correctors of UniPC and SA-Solver recompute each step's starting point from that of the step before, of which it is
        a linear function; the change is carried back through that function, so that the corrected point moves by exactly the
        change (and a row that did not move stays as it was).
        """
        inner = self._scheduler
        if self.name not in ("UniPCMultistepScheduler", "SASolverScheduler") or getattr(inner, "last_sample", None) is None:
            return
        before, now = (inner._sigma_to_alpha_sigma_t(inner.sigmas[index]) for index in (step.index - 1, step.index))
        part = 1 if inner.predict_x0 else 0
        keeps = float(now[part] / before[part])
        if self.name == "SASolverScheduler" and inner.predict_x0:
            # From pure noise, signal over noise grows without bound.
            rise = math.log(float(now[0] * before[1]) / float(now[1] * before[0])) if before[0] > 0 else math.inf
            keeps *= math.exp(-(float(inner.tau_func(inner.timestep_list[-1])) ** 2) * rise)
        inner.last_sample = inner.last_sample + change / keeps

    def adopt(self, other: NoiseScheduler, rows: Sequence[int], places: Sequence[int]) -> None:
        """Copy some rows of another scheduler's state at the same step.

        Args:
            other: The other scheduler.
            rows: Batch positions here, which are overwritten.
            places: Batch positions in ``other``, one for each of ``rows``.
        """
        for name, theirs in vars(other._scheduler).items():
            setattr(self._scheduler, name, _with_rows(getattr(self._scheduler, name), theirs, list(rows), list(places)))

    def step(self, noise_pred: Tensor, step: Step, latents: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Latents after one evaluation; ``generators`` are one CPU generator per row, for schedulers that add noise."""
        options: dict[str, Any] = {"return_dict": False}
        if "eta" in self._accepts:
            options["eta"] = 0.0
        if "generator" in self._accepts:
            options["generator"] = list(generators)
        moved: Tensor = self._scheduler.step(noise_pred, self._timesteps[step.index], latents, **options)[0]
        return moved

    @abstractmethod
    def denoised(self, noise_pred: Tensor, inputs: Tensor, step: Step) -> Tensor:
        """Predicted clean latents from the network's prediction and its (scaled) input."""

    @abstractmethod
    def shift_noise(self, noise_pred: Tensor, shift: Tensor, step: Step) -> Tensor:
        """Add ``shift`` to the predicted noise, in the network's parametrisation.

        The predicted clean latents move by ``-shift noise / signal``.
        """

    def add_noise(self, latents: Tensor, noise: Tensor, step: Step) -> Tensor:
        """Clean latents noised to ``step`` (any step of the schedule), in the scheduler's own scale."""
        return (step.signal * latents + step.noise * noise) * self.own_scale(step)


def _with_rows(mine: Any, theirs: Any, rows: list[int], places: list[int]) -> Any:
    """State with ``mine[rows]`` replaced by ``theirs[places]``; only 4-D tensors have a batch axis."""
    if isinstance(mine, list) and isinstance(theirs, list) and len(mine) == len(theirs):
        return [_with_rows(one, other, rows, places) for one, other in zip(mine, theirs, strict=True)]
    if not (isinstance(mine, Tensor) and isinstance(theirs, Tensor) and mine.ndim == 4):
        return mine
    merged = mine.clone()
    merged[rows] = theirs[places]
    return merged


def unpatched_copy(scheduler: Any) -> Any:
    """A copy of a user's pipeline's scheduler, with attributes that were set on it later.

    Setting its timesteps clears state of past runs.

    Raises:
        ValueError: If one of its methods was replaced: the replacement may act on the original alone.
    """
    patched = [
        name for name, value in vars(scheduler).items() if callable(value) and callable(getattr(type(scheduler), name, 0))
    ]
    if patched:
        raise ValueError(f"The pipeline's scheduler has a replaced {patched[0]}(), which cannot be copied for a run.")
    return copy.copy(scheduler)


def written_config(scheduler: Any) -> dict[str, Any]:
    """A scheduler's configuration in which values registered after construction count as explicitly given.

    Diffusers lists the defaults in use at construction only; ``from_config`` of another class would drop later values.
    """
    config = scheduler.config
    parameters = inspect.signature(type(scheduler).__init__).parameters
    used = [
        name
        for name in config.get("_use_default_values", ())
        if name in parameters and parameters[name].default == config.get(name)
    ]
    return {**config, "_use_default_values": used}
