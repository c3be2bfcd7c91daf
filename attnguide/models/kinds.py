"""Which pipelines of diffusers make rows with input pictures, family by family. Importing this needs no torch."""

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
"""Supported pipeline -> how a row is made -> the class that makes it of the same parts."""

CONTROLNETS: dict[str, str] = {
    "StableDiffusionPipeline": "ControlNetModel",
    "StableDiffusionXLPipeline": "ControlNetModel",
    "FluxPipeline": "FluxControlNetModel",
}
"""Supported pipeline -> class of its ControlNets."""

SEEDLESS: dict[str, str] = {
    "StableDiffusion3Pipeline": "their pictures' latents are drawn from no generator, so that no seed gives a picture again"
}
"""Supported pipeline -> why rows cannot have its ControlNets, which attnguide.steer takes in a pipeline of the user's."""

CENTRED: tuple[str, ...] = ("FluxPipeline",)
"""Supported pipelines whose ControlNets read pixels in [-1, 1]; those of others read [0, 1]."""

SINGLE: tuple[str, ...] = ("FluxPipeline",)
"""Supported pipelines whose relatives cannot mix ControlNets in all kinds of rows."""

KEEPING: dict[str, int] = {"StableDiffusionPipeline": 4, "StableDiffusionXLPipeline": 4, "StableDiffusion3Pipeline": 16}
"""Supported pipeline -> latent channels of the networks with which its inpainting keeps what a mask keeps; any if not here."""

ROUNDING_UP: tuple[str, ...] = ("StableDiffusion3Pipeline", "FluxPipeline")
"""Supported pipelines whose relatives make a step for a part of one: ``strength`` .6 of 4 steps is 3, and else 2."""


def pipeline_name(pipeline: str, kind: Kind | None) -> str:
    """The class of diffusers that makes rows of a kind with the parts of a supported pipeline; its own for text to image.

    Raises:
        ValueError: If the family has none.
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
