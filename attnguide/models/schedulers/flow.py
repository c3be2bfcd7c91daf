"""Schedulers for networks trained by flow matching: ``x = (1 - s) x0 + s eps``, and the network predicts ``eps - x0``."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnguide.models.names import FLOW_CLASSES, FLOW_NAMES, flow_choice
from attnguide.models.schedulers.base import NoiseScheduler, unpatched_copy, written_config
from attnguide.schedules import MOST_SIGMA
from attnguide.types import Step

_OTHER_LEVELS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")

LEAST_SIGNAL = 1 / MOST_SIGMA
"""Smallest signal by which a shift of the noise is divided; at signal 0 clean latents would move without bound.
"""


class FlowScheduler(NoiseScheduler):
    """A scheduler for a network that predicts the velocity of flow matching (https://arxiv.org/abs/2210.02747).

    Latents have the network's input scale and begin as unit noise. Where the network's time is 0 at noise and 1 at data
    (``invert_sigmas``), :attr:`~attnguide.types.Step.timestep` still falls from 1000 to 0.

    Args:
        scheduler: A new scheduler of diffusers, which must not be used elsewhere.
        steps: Denoising steps.
        device: Device of the latents.
        sigmas: Sigmas before the schedule's own shift, where the model's pipeline passes them.
        mu: Shift ``mu`` by picture size, where the schedule has dynamic shifting (:func:`size_shift`).

    Raises:
        ValueError: If the scheduler's class or configuration is not supported, or it cannot make this many steps.
    """

    def __init__(
        self,
        scheduler: Any,
        steps: int,
        device: torch.device,
        *,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        self._asked_sigmas, self._mu = sigmas, mu
        super().__init__(scheduler, steps, device)

    def _check_kind(self, scheduler: Any) -> None:
        name, config = type(scheduler).__name__, scheduler.config
        choose = f"choose another by name: {', '.join(FLOW_NAMES)}"
        if name not in FLOW_CLASSES:
            raise ValueError(f"Scheduler {name} is not supported for a network trained by flow matching; {choose}.")
        if name.startswith("FlowMatch"):
            if config.get("scale_factors"):
                raise ValueError(
                    f"Scheduler {name} changes the latents' size (scale_factors), which is not supported; {choose}."
                )
            return
        if not config.get("use_flow_sigmas") or config.prediction_type != "flow_prediction":
            raise ValueError(
                f"Scheduler {name} must be set up for flow matching (use_flow_sigmas, prediction_type='flow_prediction'); "
                f"{choose}."
            )
        levels = [level for level in _OTHER_LEVELS if config.get(level)]
        if levels:  # such noise levels are for variance-preserving networks
            raise ValueError(f"Scheduler {name} has no noise levels of flow matching with {levels[0]}; {choose}.")

    def _set_timesteps(self, steps: int, device: torch.device) -> None:
        accepts = inspect.signature(self._scheduler.set_timesteps).parameters
        settings: dict[str, Any] = {"num_inference_steps": steps, "device": device}
        if self._asked_sigmas is not None and "sigmas" in accepts:
            settings["sigmas"] = np.asarray(self._asked_sigmas, dtype=np.float64)
        if self._scheduler.config.get("use_dynamic_shifting") and "mu" in accepts:
            if self._mu is None:
                raise ValueError(
                    f"{self.name} shifts its noise levels with the picture's size, but by how much is not said (mu)."
                )
            settings["mu"] = self._mu
        self._set_or_say(steps, **settings)
        # With two equal first timesteps diffusers would begin at the second.
        self._scheduler.set_begin_index(0)

    def _levels(self) -> Sequence[tuple[float, float, float]]:
        shares = self._scheduler.sigmas.tolist()[: len(self._timesteps)]
        if self._inverted:
            shares = [1 - share for share in shares]
            return [(1000 * share, 1 - share, share) for share in shares]
        told = self._timesteps.tolist()
        return [(float(time), 1 - share, share) for time, share in zip(told, shares, strict=True)]

    @property
    def _inverted(self) -> bool:
        return bool(self._scheduler.config.get("invert_sigmas"))

    @property
    def prediction_type(self) -> str:
        return "flow_prediction"

    def denoised(self, noise_pred: Tensor, inputs: Tensor, step: Step) -> Tensor:
        return inputs + step.noise * noise_pred if self._inverted else inputs - step.noise * noise_pred

    def shift_noise(self, noise_pred: Tensor, shift: Tensor, step: Step) -> Tensor:
        """Add ``shift`` to the noise ``eps = x + signal v`` that the velocity ``v`` implies.

        At fixed latents ``x`` the velocity moves by ``shift / signal`` and the clean latents by ``-shift noise / signal``, with
        the signal taken as at least :data:`LEAST_SIGNAL`.
        """
        moved = shift / max(step.signal, LEAST_SIGNAL)
        return noise_pred - moved if self._inverted else noise_pred + moved


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler of diffusers is for flow matching."""
    config = scheduler.config
    flowing = config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
    return type(scheduler).__name__.startswith("FlowMatch") or bool(flowing)


def size_shift(tokens: int, config: Mapping[str, Any]) -> float:
    """The shift ``mu`` of a schedule that depends on the picture's size (https://arxiv.org/abs/2403.03206, 5.3.2).

    Linear in the number of image tokens, from ``base_shift`` at ``base_image_seq_len`` to ``max_shift`` at
    ``max_image_seq_len``, as in the pipelines of diffusers.

    Args:
        tokens: Number of image tokens.
        config: Configuration of the scheduler.
    """
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    base, most = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    slope = (most - base) / (high - low)
    return float(tokens * slope + (base - slope * low))


def named_flow_scheduler(name: str, config: Mapping[str, Any], mu: float | None = None) -> Any:
    """A scheduler of diffusers by name, for a flow-matching model whose own scheduler has this configuration.

    Args:
        name: Scheduler name as a user writes it.
        config: Configuration of the model's own scheduler.
        mu: Shift by picture size, if the model's own scheduler has dynamic shifting.

    Raises:
        ValueError: If the name is unknown, or there is no such scheduler for flow matching.
    """
    import diffusers

    choice = flow_choice(name)
    kind = getattr(diffusers, choice.class_name)
    shift = _shift(config, mu)
    trained = {"num_train_timesteps": config.get("num_train_timesteps", 1000)}
    if choice.class_name in ("FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler"):
        taken = {key: value for key, value in config.items() if key in inspect.signature(kind.__init__).parameters}
        taken.setdefault("shift", shift)
        return kind(**{**taken, **choice.options})
    if choice.class_name == "FlowMatchHeunDiscreteScheduler":
        return kind(**trained, shift=shift)
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift}
    return kind(**trained, **flow, **choice.options)


