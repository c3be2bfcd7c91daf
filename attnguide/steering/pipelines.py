"""Table of diffusers pipelines that can be steered, and how each calls its network."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from attnguide.models.base import ModelAdapter
from attnguide.models.support import adapter_class
from attnguide.steering import transformer_forms as forms
from attnguide.steering.errors import SteerError
from attnguide.steering.forms import UNET, CallForm
from attnguide.steering.unet_forms import EDITING, EDITING_XL, KINDS, KINDS_XL, MODULAR_XL


@dataclass(frozen=True)
class Known:
    """A pipeline that can be steered from inside.

    Attributes:
        family: Supported pipeline whose adapter fits this one's network and text encoders.
        form: How the pipeline calls its network.
    """

    family: str
    form: CallForm


_SD, _XL = Known("StableDiffusionPipeline", UNET), Known("StableDiffusionXLPipeline", UNET)

_WITH_PICTURE = ("", "Img2Img", "Inpaint")
_TRANSFORMERS: Mapping[str, tuple[CallForm, tuple[str, ...]]] = {
    "PixArtAlpha": (forms.PIXART, ("",)),
    "PixArtSigma": (forms.PIXART, ("", "PAG")),
    "StableDiffusion3": (forms.SD3, (*_WITH_PICTURE, "ControlNet", "ControlNetInpainting", "PAG", "PAGImg2Img")),
    "Flux": (
        forms.FLUX,
        (
            *(f"{net}{kind}" for net in ("", "Control", "ControlNet") for kind in _WITH_PICTURE),
            "Fill",
            "Kontext",
            "KontextInpaint",
        ),
    ),
    "Chroma": (forms.CHROMA, _WITH_PICTURE),
    "Flux2": (forms.FLUX2, ("",)),
    "Flux2Klein": (forms.FLUX2_KLEIN, ("", "Inpaint")),
    "AuraFlow": (forms.AURAFLOW, ("",)),
    "Lumina2": (forms.LUMINA2, ("",)),
    "QwenImage": (forms.QWEN_IMAGE, (*_WITH_PICTURE, "ControlNet", "ControlNetInpaint")),
    "QwenImage21": (forms.QWEN_IMAGE_21, ("",)),
    "Krea2": (forms.KREA2, ("",)),
    "ZImage": (forms.Z_IMAGE, (*_WITH_PICTURE, "ControlNet")),
}
"""Transformer families by prefix of their pipelines' class names, with call form and name infixes."""

PIPELINES: Mapping[str, Known] = {
    **{f"StableDiffusion{kind}Pipeline": _SD for kind in KINDS},
    **{f"LatentConsistencyModel{kind}Pipeline": _SD for kind in ("", "Img2Img")},
    "StableDiffusionInstructPix2PixPipeline": Known(_SD.family, EDITING),
    **{f"StableDiffusionXL{kind}Pipeline": _XL for kind in KINDS_XL},
    "StableDiffusionXLInstructPix2PixPipeline": Known(_XL.family, EDITING_XL),
    "StableDiffusionXLModularPipeline": Known(_XL.family, MODULAR_XL),
    **{
        f"{family}{kind}Pipeline": Known(f"{family}Pipeline", form)
        for family, (form, kinds) in _TRANSFORMERS.items()
        for kind in kinds
    },
}
"""Pipelines by class name; derived classes are refused, since they may call their network in another way."""

_WHY: dict[str, str] = {
    r"AnimateDiff|Video|Wan|LTX|CogVideo|Mochi|PIA|I2V|T2V": "its network reads frames beside one another",
    r"Cascade|Wuerstchen|Kandinsky|UnCLIP|^IF": "it makes a picture in stages of several networks",
    r"Sana": "its self-attention is linear, without a map",
    r"Upscale": "its network reads a small picture and a noise level",
    r"^QwenImage(Edit|Layered)|Omni": "its text encoder reads pictures too, among which words have other places",
    r"KleinKV": "its network keeps keys and values of pictures from step to step",
    r"Redux": "it makes text states, no pictures: call it before the block, and a FluxPipeline with what it gives inside",
    r"Modular": "modular pipelines have no call to follow",
    r"GLIGENTextImage": "it calls its network with and without its boxes in one step",
}
"""Why some kinds of pipelines cannot be steered, by a pattern in their names."""


def known_pipeline(pipeline: Any) -> Known:
    """Entry of :data:`PIPELINES` for a pipeline.

    Raises:
        SteerError: If its class is not in the table or not diffusers' own, naming it.
    """
    kind = type(pipeline)
    found = PIPELINES.get(kind.__name__)
    if found is not None and kind.__module__.startswith("diffusers."):
        return found
    name = kind.__name__
    if found is not None:
        base = next((one.__name__ for one in kind.__mro__ if one.__module__.startswith("diffusers.")), name)
        raise SteerError(
            f"{name} of {kind.__module__} is not diffusers' own and may call its network in another way; hand over "
            f"{base}.from_pipe(pipeline)."
        )
    if isinstance(pipeline, ModelAdapter):
        raise SteerError(f"{name} is a model of attnguide around a pipeline; hand over that one, model.pipeline.")
    parent = next((one.__name__ for one in kind.__mro__[1:] if one.__name__ in PIPELINES), None)
    why = next((f" ({reason})" for pattern, reason in _WHY.items() if re.search(pattern, name)), "")
    way = f"; hand over {parent}.from_pipe(pipeline), if that is what it should do" if parent else ""
    families = ", ".join(dict.fromkeys(known.family.removesuffix("Pipeline") for known in PIPELINES.values()))
    near = difflib.get_close_matches(name, PIPELINES, 2)
    meant = f", nearest {' and '.join(near)}" if near else ""
    raise SteerError(
        f"{name} cannot be steered from inside{why}{way}. Known are {len(PIPELINES)} pipelines of {families}{meant}: "
        "docs/known_pipelines.md."
    )


def adapter_of(pipeline: Any, known: Known) -> type[ModelAdapter]:
    """The family's adapter class."""
    return adapter_class(known.family)
