"""Noise schedulers of diffusers behind one face that knows when latents may be changed."""

from __future__ import annotations

import copy
import importlib
import inspect
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from attnguide.models.names import NEEDS, SCHEDULERS, scheduler_choice
from attnguide.types import Step

_KNOWN = frozenset({*SCHEDULERS.values(), "DDIMParallelScheduler", "DDPMParallelScheduler"})
"""Classes of diffusers of which it is known where a denoising step begins and where their noise comes from."""

_PREDICTIONS = ("epsilon", "v_prediction", "sample")

_OTHER_LEVELS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
_ROUNDING = (
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
    "SASolverScheduler",
)
"""Classes that tell the network the nearest whole timestep of a noise level between two."""


class NoiseScheduler:
    """A diffusers scheduler, set to a number of steps.

    Args:
        scheduler: A new one of diffusers, for a network that predicts noise; it is taken over.
        steps: Denoising steps.
        device: Where latents live.

    Attributes:
        steps: One entry per network evaluation.

    Raises:
        ValueError: If the scheduler is of a class or for a network that is not supported, or cannot make this many steps.
    """

    def __init__(self, scheduler: Any, steps: int, device: torch.device) -> None:
        _check_kind(scheduler)
        self._scheduler = scheduler
        self._asked = steps
        self._set_timesteps(steps, device)
        self._fresh = copy.deepcopy(self._scheduler)
        self._timesteps: Tensor = self._scheduler.timesteps
        self._accepts = set(inspect.signature(self._scheduler.step).parameters)
        self._brownian = _BrownianNoise() if self.name == "DPMSolverSDEScheduler" else None
        count = len(self._timesteps)
        begins = [self._begins(index) for index in range(count)]
        numbers = [number - 1 for number in itertools.accumulate(begins)]
        self.steps: tuple[Step, ...] = tuple(
            Step(index, count, float(t), self._sigma(index, float(t)), begins[index], max(numbers[index], 0))
            for index, t in enumerate(self._timesteps)
        )

    def _set_timesteps(self, steps: int, device: torch.device) -> None:
        trained = self._scheduler.config.num_train_timesteps
        if steps > trained:
            raise ValueError(f"steps must be at most {trained}, with which the network was trained; got {steps}.")
        try:
            self._scheduler.set_timesteps(steps, device=device)
        except (ValueError, IndexError, ZeroDivisionError) as error:
            wanted = "fewer" if re.search(r"(larger|smaller) than", str(error)) else "more"
            raise ValueError(f"steps must be {wanted} for {self.name}; got {steps} ({error}).") from error
        # An offset added to evenly spaced timesteps can push the first one out of what the network was trained with.
        if (first := float(self._scheduler.timesteps.max())) > trained - 1:
            told = f"its first timestep would be {first:g}, and the last that the network knows is {trained - 1}"
            raise ValueError(f"steps must be fewer for {self.name}; got {steps} ({told}).")

    def anew(self) -> NoiseScheduler:
        """The same scheduler before its first step."""
        other = copy.copy(self)
        other._scheduler = copy.deepcopy(self._fresh)
        other._brownian = None if self._brownian is None else _BrownianNoise()
        return other

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

    def _sigma(self, index: int, timestep: float) -> float:
        """Noise level of an evaluation; of the scheduler itself where the timestep is rounded."""
        if self.name in _ROUNDING and any(self._scheduler.config.get(name) for name in _OTHER_LEVELS):
            return float(self._scheduler.sigmas[index])
        return self.sigma_at(timestep)

    def check(self) -> None:
        """Make one step on blank latents, so that a scheduler that does not fit the network is found before a run.

        Raises:
            ValueError: Naming the scheduler and what the network predicts.
        """
        trial, blank = self.anew(), torch.zeros(1, 1, 2, 2, device=self._timesteps.device)
        try:
            trial.scale_model_input(blank, trial.steps[0])
            moved = trial.step(blank, trial.steps[0], blank, [torch.Generator().manual_seed(0)])
        except (ValueError, NotImplementedError) as error:
            raise ValueError(
                f"{self.name} does not work for a network that predicts {self.prediction_type!r} ({error})."
            ) from error
        if not bool(torch.isfinite(moved).all()) or not all(math.isfinite(step.sigma) for step in self.steps):
            raise ValueError(f"steps must be more for {self.name}; got {self._asked} (its noise levels are not finite).")

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
            rise = math.log(float(now[0] * before[1]) / float(now[1] * before[0]))
            keeps *= math.exp(-(float(inner.tau_func(inner.timestep_list[-1])) ** 2) * rise)
        inner.last_sample = inner.last_sample + change / keeps

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
        if self._brownian is not None:
            self._brownian.serve(latents, generators)
            self._scheduler.noise_sampler = self._brownian
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