def _shift(config: Mapping[str, Any], mu: float | None) -> float:
    """Factor ``f`` of the shift ``s -> f s / (1 + (f - 1) s)``; ``exp(mu)`` or ``mu`` for a shift by size."""
    if not config.get("use_dynamic_shifting"):
        return float(config.get("shift", config.get("flow_shift", 1.0)))
    if mu is None:
        raise ValueError("The schedule shifts with the picture's size, but by how much is not said (mu).")
    return mu if config.get("time_shift_type") == "linear" else math.exp(mu)


def make_flow(
    own: Any,
    name: str | None,
    steps: int,
    device: torch.device,
    *,
    sigmas: Sequence[float] | None = None,
    mu: float | None = None,
) -> FlowScheduler:
    """A scheduler for a flow-matching model, set to a number of steps and tried on blank latents.

    Args:
        own: The pipeline's own scheduler.
        name: Name of another scheduler; the pipeline's own when ``None``.
        steps: Denoising steps.
        device: Device of the latents.
        sigmas: As for :class:`FlowScheduler`.
        mu: As for :class:`FlowScheduler`.

    Raises:
        ValueError: If the name is unknown, or the scheduler does not fit the network or cannot make this many steps.
    """
    if name is not None and not is_flow(own):
        told = f"the pipeline's own, {type(own).__name__}, is none of flow matching"
        raise ValueError(f"Scheduler {name!r} cannot be set up: {told}, with which the network was trained.")
    chosen = unpatched_copy(own) if name is None else named_flow_scheduler(name, written_config(own), mu)
    made = FlowScheduler(chosen, steps, device, sigmas=sigmas, mu=mu)
    made.check()
    return made
