"""The contract of a noise scheduler: a schedule of evaluations, and what moves latents from one to the next."""

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
        scheduler: A new one of diffusers; it is taken over.
        steps: Denoising steps.
        device: Where latents live.

    Attributes:
        steps: One entry per network evaluation.

    Raises:
        ValueError: If the scheduler is of a class or for a network that is not supported, or cannot make this many steps.
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
        """Refuse a scheduler that the loop would drive wrongly.

        Raises:
            ValueError: Naming its class, and the setting that does not fit.
        """

    @abstractmethod
    def _set_timesteps(self, steps: int, device: torch.device) -> None:
        """Set the scheduler of diffusers to a number of steps.

        Raises:
            ValueError: If it cannot make so many, or so few.
        """

    def _set_or_say(self, steps: int, **settings: Any) -> None:
        """``set_timesteps`` of diffusers, whose errors become one sentence.

        Raises:
            ValueError: Naming the scheduler, and whether more or fewer steps would work.
        """
        try:
            self._scheduler.set_timesteps(**settings)
        except (ValueError, IndexError, ZeroDivisionError) as error:
            told = re.search(r"(larger|smaller) than", str(error))  # else it speaks of shapes and indices of its arrays
            wanted, why = ("fewer", f" ({error})") if told else ("more", "")
            raise ValueError(f"steps must be {wanted} for {self.name}; got {steps}{why}.") from error

    @abstractmethod
    def _levels(self) -> Sequence[tuple[float, float, float]]:
        """Of every evaluation: what the network is told (1000 noise, 0 clean), and the shares of signal and noise it reads."""

    def anew(self) -> Self:
        """The same scheduler before its first step."""
        other = copy.copy(self)
        other._scheduler = copy.deepcopy(self._fresh)
        return other

    def unset(self) -> Any:
        """A scheduler of diffusers that is set up alike, for a pipeline that sets its steps and moves it."""
        return copy.deepcopy(self._fresh)

    def at(self, step: Step) -> Self:
        """The same scheduler standing at ``step``, without a past."""
        other = self.anew()
        if hasattr(other._scheduler, "_step_index"):
            other._scheduler._step_index = step.index
        return other

    @property
    def name(self) -> str:
        """Class of the scheduler."""
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
        """Make one step on blank latents, so that a scheduler that does not fit the network is found before a run.

        Raises:
            ValueError: Naming the scheduler and what the network predicts, or that its noise is not the row's own.
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
        """Second-order schedulers keep the latents of the step's first evaluation; a change at a later one would be lost."""
        if getattr(self._scheduler, "order", 1) == 2:
            return index % 2 == 0
        if self.name == "DPMSolverSinglestepScheduler":
            return bool(self._scheduler.order_list[index] == 1)
        return True

    def scale_model_input(self, latents: Tensor, step: Step) -> Tensor:
        """Latents as the network reads them at ``step``."""
        if not hasattr(self._scheduler, "scale_model_input"):
            return latents
        scaled: Tensor = self._scheduler.scale_model_input(latents, self._timesteps[step.index])
        return scaled

    def input_scale(self, step: Step) -> float:
        """What :meth:`scale_model_input` multiplies by.

        1 on variance-preserving latents and under flow matching, ``1 / sqrt(1 + sigma^2)`` on exploding ones.
        """
        return float(self.scale_model_input(torch.ones((), dtype=torch.float64), step))

    def own_scale(self, step: Step) -> float:
        """Factor from latents as the network reads them to the scheduler's own: 1, or ``sqrt(1 + sigma^2)`` where they explode.

        Unlike the inverse of :meth:`input_scale`, which diffusers tells of the step it has reached only, known at every step.
        """
        return 1.0

    def span(self, step: Step) -> int:
        """Evaluations of the denoising step that begins at ``step``."""
        later = [other.index for other in self.steps[step.index + 1 :] if other.begins]
        return (later[0] if later else len(self.steps)) - step.index

    def latents_moved(self, change: Tensor, step: Step) -> None:
        """Say that guidance added ``change`` to the latents at ``step``, for schedulers that would otherwise undo it.

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
            # From pure noise on, signal over noise grows without bound.
            rise = math.log(float(now[0] * before[1]) / float(now[1] * before[0])) if before[0] > 0 else math.inf
            keeps *= math.exp(-(float(inner.tau_func(inner.timestep_list[-1])) ** 2) * rise)
        inner.last_sample = inner.last_sample + change / keeps

    def adopt(self, other: NoiseScheduler, rows: Sequence[int], places: Sequence[int]) -> None:
        """Copy some rows of another scheduler's state, which stands at the same step.

        Args:
            other: Whose rows ``places`` become ``rows`` here.
            rows: Numbers of latents here.
            places: Numbers of latents there, one for each of ``rows``.
        """
        for name, theirs in vars(other._scheduler).items():
            setattr(self._scheduler, name, _with_rows(getattr(self._scheduler, name), theirs, list(rows), list(places)))

    def step(self, noise_pred: Tensor, step: Step, latents: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """One evaluation's move. ``generators`` hold one CPU generator per row, for schedulers that add noise."""
        options: dict[str, Any] = {"return_dict": False}
        if "eta" in self._accepts:
            options["eta"] = 0.0
        if "generator" in self._accepts:
            options["generator"] = list(generators)
        moved: Tensor = self._scheduler.step(noise_pred, self._timesteps[step.index], latents, **options)[0]
        return moved

    @abstractmethod
    def denoised(self, noise_pred: Tensor, inputs: Tensor, step: Step) -> Tensor:
        """Predicted clean latents from the network's answer and its (scaled) input."""

    @abstractmethod
    def shift_noise(self, noise_pred: Tensor, shift: Tensor, step: Step) -> Tensor:
        """Add ``shift`` to the predicted noise, whatever the network predicts.

        The predicted clean latents move by ``-shift noise / signal``.
        """

    def add_noise(self, latents: Tensor, noise: Tensor, step: Step) -> Tensor:
        """Clean latents noised to ``step``, in the scheduler's own scale; at any step, wherever the scheduler stands."""
        return (step.signal * latents + step.noise * noise) * self.own_scale(step)


def _with_rows(mine: Any, theirs: Any, rows: list[int], places: list[int]) -> Any:
    """State in which ``mine[rows]`` is ``theirs[places]``; only tensors of four axes, as latents have, hold rows."""
    if isinstance(mine, list) and isinstance(theirs, list) and len(mine) == len(theirs):
        return [_with_rows(one, other, rows, places) for one, other in zip(mine, theirs, strict=True)]
    if not (isinstance(mine, Tensor) and isinstance(theirs, Tensor) and mine.ndim == 4):
        return mine
    merged = mine.clone()
    merged[rows] = theirs[places]
    return merged


def unpatched_copy(scheduler: Any) -> Any:
    """A held pipeline's own scheduler once more, with whatever was set on it since it was made.

    Once its timesteps are set, it remembers nothing of past runs.

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
    """A scheduler's configuration in which values that were registered after it was made count as written.

    The library's list of defaults that were in use is made once; from it, another scheduler would lose such values.
    """
    config = scheduler.config
    parameters = inspect.signature(type(scheduler).__init__).parameters
    used = [
        name
        for name in config.get("_use_default_values", ())
        if name in parameters and parameters[name].default == config.get(name)
    ]
    return {**config, "_use_default_values": used}