class _BrownianNoise:
    """Unit noise of DPM++ SDE, each row's from its own generator (the library's would be one stream for the whole batch).

    The second evaluation of a denoising step asks for the noise of an interval whose first part the first evaluation has
    already been given: both are increments of one Brownian motion over the noise level.
    """

    def __init__(self) -> None:
        self._latents = torch.empty(0)
        self._generators: Sequence[torch.Generator] = ()
        self._first: tuple[float, float, Tensor] | None = None

    def serve(self, latents: Tensor, generators: Sequence[torch.Generator]) -> None:
        """Draw for these latents ``batch channels height width`` from now on."""
        self._latents, self._generators = latents, generators

    def __call__(self, start: Tensor, end: Tensor) -> Tensor:
        shape, dtype = (1, *self._latents.shape[1:]), self._latents.dtype
        drawn = [torch.randn(shape, generator=source, dtype=dtype) for source in self._generators]
        noise, first = torch.cat(drawn).to(self._latents.device), self._first
        if first is None or first[0] != float(start):
            self._first = (float(start), float(end), noise)
            return noise
        self._first = None
        seen, rest = abs(first[1] - first[0]), abs(float(end) - first[1])
        return (first[2] * math.sqrt(seen) + noise * math.sqrt(rest)) / math.sqrt(seen + rest)


def _with_rows(mine: Any, theirs: Any, rows: list[int], places: list[int]) -> Any:
    """What a scheduler remembers, with some rows from elsewhere; only what has the four axes of latents is of rows."""
    if isinstance(mine, list) and isinstance(theirs, list) and len(mine) == len(theirs):
        return [_with_rows(one, other, rows, places) for one, other in zip(mine, theirs, strict=True)]
    if not (isinstance(mine, Tensor) and isinstance(theirs, Tensor) and mine.ndim == 4):
        return mine
    merged = mine.clone()
    merged[rows] = theirs[places]
    return merged


def _check_kind(scheduler: Any) -> None:
    """Refuse a scheduler that the loop would drive wrongly.

    Raises:
        ValueError: Naming its class, and the setting that does not fit.
    """
    name = type(scheduler).__name__
    choose = f"choose another by name: {', '.join(SCHEDULERS)}"
    if name not in _KNOWN:
        raise ValueError(f"Scheduler {name} is not supported; {choose}.")
    config = scheduler.config
    if config.prediction_type not in _PREDICTIONS:
        expected = ", ".join(_PREDICTIONS)
        raise ValueError(f"prediction_type of {name} must be one of {expected}; got {config.prediction_type!r}.")
    if config.get("use_flow_sigmas") or config.get("timestep_type") == "continuous":
        raise ValueError(f"Scheduler {name} is set up for another kind of network (flow matching or EDM); {choose}.")


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


def named_scheduler(name: str, config: Mapping[str, Any]) -> Any:
    """A scheduler of diffusers by name, for a model whose own scheduler has this configuration.

    Raises:
        ValueError: If the name is unknown, a package that it needs is not installed, or the configuration does not say with
            which noise the network was trained.
    """
    if config.get("beta_schedule") is None and config.get("trained_betas") is None:
        raise ValueError(f"Scheduler {name!r} cannot be set up: the pipeline's own does not say which noise the network knows.")
    # A scheduler that never clips does not say so in its configuration; latents must not be clipped to [-1, 1].
    options = scheduler_choice(name).options
    # The library lets values go that another class had by default, among them those that the name means.
    defaults = [key for key in config.get("_use_default_values", ()) if key not in options]
    written = {"clip_sample": False, **config, **options, "_use_default_values": defaults}
    return scheduler_class(name).from_config(written)


def scheduler_class(name: str) -> Any:
    """The diffusers class of a scheduler name.

    Raises:
        ValueError: If the name is unknown (the message lists what exists), or a package that it needs is not installed.
    """
    import diffusers

    class_name = scheduler_choice(name).class_name
    if class_name not in NEEDS:
        return getattr(diffusers, class_name)
    try:
        module = importlib.import_module("diffusers.schedulers.scheduling_dpmsolver_sde")
    except ImportError as error:
        needed = NEEDS[class_name]
        raise ValueError(f"Scheduler {name!r} needs the package {needed}: pip install {needed}.") from error
    return getattr(module, class_name)
