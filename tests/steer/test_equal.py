"""A steered pipeline makes the latents of our own loop, to the bit: the same operations in the same batch."""

from typing import Any

import pytest
import torch

import attnguide
from tests import tiny
from tests.models import families
from tests.steer import pipelines
from tests.steer.watch import REGIONS, Methods, ours, parts, steered, with_scheduler

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
    ("euler_a", SHIFTING),
    ("dpmpp_2m", STABLE),
    ("heun", BOTH),
    ("unipc", MOVING),
    ("plms", [("attend_and_excite", {})]),
    ("dpmpp_2m_sde", FUSED),
    ("lcm", EDITING),
    ("sa_solver", MOVING),
    ("kdpm2", [("layout_guidance", {})]),
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


@pytest.mark.parametrize("name", ["sd_img2img", "sd_inpaint", "sd_inpaint_9", "sdxl_img2img", "sdxl_inpaint"])
class TestPicturesToBeginWith:
    """Pipelines that our own loop does not make: img2img and inpainting, with UNets of 4 and 9 channels."""

    def test_strength_zero_is_the_plain_call(self, name: str) -> None:
        pipeline = pipelines.shared(name)
        before = parts(pipeline)
        plain = pipelines.sample(name)
        with attnguide.steer(pipeline, regions=REGIONS, method="mask_guidance", scale=0.0, stop=1.0):
            steered = pipelines.sample(name)
        assert torch.equal(steered, plain)
        assert parts(pipeline) == before

    def test_the_loss_falls(self, name: str) -> None:
        pipeline = pipelines.shared(name)
        options = {"step_size": 40.0, "iterations": 3, "stop": 1.0}
        with attnguide.steer(pipeline, regions=REGIONS, method="mask_guidance", **options) as run:
            latents = pipelines.sample(name)
        first, _, third, *later = [event.losses[0] for event in run.updates]
        assert third < first and len(later) == 3  # four steps at strength 0.6 are two
        assert not torch.equal(latents, pipelines.sample(name))
        assert set(run.maps) == set(REGIONS)
        rows, height, width = run.maps["red cat"].shape
        assert rows == 1 and 2 * width == 3 * height


def test_nothing_asked_for_is_the_plain_call() -> None:
    pipeline = tiny.shared_pipeline()
    settings: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent"}
    plain = pipeline(tiny.PROMPT, generator=torch.Generator().manual_seed(1), **settings).images
    with attnguide.steer(pipeline) as run:
        found = pipeline(tiny.PROMPT, generator=torch.Generator().manual_seed(1), **settings).images
    assert torch.equal(found, plain)
    assert run.cost[0].unet_forwards == 4
