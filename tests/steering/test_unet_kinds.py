"""Pipelines around a UNet that our own loop does not make: plain at strength zero, and guided by guidance."""

import warnings
from typing import Any

import pytest
import torch

import attnguide
from tests import tiny
from tests.closeness import assert_close
from tests.steering import pipelines, unets
from tests.steering.watch import REGIONS, parts

KINDS = [name for name in pipelines.KINDS if name.startswith("sd_") or name.startswith("sdxl_")] + list(unets.KINDS)
BEGINNING = ("refiner", "lcm", "depth", *(name for name in KINDS if "img2img" in name or "inpaint" in name))
"""Kinds that make a part of the steps that they are asked for."""

GUIDANCE: dict[str, Any] = {"method": "mask_guidance", "iterations": 2, "stop": 1.0}


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_is_steered(name: str) -> None:
    pipeline, steps = unets.pipeline_of(name), {"num_inference_steps": 2 if name in BEGINNING else 1}
    plain = unets.sample(name, **steps)
    before = parts(pipeline)
    with attnguide.steer(pipeline, regions=REGIONS, scale=0.0, **GUIDANCE):
        assert torch.equal(unets.sample(name, **steps), plain)
    with attnguide.steer(pipeline, regions=REGIONS, step_size=40.0, **GUIDANCE) as run:
        guided = unets.sample(name, **steps)
    assert parts(pipeline) == before
    losses = [event.losses[0] for event in run.updates]
    assert losses[1] < losses[0] and not torch.equal(guided, plain)
    assert run.results[0].status == "ok" and run.notes == []
    rows, height, width = run.maps["red cat"].shape
    assert rows == 1 and 2 * width == 3 * height


@pytest.mark.parametrize("name", ["sd_controlnet", "ip_adapter", "sd_pag", "gligen"])
def test_two_pictures_are_made_as_one_by_one(name: str) -> None:
    """Each row has its own noise; what the call is given for all rows is sliced with them."""
    noise = torch.randn(2, 4, 16, 24, generator=torch.Generator().manual_seed(8))
    found = []
    for latents in (noise, noise[:1], noise[1:]):
        with attnguide.steer(unets.pipeline_of(name), regions=REGIONS, method="mask_guidance", step_size=40.0, stop=1.0):
            found.append(
                unets.sample(name, latents=latents, num_images_per_prompt=len(latents), num_inference_steps=1, generator=None)
            )
    assert_close(found[0], torch.cat(found[1:]), 2e-3)


class TestControlNets:
    def _controlled(self, name: str, **settings: Any) -> torch.Tensor:
        pipeline = unets.pipeline_of(name)
        with attnguide.steer(pipeline, regions=REGIONS, step_size=400.0, **GUIDANCE, **settings):
            return unets.sample(name, num_inference_steps=1)

    @pytest.mark.parametrize("name", ["guess_mode", "two_controlnets", "union"])
    def test_they_see_latents_that_guidance_has_moved(self, name: str) -> None:
        calls = []
        control = unets.pipeline_of(name).controlnet
        handle = control.register_forward_hook(lambda module, args, answer: calls.append(1))
        try:
            fresh, kept = self._controlled(name), self._controlled(name, refresh_controlnet=False)
        finally:
            handle.remove()
        assert not torch.equal(fresh, kept)
        assert len(calls) == 2  # those of the pipeline; the refreshed ones call the forward itself

    def test_residuals_are_those_of_the_moved_latents(self) -> None:
        """A guidance that is as strong as nothing moves nothing, and the ControlNet is not asked again."""
        pipeline = unets.pipeline_of("sd_controlnet")
        asked: list[int] = []
        before = pipeline.controlnet.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            asked.append(1)
            return before(*args, **kwargs)

        pipeline.controlnet.forward = forward
        try:
            for size, expected in ((40.0, 4), (0.0, 2)):
                asked.clear()
                with attnguide.steer(pipeline, regions=REGIONS, step_size=size, **GUIDANCE):
                    unets.sample("sd_controlnet", num_inference_steps=2)
                assert len(asked) == expected
        finally:
            del pipeline.controlnet.forward


class TestPerturbedAttention:
    """PAG's processors split the batch by a count of their own."""

    def test_edits_of_text_run_beside_it(self) -> None:
        with attnguide.steer(unets.pipeline_of("sd_pag"), regions=REGIONS, method="forward_layout") as run:
            edited = unets.sample("sd_pag", num_inference_steps=2)
        assert not torch.equal(edited, unets.sample("sd_pag", num_inference_steps=2))
        assert run.results[0].status == "ok"

    @pytest.mark.parametrize("method", ["dense_diffusion", "pag"])
    def test_edits_of_its_own_sites_are_refused(self, method: str) -> None:
        pipeline = unets.pipeline_of("sd_pag")
        before = parts(pipeline)
        with pytest.raises(attnguide.SteerError, match="perturbed attention"):
            with attnguide.steer(pipeline, regions=REGIONS, method=method):
                unets.sample("sd_pag", num_inference_steps=1)
        assert parts(pipeline) == before


def test_the_refiner_goes_on_where_the_base_ended() -> None:
    """denoising_end cuts the schedule; denoising_start begins in its midst."""
    base, refiner = pipelines.shared("sdxl"), unets.pipeline_of("refiner")
    options: dict[str, Any] = {"regions": REGIONS, "method": "mask_guidance", "step_size": 40.0, "stop": 1.0}
    settings: dict[str, Any] = {
        "num_inference_steps": 4,
        "output_type": "latent",
        "generator": torch.Generator().manual_seed(1),
    }
    with attnguide.steer(base, **options) as first, attnguide.steer(refiner, **options) as second:
        noisy = base(tiny.PROMPT, height=32, width=48, denoising_end=0.5, **settings).images
        refiner(tiny.PROMPT, image=noisy, denoising_start=0.5, **settings)
    assert [event.step.index for event in first.updates] == [event.step.index for event in second.updates] == [0, 1]
    assert second.updates[0].step.sigma < first.updates[-1].step.sigma
    assert first.updates[-1].step.count == 2
    assert [event.step.progress for run in (first, second) for event in run.updates] == [0.0, 0.25, 0.5, 0.75]


def test_windows_are_those_of_the_whole_schedule_where_two_calls_share_it() -> None:
    """And those of the call's own steps where it begins at a picture."""
    noted: dict[str, list[int]] = {}
    for name, sample, given in (
        ("sdxl", pipelines.sample, {"denoising_end": 0.5}),
        ("sdxl_img2img", pipelines.sample, {"strength": 0.5}),
        ("refiner", unets.sample, {}),
    ):
        pipeline = pipelines.shared(name) if sample is pipelines.sample else unets.pipeline_of(name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the window holds none of the refiner's steps
            with attnguide.steer(pipeline, regions=REGIONS, method="mask_guidance", stop=0.5) as run:
                sample(name, num_inference_steps=8, **given)
        noted[name] = [event.step.index for event in run.updates]
    assert noted == {"sdxl": [0, 1, 2, 3], "refiner": [], "sdxl_img2img": [0, 1]}
