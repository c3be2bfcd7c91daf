"""Which pipelines of diffusers make rows with input pictures, family by family. Importing this needs no torch."""

from __future__ import annotations

from attnguide.inputs import Kind


def _unet(name: str) -> dict[Kind, str]:
    return {
        "img2img": f"{name}Img2ImgPipeline",
        "inpaint": f"{name}InpaintPipeline",
        "controlnet": f"{name}ControlNetPipeline",
        "controlnet_img2img": f"{name}ControlNetImg2ImgPipeline",
        "controlnet_inpaint": f"{name}ControlNetInpaintPipeline",
    }


PIPELINES: dict[str, dict[Kind, str]] = {
    "StableDiffusionPipeline": _unet("StableDiffusion"),
    "StableDiffusionXLPipeline": _unet("StableDiffusionXL"),
}
"""Supported pipeline -> how a row is made -> the class that makes it of the same parts."""

CONTROLNETS: dict[str, str] = {
    "StableDiffusionPipeline": "ControlNetModel",
    "StableDiffusionXLPipeline": "ControlNetModel",
}
"""Supported pipeline -> class of its ControlNets."""


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
