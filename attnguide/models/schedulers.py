"""Noise schedulers of diffusers behind one face that knows when latents may be changed."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from attnguide.models.names import SCHEDULERS, check_scheduler
from attnguide.types import Step


class NoiseScheduler:
    """A private copy of a diffusers scheduler, set to a number of steps.

    Args:
        scheduler: Any scheduler with ``alphas_cumprod``; it is copied by its config and never touched.
        steps: Denoising steps.
        device: Where latents live.

    Attributes:
        steps: One entry per network evaluation.

    Raises:
        ValueError: If the scheduler has no ``alphas_cumprod``, or cannot make so few steps.
    """

    def __init__(self, scheduler: Any, steps: int, device: torch.device) -> None:
        if not hasattr(scheduler, "alphas_cumprod"):
            raise ValueError(
                f"Scheduler {type(scheduler).__name__} has no table alphas_cumprod; choose from {', '.join(SCHEDULERS)}."
            )
        self._scheduler = type(scheduler).from_config(scheduler.config)
        self._asked = steps, device
        try:
            self._scheduler.set_timesteps(steps, device=device)
        except (ValueError, IndexError) as error:
            raise ValueError(f"steps must be more for {type(scheduler).__name__}; got {steps} ({error}).") from error
        self._timesteps: Tensor = self._scheduler.timesteps
        self._accepts = set(inspect.signature(self._scheduler.step).parameters)
        count = len(self._timesteps)
        begins = [self._begins(index) for index in range(count)]
        numbers = [number - 1 for number in itertools.accumulate(begins)]
        self.steps: tuple[Step, ...] = tuple(
            Step(index, count, float(t), self.sigma_at(float(t)), begins[index], max(numbers[index], 0))
            for index, t in enumerate(self._timesteps)
        )

    def anew(self) -> NoiseScheduler:
        """The same scheduler before its first step."""
        return NoiseScheduler(self._scheduler, *self._asked)

    @property
    def name(self) -> str:
        """Class of the scheduler."""
        return type(self._scheduler).__name__

    @property
    def initial_sigma(self) -> float:
        """Factor on unit noise at the first step."""
        return float(self._scheduler.init_noise_sigma)

    @property
    def prediction_type(self) -> str:
        """``epsilon``, ``v_prediction`` or ``sample``."""
        return str(self._scheduler.config.prediction_type)

    def sigma_at(self, timestep: float) -> float:
        """Noise over signal at a training timestep, between two of them by interpolation in ``log sigma``."""
        alphas = self._scheduler.alphas_cumprod
        low = min(max(math.floor(timestep), 0), len(alphas) - 1)
        high = min(low + 1, len(alphas) - 1)
        logs = [0.5 * math.log((1 - float(alphas[i])) / max(float(alphas[i]), 1e-12)) for i in (low, high)]
        return math.exp(logs[0] + (logs[1] - logs[0]) * min(max(timestep - low, 0.0), 1.0))

    def _begins(self, index: int) -> bool:
        """Second-order schedulers keep the latents of the step's first evaluation; a change at a later one would be lost."""
        name = self.name
        if getattr(self._scheduler, "order", 1) == 2:
            return index % 2 == 0
        if name == "PNDMScheduler":
            if self._scheduler.config.skip_prk_steps:
                return index != 1
            runge_kutta = len(self._scheduler.prk_timesteps)
            return index >= runge_kutta or index % 4 == 0
        if name == "DPMSolverSinglestepScheduler":
            return bool(self._scheduler.order_list[index] == 1)
        return True

    def scale_model_input(self, latents: Tensor, step: Step) -> Tensor:
        """Latents as the network reads them at ``step``."""
        scaled: Tensor = self._scheduler.scale_model_input(latents, self._timesteps[step.index])
        return scaled

    def input_scale(self, step: Step) -> float:
        """What :meth:`scale_model_input` multiplies by.

        1 on variance-preserving latents, ``1 / sqrt(1 + sigma^2)`` on exploding ones.
        """
        return float(self.scale_model_input(torch.ones((), dtype=torch.float64), step))

    def span(self, step: Step) -> int:
        """Evaluations of the denoising step that begins at ``step``."""
        later = [other.index for other in self.steps[step.index + 1 :] if other.begins]
        return (later[0] if later else len(self.steps)) - step.index

    def latents_moved(self, change: Tensor, step: Step) -> None:
        """Say that guidance added ``change`` to the latents at ``step``, for schedulers that would otherwise undo it.

        UniPC's corrector recomputes each step's starting point from that of the step before, of which it is a linear
        function; the change is carried back through that function, so that the corrected point moves by exactly the change
        (and a row that did not move stays as it was).
        """
        inner = self._scheduler
        if self.name != "UniPCMultistepScheduler" or getattr(inner, "last_sample", None) is None:
            return
        before, now = (inner._sigma_to_alpha_sigma_t(inner.sigmas[index]) for index in (step.index - 1, step.index))
        part = 1 if inner.predict_x0 else 0
        inner.last_sample = inner.last_sample + change * float(before[part] / now[part])

    def adopt(self, other: NoiseScheduler, rows: Sequence[int], places: Sequence[int]) -> None:
        """Take over what another copy, which stands at the same step, remembers of the past of some rows.

        Args:
            other: Whose rows ``places`` become ``rows`` here.
            rows: Numbers of latents here.
            places: Numbers of latents there, likewise.
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

    def denoised(self, noise_pred: Tensor, inputs: Tensor, step: Step) -> Tensor:
        """Predicted clean latents from the network's answer and its (scaled) input."""
        alpha, noise = math.sqrt(step.alpha_bar), math.sqrt(1 - step.alpha_bar)
        if self.prediction_type == "v_prediction":
            return alpha * inputs - noise * noise_pred
        return noise_pred if self.prediction_type == "sample" else (inputs - noise * noise_pred) / alpha

    def shift_noise(self, noise_pred: Tensor, shift: Tensor, step: Step) -> Tensor:
        """Add ``shift`` to the predicted noise, whatever the network predicts."""
        alpha, noise = math.sqrt(step.alpha_bar), math.sqrt(1 - step.alpha_bar)
        if self.prediction_type == "v_prediction":
            return noise_pred + shift / alpha
        return noise_pred - shift * noise / alpha if self.prediction_type == "sample" else noise_pred + shift

    def add_noise(self, latents: Tensor, noise: Tensor, step: Step) -> Tensor:
        """Clean latents noised to ``step``, in the scheduler's own scale; at any step, wherever the scheduler stands."""
        alpha, sigma = math.sqrt(step.alpha_bar), math.sqrt(1 - step.alpha_bar)
        return (alpha * latents + sigma * noise) * self.own_scale(step)

    def own_scale(self, step: Step) -> float:
        """Factor from latents as the network reads them to the scheduler's own: 1, or ``sqrt(1 + sigma^2)`` where they explode.

        Unlike the inverse of :meth:`input_scale`, which diffusers tells of the step it has reached only, known at every step.
        """
        return math.sqrt(1 + step.sigma**2) if self.initial_sigma > 1 else 1.0


def _with_rows(mine: Any, theirs: Any, rows: list[int], places: list[int]) -> Any:
    """What a scheduler remembers, with some rows from elsewhere; only what has the four axes of latents is of rows."""
    if isinstance(mine, list) and isinstance(theirs, list) and len(mine) == len(theirs):
        return [_with_rows(one, other, rows, places) for one, other in zip(mine, theirs, strict=True)]
    if not (isinstance(mine, Tensor) and isinstance(theirs, Tensor) and mine.ndim == 4):
        return mine
    merged = mine.clone()
    merged[rows] = theirs[places]
    return merged


def scheduler_class(name: str) -> Any:
    """The diffusers class of a scheduler name.

    Raises:
        ValueError: If the name is unknown; the message lists what exists.
    """
    import diffusers

    return getattr(diffusers, SCHEDULERS[check_scheduler(name)])
