"""What a steered pipeline and our own loop make of the same noise, and what a pipeline is made of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import attnguide
from attnguide.models.schedulers import named_scheduler, written_config
from attnguide.types import MethodConfig, SampleResult
from tests import tiny

REGIONS = {"red cat": (0.0, 0.0, 0.5, 1.0), "blue ball": (0.5, 0.25, 1.0, 1.0)}

Methods = list[tuple[str, dict[str, Any]]]


def configs(methods: Methods) -> list[MethodConfig]:
    return [MethodConfig(name, options) for name, options in methods]


def with_scheduler(pipeline: Any, name: str | None) -> Any:
    """A pipeline on the same parts, with a scheduler of its own."""
    own = pipeline.scheduler
    scheduler = type(own).from_config(own.config) if name is None else named_scheduler(name, written_config(own))
    other = type(pipeline)(**{**pipeline.components, "scheduler": scheduler, **_unchecked(pipeline)})
    other.set_progress_bar_config(disable=True)
    return other


def _unchecked(pipeline: Any) -> dict[str, Any]:
    return {"requires_safety_checker": False} if "safety_checker" in pipeline.components else {}


def ours(pipeline: Any, methods: Methods, *, seeds: tuple[int, ...] = (3,), **settings: Any) -> list[SampleResult]:
    """What our own loop makes."""
    given: dict[str, Any] = {"steps": 3, "cfg_scale": 5.0, **settings}
    return attnguide.sample(tiny.PROMPT, regions=REGIONS, method=configs(methods), seed=seeds, model=pipeline, **given)


def steered(pipeline: Any, methods: Methods, *, rows: int = 1, **settings: Any) -> tuple[Tensor, Any]:
    """Latents that the pipeline makes while it is steered, from the noise of seed 3 on, and the run."""
    with attnguide.steer(pipeline, regions=REGIONS, method=configs(methods), seed=3, maps=False) as run:
        noise = run.latents(rows)
        _, generators = run.drawn(rows)
        given = {"num_inference_steps": 3, "guidance_scale": 5.0, "num_images_per_prompt": rows, **settings}
        latents: Tensor = pipeline(tiny.PROMPT, latents=noise, generator=generators, output_type="latent", **given).images
    return latents, run


def parts(pipeline: Any) -> dict[str, Any]:
    """Everything that is replaced or changed while a pipeline is steered."""
    network = getattr(pipeline, "unet", None) or pipeline.transformer
    owners = {"pipeline": pipeline, "scheduler": pipeline.scheduler, "network": network}
    owners |= {name: getattr(pipeline, name) for name in ("image_processor", "controlnet") if getattr(pipeline, name, None)}
    methods = ("encode_prompt", "step", "scale_model_input", "forward", "postprocess", "maybe_free_model_hooks")
    found = {f"{name}.{method}": vars(owner).get(method) for name, owner in owners.items() for method in methods}
    processors = {
        f"processor of {name}": module.processor for name, module in network.named_modules() if hasattr(module, "processor")
    }
    hooks = {f"hooks of {name}": dict(module._forward_hooks) for name, module in network.named_modules()}
    grads = {f"gradient of {name}": weight.requires_grad for name, weight in network.named_parameters()}
    return {**found, **processors, **hooks, **grads, "grad": torch.is_grad_enabled()}
