"""Prompts with weights inside a pipeline's own call: words stand where the given states have them."""

from typing import Any

import pytest
import torch

import attnguide
from tests import tiny
from tests.models import xl

TEXT = "a (red cat:1.3), " * 6 + "a [dog] and a (blue ball:0.7)"
REGIONS = {"dog": (0, 0, 0.5, 1), "blue ball": (0.5, 0.2, 1, 1)}
CALL: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 5.0, "output_type": "latent"}


@pytest.mark.parametrize("family", ["sd", "xl"])
@pytest.mark.parametrize("method", ["mask_guidance", "forward_layout"])
def test_latents_are_those_of_our_loop(family: str, method: str) -> None:
    pipeline = xl.pipeline() if family == "xl" else tiny.pipeline()
    common: dict[str, Any] = {"regions": REGIONS, "method": method, "seed": 3, "prompt_syntax": "weights"}
    (expected,) = attnguide.sample(TEXT, model=pipeline, steps=2, **common)
    with attnguide.steer(pipeline, TEXT, maps=False, **common) as run:
        states = attnguide.prompt_embeds(pipeline, TEXT)
        found = pipeline(**states, latents=run.latents(1), **CALL).images
    assert expected.latents is not None and torch.equal(found[0], expected.latents)


def test_states_with_more_chunks_than_the_prompt_needs_are_followed() -> None:
    pipeline, long = tiny.pipeline(), "a ball, " * 12
    states = attnguide.prompt_embeds(pipeline, "a (red cat:1.3) and a dog", long)
    with attnguide.steer(
        pipeline, "a (red cat:1.3) and a dog", regions={"dog": (0, 0, 0.5, 1)}, prompt_syntax="weights"
    ) as run:
        pipeline(**states, **CALL)
    assert run.maps["dog"].shape == (1, 16, 16) and run.results[0].sample.text == "a red cat and a dog"


def test_text_that_the_pipeline_would_read_as_letters_is_refused() -> None:
    pipeline = tiny.pipeline()
    with pytest.raises(attnguide.SteerError, match=r"it was called with text, whose signs it reads as letters"):
        with attnguide.steer(pipeline, TEXT, regions=REGIONS, prompt_syntax="weights"):
            pipeline(TEXT, **CALL)
    with pytest.raises(attnguide.SteerError, match="read prompts of any length with prompt_syntax='weights'"):
        with attnguide.steer(pipeline, "a dog and a blue ball", regions=REGIONS):
            pipeline(**attnguide.prompt_embeds(pipeline, TEXT), **CALL)
    with pytest.raises(ValueError, match="is never closed"):
        with attnguide.steer(pipeline, "a (dog", regions={"dog": None}, prompt_syntax="weights"):
            pass
