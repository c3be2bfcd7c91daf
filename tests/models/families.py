"""Pipelines of every family with random weights, small enough to be built and sampled in a second, without a download.

Latents are half as large as pictures, and maps of 32 x 32 pixels have 8 x 8 cells, unless a family says otherwise.
Attention is sharpened, since random weights alone would attend to every word alike. Classes of the libraries are looked up when
a pipeline is built, as older versions know fewer families.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import diffusers
import torch
import torch.nn.functional as F

from attnguide.types import Sample
from tests import tiny
from tests.models import clip_and_t5, language_models  # noqa: F401  (they register their families)
from tests.models.parts import BUILDERS


def available() -> list[str]:
    """Families that the installed diffusers knows, in the order of this file."""
    return [name for name, (pipeline, _) in BUILDERS.items() if hasattr(diffusers, pipeline)]


def build(family: str, seed: int = 0) -> Any:
    """A new pipeline of a family."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        built = BUILDERS[family][1]()
    built.set_progress_bar_config(disable=True)
    return built


def sample(family: str, prompt: str | list[str] = tiny.PROMPT, *, pipeline: Any = None, **settings: Any) -> Any:
    """Latents that a family's own pipeline makes, or another on its parts, as it lays them out.

    Two steps, 8 x 8 cells unless told otherwise.
    """
    pipeline = shared(family) if pipeline is None else pipeline
    own = {"use_resolution_binning": False} if family.startswith("pixart") else {}
    side = 128 if family == "qwen_image_21" else 32
    common = {"num_inference_steps": 2, "height": side, "width": side, "output_type": "latent"}
    accepts = inspect.signature(pipeline.__call__).parameters
    common = {key: value for key, value in common.items() if key in accepts}  # some take the size of a picture they are given
    if family != "flux2_klein" or settings.get("output_type") == "pil":
        return pipeline(prompt=prompt, **{**common, **own, **settings})[0]
    seen: list[torch.Tensor] = []  # what it returns as latents is the autoencoder's already

    def see(pipeline: Any, step: int, timestep: Any, state: dict[str, Any]) -> dict[str, Any]:
        seen.append(state["latents"].clone())
        return state

    pipeline(prompt=prompt, **{**common, **settings}, callback_on_step_end=see)
    return seen[-1]


@functools.cache
def shared(family: str) -> Any:
    """One pipeline for all tests that leave it as it is."""
    return build(family)


_SCALES = {
    "qwen_image": ("true_cfg_scale", 0.0),
    "qwen_image_21": ("true_cfg_scale", 0.0),
    "z_image": ("guidance_scale", -1.0),
    "krea2": ("guidance_scale", -1.0),
}
"""Name of a pipeline's weight of classifier-free guidance, and what it differs by from ``cfg_scale``."""

_DRAWN_OTHERWISE = ("krea2", "qwen_image_21", "lumina2")
"""Families whose pipelines draw noise in the network's layout or for an autoencoder of its own size."""


def peer(family: str, row: Sample, adapter: Any, *, pipeline: Any = None) -> torch.Tensor:
    """Latents ``channels height width`` that a family's own pipeline makes of a plain row.

    Args:
        family: Which.
        row: With a size.
        adapter: Of the family's shared pipeline, for the layout of latents.
        pipeline: Another one of the family.
    """
    channels, height, width = adapter.latent_shape(row.height, row.width)
    generator = torch.Generator().manual_seed(row.seed)
    name, less = _SCALES.get(family, ("guidance_scale", 0.0))
    settings: dict[str, Any] = {name: row.cfg_scale + less, "generator": generator}
    if family in _DRAWN_OTHERWISE:
        noise = torch.randn(1, channels, height, width, generator=generator)
        settings["latents"] = noise if family == "lumina2" else packed(noise, adapter.patch)
    if family == "qwen_image_21":
        settings["use_kv_cache"] = False  # it computes the text's part once, and so other sums
    if family.startswith("flux_"):
        settings["true_cfg_scale"] = row.true_cfg_scale
    negative = "" if name == "true_cfg_scale" and row.cfg_scale > 1 else None
    negative = negative if row.negative_prompt is None else row.negative_prompt
    settings |= {} if negative is None else {"negative_prompt": negative}
    size = {"height": row.height, "width": row.width, "num_inference_steps": row.steps}
    return unpacked(sample(family, row.prompt, pipeline=pipeline, **size, **settings), height, width)[0]


def packed(latents: torch.Tensor, side: int) -> torch.Tensor:
    """Latents ``batch channels height width`` as tokens of ``side x side`` cells, ``batch tokens channels``."""
    return F.pixel_unshuffle(latents, side).flatten(2).transpose(1, 2)


def unpacked(found: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Latents as pipelines hand them out, tokens ``batch tokens channels`` for some, as ``batch channels height width``.

    Args:
        found: From :func:`sample`.
        height: Of the latents.
        width: Of the latents.
    """
    if found.ndim == 4:
        return found
    side = round((height * width / found.shape[1]) ** 0.5)
    return F.pixel_shuffle(found.transpose(1, 2).unflatten(2, (height // side, width // side)), side)
