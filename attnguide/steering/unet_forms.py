"""Call forms of UNet pipelines that differ from the usual one, and names of pipelines that use the usual one."""

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
"""Name infixes of Stable Diffusion 1 and 2 pipelines that call the UNet once with both CFG halves."""

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
"""Name infixes of Stable Diffusion XL pipelines that call the UNet once with both CFG halves."""


def _three_halves(pipeline: Any, blocks: int) -> Halves:
    """InstructPix2Pix's three blocks: picture and prompt, picture alone, neither (https://arxiv.org/abs/2211.09800).

    The second is named ``source_uncond``, a branch that no method reads or edits here.
    """
    return (("cond", "source_uncond", "uncond"),) if blocks == 3 else (("cond",),)


def _three_texts(encoded: Sequence[Encoded], read: Any) -> Texts:
    """Text states where the encoder returns all three blocks in one tensor."""
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
    """The text-encoder block that a modular pipeline runs (its public ``blocks`` are copies)."""
    return pipeline._blocks.sub_blocks["text_encoder"]


def _guided_halves(pipeline: Any, blocks: int) -> Halves:
    """One call for each CFG half that the guider asks for, in its order.

    Raises:
        SteerError: If the guider asks for other predictions.
    """
    guider = pipeline.guider
    asked = guider._input_predictions[: guider.num_conditions]
    known: dict[str, tuple[Branch, ...]] = {"pred_cond": ("cond",), "pred_uncond": ("uncond",)}
    if not set(asked) <= known.keys():
        name = type(guider).__name__
        raise SteerError(f"The pipeline's guider {name} asks for predictions that cannot be told apart: {', '.join(asked)}.")
    return tuple(known[name] for name in asked)


def _repeated(encoded: Sequence[Encoded], states: Any) -> Texts:
    """Text states encoded once per prompt, repeated for its pictures as the pipeline does later."""
    cond, uncond = encoded[-1].answer[:2]
    each = max(1, len(states) // len(cond))

    def for_rows(half: Any) -> Any:
        return None if half is None else half.repeat_interleave(each, 0)

    return Texts(encoded[-1], for_rows(cond), for_rows(uncond))


MODULAR_XL = replace(UNET, encodes=_text_block, encoded=_repeated, halves=_guided_halves)
"""Modular pipelines of Stable Diffusion XL, whose guider runs the CFG halves one after the other."""
