"""A steered pipeline makes the latents of our own loop, to the bit: the same operations in the same batch."""

from typing import Any

import pytest
import torch

import attnguide
from tests import tiny
from tests.models import families
from tests.steering.watch import Methods, ours, parts, steered, with_scheduler

MOVING: Methods = [("mask_guidance", {"step_size": 40.0})]
EDITING: Methods = [("inject5", {"start": 0.0})]
BOTH: Methods = [*MOVING, ("forward_layout", {})]
SHIFTING: Methods = [("mask_guidance", {"space": "noise", "step_size": 400.0})]
FUSED: Methods = [("mask_guidance", {"space": "noise", "step_size": 400.0, "fused": True})]
STABLE: Methods = [("stable", {"attempts": 1, "guide": True})]

PAIRS: list[tuple[str | None, Methods]] = [
    (None, []),
    (None, [("pag", {})]),
    (None, [("regional_prompts", {})]),
    (None, [("paint_with_words", {})]),
    ("euler", BOTH),
    ("euler_a", MOVING),
    ("dpmpp_2m", STABLE),
    ("heun", BOTH),
    ("unipc", MOVING),
    ("plms", [("attend_and_excite", {"max_refinements": 1})]),
    ("dpmpp_2m_sde", FUSED),
    ("lcm", EDITING),
    ("sa_solver", MOVING),
    ("kdpm2", SHIFTING),
]


@pytest.mark.parametrize(
    ("scheduler", "methods"), PAIRS, ids=[f"{name}-{'+'.join(one for one, _ in methods) or 'plain'}" for name, methods in PAIRS]
)
def test_latents_are_those_of_our_own_loop(scheduler: str | None, methods: Methods) -> None:
    pipeline = with_scheduler(tiny.shared_pipeline(), scheduler)
    (result,) = ours(pipeline, methods)
    before = parts(pipeline)
    latents, run = steered(pipeline, methods)
    assert torch.equal(latents[0], result.latents)
    assert parts(pipeline) == before
    assert run.cost[0].unet_forwards == result.cost.unet_forwards
    assert run.cost[0].unet_backwards == result.cost.unet_backwards
    assert [one.status for one in run.results] == [result.status]


def test_two_pictures_in_a_batch() -> None:
    pipeline = with_scheduler(tiny.shared_pipeline(), "unipc")
    found, _ = steered(pipeline, BOTH, rows=2)
    expected = ours(pipeline, BOTH, seeds=(3, 4))
    assert all(torch.equal(latents, result.latents) for latents, result in zip(found, expected, strict=True))


@pytest.mark.parametrize("weight", [1.0, 5.0])
def test_stable_diffusion_xl(weight: float) -> None:
    pipeline = families.shared("sdxl")
    (result,) = ours(pipeline, BOTH, cfg_scale=weight)
    latents, _ = steered(pipeline, BOTH, guidance_scale=weight)
    assert torch.equal(latents[0], result.latents)


DRAWING: dict[str, dict[str, Any]] = {
    "initno": {"rounds": 2, "iterations": 1, "last_iterations": 1, "max_refinements": 0},
    "saga": {"iterations": 2},
}


@pytest.mark.parametrize("method", DRAWING)
def test_methods_that_draw_noise_go_on_from_that_of_the_latents(method: str) -> None:
    pipeline = with_scheduler(tiny.shared_pipeline(), "euler")
    (result,) = ours(pipeline, [(method, DRAWING[method])])
    latents, _ = steered(pipeline, [(method, DRAWING[method])])
    assert torch.equal(latents[0], result.latents)


def test_nothing_asked_for_is_the_plain_call() -> None:
    pipeline = tiny.shared_pipeline()
    settings: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent"}
    plain = pipeline(tiny.PROMPT, generator=torch.Generator().manual_seed(1), **settings).images
    with attnguide.steer(pipeline) as run:
        found = pipeline(tiny.PROMPT, generator=torch.Generator().manual_seed(1), **settings).images
    assert torch.equal(found, plain)
    assert run.cost[0].unet_forwards == 4
