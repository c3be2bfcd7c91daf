"""Schedulers for networks trained at a thousand discrete noise levels, which predict noise, ``v`` or clean latents."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from attnguide.models.names import NEEDS, SCHEDULERS, scheduler_choice
from attnguide.models.schedulers.base import NoiseScheduler, unpatched_copy, written_config
from attnguide.types import Step

_KNOWN = frozenset({*SCHEDULERS.values(), "DDIMParallelScheduler", "DDPMParallelScheduler"})
"""Supported classes of diffusers: known beginnings of denoising steps and known sources of noise."""

_PREDICTIONS = ("epsilon", "v_prediction", "sample")

_OTHER_LEVELS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
_ROUNDING = (
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
    "SASolverScheduler",
)
"""Classes that round a noise level between two timesteps to the nearest whole timestep."""


class DiscreteScheduler(NoiseScheduler):
    """A scheduler for a network that predicts noise, ``v`` or clean latents, on variance-preserving or exploding latents.

    Args:
        scheduler: A new scheduler of diffusers, which must not be used elsewhere.
        steps: Denoising steps.
        device: Device of the latents.

    Raises:
        ValueError: If the scheduler's class or configuration is not supported, or it cannot make this many steps.
    """

    def __init__(self, scheduler: Any, steps: int, device: torch.device) -> None:
        super().__init__(scheduler, steps, device)
        self._brownian = _BrownianNoise() if self.name == "DPMSolverSDEScheduler" else None

    def _check_kind(self, scheduler: Any) -> None:
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

    def _set_timesteps(self, steps: int, device: torch.device) -> None:
        trained = self._scheduler.config.num_train_timesteps
        if steps > trained:
            raise ValueError(f"steps must be at most {trained}, with which the network was trained; got {steps}.")
        self._set_or_say(steps, num_inference_steps=steps, device=device)
        # An offset added to evenly spaced timesteps can push the first one out of what the network was trained with.
        if (first := float(self._scheduler.timesteps.max())) > trained - 1:
            told = f"its first timestep would be {first:g}, and the last that the network knows is {trained - 1}"
            raise ValueError(f"steps must be fewer for {self.name}; got {steps} ({told}).")

    def _levels(self) -> Sequence[tuple[float, float, float]]:
        found = []
        for index, timestep in enumerate(self._timesteps.tolist()):
            sigma = self._sigma(index, float(timestep))
            scale = math.hypot(1.0, sigma)
            found.append((float(timestep), 1 / scale, sigma / scale))
        return found

    def anew(self) -> Self:
        other = super().anew()
        other._brownian = None if self._brownian is None else _BrownianNoise()
        return other

    @property
    def initial_sigma(self) -> float:
        return float(self._scheduler.init_noise_sigma)

    @property
    def prediction_type(self) -> str:
        return str(self._scheduler.config.prediction_type)

    def sigma_at(self, timestep: float) -> float:
        """Noise over signal at a timestep, interpolated in ``log sigma`` between training timesteps."""
        alphas = self._scheduler.alphas_cumprod
        low = min(max(math.floor(timestep), 0), len(alphas) - 1)
        high = min(low + 1, len(alphas) - 1)
        logs = [0.5 * math.log((1 - float(alphas[i])) / max(float(alphas[i]), 1e-12)) for i in (low, high)]
        return math.exp(logs[0] + (logs[1] - logs[0]) * min(max(timestep - low, 0.0), 1.0))

    def _sigma(self, index: int, timestep: float) -> float:
        """Sigma of an evaluation; the scheduler's own value where the timestep is rounded."""
        if self.name in _ROUNDING and any(self._scheduler.config.get(name) for name in _OTHER_LEVELS):
            return float(self._scheduler.sigmas[index])
        return self.sigma_at(timestep)

    def _begins(self, index: int) -> bool:
        if self.name != "PNDMScheduler":
            return super()._begins(index)
        if self._scheduler.config.skip_prk_steps:
            return index != 1
        runge_kutta = len(self._scheduler.prk_timesteps)
        return index >= runge_kutta or index % 4 == 0

    def step(self, noise_pred: Tensor, step: Step, latents: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        if self._brownian is not None:
            self._brownian.serve(latents, generators)
            self._scheduler.noise_sampler = self._brownian
        return super().step(noise_pred, step, latents, generators)

    def denoised(self, noise_pred: Tensor, inputs: Tensor, step: Step) -> Tensor:
        if self.prediction_type == "v_prediction":
            return step.signal * inputs - step.noise * noise_pred
        return noise_pred if self.prediction_type == "sample" else (inputs - step.noise * noise_pred) / step.signal

    def shift_noise(self, noise_pred: Tensor, shift: Tensor, step: Step) -> Tensor:
        if self.prediction_type == "v_prediction":
            return noise_pred + shift / step.signal
        return noise_pred - shift * step.sigma if self.prediction_type == "sample" else noise_pred + shift

    def own_scale(self, step: Step) -> float:
        return 1 / step.signal if self.initial_sigma > 1 else 1.0


class _BrownianNoise:
    """Unit noise of DPM++ SDE, drawn per row from its generator (diffusers has one stream for the whole batch).

    The noise interval of a denoising step's second evaluation contains that of its first: both are increments of one Brownian
    motion over the noise level.
    """

    def __init__(self) -> None:
        self._latents = torch.empty(0)
        self._generators: Sequence[torch.Generator] = ()
        self._first: tuple[float, float, Tensor] | None = None

    def serve(self, latents: Tensor, generators: Sequence[torch.Generator]) -> None:
        """Set the latents ``batch channels height width`` and generators for which noise is drawn."""
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


def named_scheduler(name: str, config: Mapping[str, Any]) -> Any:
    """A scheduler of diffusers by name, for a model whose own scheduler has this configuration.

    Raises:
        ValueError: If the name is unknown, a package that it needs is not installed, or the configuration has no beta schedule.
    """
    if config.get("beta_schedule") is None and config.get("trained_betas") is None:
        raise ValueError(f"Scheduler {name!r} cannot be set up: the pipeline's own does not say which noise the network knows.")
    # Schedulers without clipping have no clip_sample in their config, but DDIM's default is True; latents must not be clipped.
    options = scheduler_choice(name).options
    # from_config drops values listed in _use_default_values; options set by the name must stay.
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


def make_discrete(own: Any, name: str | None, steps: int, device: torch.device) -> DiscreteScheduler:
    """A scheduler for a model that predicts noise, set to a number of steps and tried on blank latents.

    Args:
        own: The pipeline's own scheduler.
        name: Name of another scheduler; the pipeline's own when ``None``.
        steps: Denoising steps.
        device: Device of the latents.

    Raises:
        ValueError: If the name is unknown, or the scheduler does not fit the network or cannot make this many steps.
    """
    chosen = unpatched_copy(own) if name is None else named_scheduler(name, written_config(own))
    made = DiscreteScheduler(chosen, steps, device)
    made.check()
    return made
