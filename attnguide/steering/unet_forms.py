"""Pipelines around a UNet that call it in a way of their own, and names of those that do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from attnguide.steering.errors import SteerError
from attnguide.steering.forms import UNET, Encoded, Halves, Texts
from attnguide.types import Branch

KINDS = (
    "",
    "Img2Img",
    "Inpaint",
    "Depth2Img",
    "GLIGEN",
    "Adapter",
    *(f"ControlNet{kind}" for kind in ("", "Img2Img", "Inpaint")),
    *(f"PAG{kind}" for kind in ("", "Img2Img", "Inpaint")),
    *(f"ControlNetPAG{kind}" for kind in ("", "Inpaint")),
)
"""Pipelines of Stable Diffusion 1 and 2 that call the UNet in one batch, by what their names add."""

KINDS_XL = (
    "",
    "Img2Img",
    "Inpaint",
    "Adapter",
    *(f"ControlNet{kind}" for kind in ("", "Img2Img", "Inpaint")),
    *(f"ControlNetUnion{kind}" for kind in ("", "Img2Img", "Inpaint")),
    *(f"PAG{kind}" for kind in ("", "Img2Img", "Inpaint")),
    *(f"ControlNetPAG{kind}" for kind in ("", "Img2Img")),
)
"""Those of Stable Diffusion XL."""


def _three_halves(pipeline: Any, blocks: int) -> Halves:
    """The prompt, the picture that is edited under no words, and neither (https://arxiv.org/abs/2211.09800).

    The second of them is named as a half that no method reads or edits.
    """
    return (("cond", "source_uncond", "uncond"),) if blocks == 3 else (("cond",),)


def _three_texts(encoded: Sequence[Encoded], read: Any) -> Texts:
    """Where the encoder gives the states of all three halves in one tensor."""
    last, states = encoded[-1], encoded[-1].answer
    prompts = 1 if isinstance(last.prompt, str) else len(last.prompt or ())
    rows = prompts * last.images
    if last.prompt is None:  # the last two thirds are one negative prompt's
        third, rest = divmod(len(states), 3)
        rows = third if rest == 0 and torch.equal(states[third : 2 * third], states[2 * third :]) else len(states)
    return Texts(last, states[:rows], states[2 * rows :] if len(states) == 3 * rows else None)


EDITING_XL = replace(UNET, halves=_three_halves)
"""InstructPix2Pix on Stable Diffusion XL."""

EDITING = replace(EDITING_XL, encoder="_encode_prompt", encoded=_three_texts)
"""InstructPix2Pix on Stable Diffusion 1."""


def _text_block(pipeline: Any) -> Any:
    """The block of a modular pipeline that encodes prompts; the one that runs, of which the pipeline hands out copies."""
    return pipeline._blocks.sub_blocks["text_encoder"]


def _guided_halves(pipeline: Any, blocks: int) -> Halves:
    """A call for each half that the guider asks for, the conditional one first.

    Raises:
        SteerError: If the guider asks for others.
    """
    guider = pipeline.guider
    asked = guider._input_predictions[: guider.num_conditions]
    known: dict[str, tuple[Branch, ...]] = {"pred_cond": ("cond",), "pred_uncond": ("uncond",)}
    if not set(asked) <= known.keys():
        name = type(guider).__name__
        raise SteerError(f"The pipeline's guider {name} asks for predictions that cannot be told apart: {', '.join(asked)}.")
    return tuple(known[name] for name in asked)


def _repeated(encoded: Sequence[Encoded], states: Any) -> Texts:
    """Where states are encoded once a prompt and repeated for its pictures later."""
    cond, uncond = encoded[-1].answer[:2]
    each = max(1, len(states) // len(cond))

    def for_rows(half: Any) -> Any:
        return None if half is None else half.repeat_interleave(each, 0)

    return Texts(encoded[-1], for_rows(cond), for_rows(uncond))


MODULAR_XL = replace(UNET, encodes=_text_block, encoded=_repeated, halves=_guided_halves)
"""Modular pipelines of Stable Diffusion XL, whose guider has the halves computed one after the other."""
