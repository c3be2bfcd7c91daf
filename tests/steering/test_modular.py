"""Modular pipelines of Stable Diffusion XL, which call the network for each half that their guider asks for."""

from __future__ import annotations

import functools
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import attnguide
from tests import tiny
from tests.closeness import assert_close
from tests.models import families
from tests.steering.watch import REGIONS, Methods, configs, ours

BOTH: Methods = [("mask_guidance", {"step_size": 40.0}), ("forward_layout", {})]


@functools.cache
def pipeline() -> Any:
    """On the parts of the tiny pipeline, with a scheduler of its own."""
    parts = families.shared("sdxl").components
    names = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    built = diffusers.StableDiffusionXLAutoBlocks().init_pipeline()
    scheduler = type(parts["scheduler"]).from_config(parts["scheduler"].config)
    built.update_components(**{name: parts[name] for name in names}, scheduler=scheduler, guider=guider(5.0))
    built.set_progress_bar_config(disable=True)
    return built


def guider(scale: float) -> Any:
    return diffusers.ClassifierFreeGuidance(guidance_scale=scale)


def call(**settings: Any) -> Tensor:
    given = {"num_inference_steps": 2, "height": 32, "width": 32, "output_type": "latent", "output": "images", **settings}
    found: Tensor = pipeline()(prompt=tiny.PROMPT, generator=torch.Generator().manual_seed(1), **given)
    return found


def test_nothing_asked_for_and_strength_zero_are_the_plain_call() -> None:
    plain = call()
    with attnguide.steer(pipeline()):
        assert torch.equal(call(), plain)
    with attnguide.steer(pipeline(), regions=REGIONS, method="mask_guidance", scale=0.0) as run:
        assert torch.equal(call(), plain)
        assert run.calls == 1  # told by its pictures, as such a pipeline says nothing at its end
    block = pipeline()._blocks.sub_blocks["text_encoder"]
    assert "encode_prompt" not in vars(block) and "forward" not in vars(pipeline().unet) and run.notes == []


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_latents_are_close_to_those_of_our_own_loop(scale: float) -> None:
    """Not to the bit, as the halves are passes of their own."""
    pipeline().update_components(guider=guider(scale))
    with attnguide.steer(pipeline(), regions=REGIONS, method=configs(BOTH), seed=3, maps=False) as run:
        found = call(latents=run.latents(2), num_images_per_prompt=2, num_inference_steps=3)
    pipeline().update_components(guider=guider(5.0))
    expected = ours(families.shared("sdxl"), BOTH, seeds=(3, 4), cfg_scale=scale)
    assert run.cost[0].unet_forwards == expected[0].cost.unet_forwards
    for latents, result in zip(found, expected, strict=True):
        assert result.latents is not None
        assert_close(latents, result.latents)


def test_guiders_with_further_predictions_are_refused() -> None:
    other = guider(5.0)
    other._input_predictions = ["pred_cond", "pred_cond_skip"]
    pipeline().update_components(guider=other)
    try:
        with pytest.raises(attnguide.SteerError, match=r"guider ClassifierFreeGuidance asks for .*: pred_cond, pred_cond_skip"):
            with attnguide.steer(pipeline(), regions=REGIONS, method="mask_guidance"):
                call()
    finally:
        pipeline().update_components(guider=guider(5.0))


def test_methods_with_texts_of_their_own_are_refused() -> None:
    with pytest.raises(attnguide.SteerError, match=r"need the pipeline's encode_prompt\(\), which StableDiffusionXLModular"):
        with attnguide.steer(pipeline(), regions=REGIONS, method="regional_prompts"):
            call()
