"""Which pipelines of diffusers make rows with input pictures, family by family. Importing this needs no torch."""

from __future__ import annotations

from attnguide.inputs import Kind


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
    "FluxPipeline": {"img2img": "FluxImg2ImgPipeline", "inpaint": "FluxInpaintPipeline"},
}
"""Supported pipeline -> how a row is made -> the class that makes it of the same parts.

ControlNets of transformers read latents of their pictures that are drawn from no generator, so that no seed gives a picture
again.
"""

CONTROLNETS: dict[str, str] = {
    "StableDiffusionPipeline": "ControlNetModel",
    "StableDiffusionXLPipeline": "ControlNetModel",
}
"""Supported pipeline -> class of its ControlNets."""

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
    if found is None:
        able = [name for name, kinds in PIPELINES.items() if kind in kinds]
        raise ValueError(f"{pipeline} has no pipeline for {kind}; those that have one are {', '.join(able)}.")
    return found
