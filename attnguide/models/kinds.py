"""Diffusers' pipeline classes for rows with input pictures, by family. Importing this needs no torch."""

from __future__ import annotations

from attnguide.inputs import Kind
from attnguide.models.names import FAMILIES, no_adapter


def _all_of(name: str) -> dict[Kind, str]:
    return {
        "img2img": f"{name}Img2ImgPipeline",
        "inpaint": f"{name}InpaintPipeline",
        "controlnet": f"{name}ControlNetPipeline",
        "controlnet_img2img": f"{name}ControlNetImg2ImgPipeline",
        "controlnet_inpaint": f"{name}ControlNetInpaintPipeline",
    }


PIPELINES: dict[str, dict[Kind, str]] = {
    "StableDiffusionPipeline": _all_of("StableDiffusion"),
    "StableDiffusionXLPipeline": _all_of("StableDiffusionXL"),
    "StableDiffusion3Pipeline": {"img2img": "StableDiffusion3Img2ImgPipeline", "inpaint": "StableDiffusion3InpaintPipeline"},
    "FluxPipeline": _all_of("Flux"),
}
"""Supported pipeline -> pipeline kind -> pipeline class built from the same parts."""

CONTROLNETS: dict[str, str] = {
    "StableDiffusionPipeline": "ControlNetModel",
    "StableDiffusionXLPipeline": "ControlNetModel",
    "FluxPipeline": "FluxControlNetModel",
}
"""Supported pipeline -> class of its ControlNets."""

SEEDLESS: dict[str, str] = {
    "StableDiffusion3Pipeline": "their pictures' latents are drawn from no generator, so that no seed gives a picture again"
}
"""Supported pipeline -> why rows cannot use its ControlNets (``attnguide.steer`` can, in the user's pipeline)."""

CENTRED: tuple[str, ...] = ("FluxPipeline",)
"""Supported pipelines whose ControlNets read pixels in [-1, 1]; ControlNets of others read [0, 1]."""

SINGLE: tuple[str, ...] = ("FluxPipeline",)
"""Supported pipelines whose rows take one control picture, since not all of their ControlNet pipelines take several."""

KEEPING: dict[str, int] = {"StableDiffusionPipeline": 4, "StableDiffusionXLPipeline": 4, "StableDiffusion3Pipeline": 16}
"""Supported pipeline -> latent channels for which its inpainting restores the kept area; all, if it is not listed."""

ROUNDING_UP: tuple[str, ...] = ("StableDiffusion3Pipeline", "FluxPipeline")
"""Supported pipelines whose relatives round ``strength * steps`` up: strength 0.6 of 4 steps makes 3 steps, elsewhere 2."""


def pipeline_name(pipeline: str, kind: Kind | None) -> str:
    """Diffusers class that makes rows of a kind with a supported pipeline's parts; that pipeline itself for text to image.

    Raises:
        ValueError: If the family has no pipeline of this kind.
    """
    if kind is None:
        return pipeline
    found = PIPELINES.get(pipeline, {}).get(kind)
    if found is None and pipeline not in FAMILIES:
        raise ValueError(no_adapter(pipeline))
    if found is None:
        able = ", ".join(name for name, kinds in PIPELINES.items() if kind in kinds)
        why = f" for tables ({SEEDLESS[pipeline]})" if pipeline in SEEDLESS else ""
        raise ValueError(f"{pipeline} has no pipeline for {kind}{why}; those that have one are {able}.")
    return found
