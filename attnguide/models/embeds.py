"""Text states as arguments of diffusers' pipeline calls, for pipelines that run outside of this package's loop."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from attnguide.models.sdxl import StableDiffusionXL
from attnguide.models.texts import encode_prompts
from attnguide.models.unet import StableDiffusion
from attnguide.text.parsing import shown
from attnguide.weighted import WeightedPrompt, read_weights, unweighted


def prompt_embeds(pipeline: Any, prompt: str | list[str], negative_prompt: str | list[str] | None = None) -> dict[str, Tensor]:
    """Text states of weighted prompts as keyword arguments of a pipeline: ``pipeline(**prompt_embeds(...))``.

    Prompts are read as ``prompt_syntax="weights"`` reads them: ``(word:1.3)``, ``[word]``, ``BREAK``, any length. All prompts
    and negative prompts get as many chunks as the longest. A row with the same prompts has the same states.

    Args:
        pipeline: A diffusers pipeline with a UNet and the text encoders of Stable Diffusion 1, 2 or XL.
        prompt: One prompt, or one per picture.
        negative_prompt: One for all prompts, or one per prompt; ``None`` for none, which SDXL treats otherwise than ``""``.

    Returns:
        ``prompt_embeds`` and ``negative_prompt_embeds``, ``batch tokens channels``; for SDXL also ``pooled_prompt_embeds``
        and ``negative_pooled_prompt_embeds``, ``batch channels``.

    Raises:
        ValueError: If the pipeline has no such parts, the numbers of prompts differ, or a prompt's syntax is wrong.

    Example:
        >>> from attnguide.models.load import load_model
        >>> states = prompt_embeds(load_model("shapes").pipeline, "a (red:1.3) circle")
        >>> {name: tuple(half.shape) for name, half in states.items()}
        {'prompt_embeds': (1, 32, 128), 'negative_prompt_embeds': (1, 32, 128)}
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    given = [negative_prompt] * len(prompts) if negative_prompt is None or isinstance(negative_prompt, str) else negative_prompt
    if len(given) != len(prompts):
        raise ValueError(f"negative_prompt must be one, or one for each of {len(prompts)} prompts; got {len(given)}.")
    second = getattr(pipeline, "text_encoder_2", None)
    if not hasattr(pipeline, "unet") or (second is None and getattr(pipeline, "text_encoder", None) is None):
        raise ValueError(
            "prompt_embeds is for pipelines with a UNet and CLIP's text encoders (Stable Diffusion 1, 2 and XL); got "
            f"{shown(type(pipeline).__name__)}."
        )
    family = StableDiffusion if second is None else StableDiffusionXL
    model = family(pipeline, type(pipeline).__name__)
    with model.exclusive():
        found = encode_prompts(model, [read_weights(one) for one in prompts], [_negative(one) for one in given])
    return dict(model.call_arguments(found))


def _negative(text: str | None) -> WeightedPrompt | None:
    return None if text is None else read_weights(text) if text else unweighted("")
