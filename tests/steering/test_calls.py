"""What people do with a pipeline's call: callbacks, embeddings, several prompts, settings, modes; and how a block ends."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import attnguide
from attnguide.types import Region
from tests import tiny
from tests.models import families
from tests.steering.watch import REGIONS, parts, with_scheduler

MOVING: dict[str, Any] = {"regions": REGIONS, "method": "mask_guidance", "step_size": 40.0, "stop": 1.0, "maps": False}
STILL = {**MOVING, "scale": 0.0}


def call(pipeline: Any, prompt: Any = tiny.PROMPT, **settings: Any) -> Tensor:
    """Latents of two steps."""
    given = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(1), "output_type": "latent", **settings}
    found: Tensor = pipeline(prompt, **given)[0]
    return found


@pytest.fixture
def pipeline() -> Iterator[Any]:
    """The shared pipeline, found as it was when a test is over."""
    found = tiny.shared_pipeline()
    before = parts(found)
    yield found
    assert parts(found) == before


# ------------------------------------------------------------------------------------------------------ settings of a call


@contextmanager
def _free_u(pipeline: Any) -> Iterator[None]:
    pipeline.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    yield
    pipeline.disable_freeu()


@contextmanager
def _fused(pipeline: Any) -> Iterator[None]:
    pipeline.fuse_qkv_projections()
    yield
    pipeline.unfuse_qkv_projections()
    for module in pipeline.unet.modules():  # which leaves the joined weights behind, in the pipeline that all tests share
        for name in {"to_qkv", "to_kv"} & module._modules.keys():
            delattr(module, name)


@contextmanager
def _as_it_is(pipeline: Any) -> Iterator[None]:
    yield


@pytest.mark.parametrize(
    ("settings", "mode"),
    [
        ({"guidance_rescale": 0.7}, _as_it_is),
        ({"guidance_scale": 1.0}, _as_it_is),
        ({"timesteps": [900, 400]}, _as_it_is),
        ({}, _free_u),
        ({}, _fused),
    ],
    ids=["guidance_rescale", "no guidance", "timesteps", "FreeU", "fused projections"],
)
def test_settings_of_a_call(settings: dict[str, Any], mode: Any) -> None:
    pipeline = with_scheduler(tiny.shared_pipeline(), "ddpm" if "timesteps" in settings else None)
    with mode(pipeline):
        plain = call(pipeline, **settings)
        with attnguide.steer(pipeline, **STILL):
            assert torch.equal(call(pipeline, **settings), plain)
        with attnguide.steer(pipeline, **MOVING) as run:
            assert not torch.equal(call(pipeline, **settings), plain)
    assert run.notes == []


def test_noise_levels_and_skipped_layers_of_stable_diffusion_xl() -> None:
    pipeline = families.shared("sdxl")
    settings: dict[str, Any] = {"sigmas": [9.0, 2.0, 0.0], "clip_skip": 1, "num_inference_steps": None}
    plain = call(pipeline, **settings)
    with attnguide.steer(pipeline, **STILL):
        assert torch.equal(call(pipeline, **settings), plain)
    with attnguide.steer(pipeline, **MOVING) as run:
        call(pipeline, **settings)
    assert [round(event.step.sigma, 3) for event in run.updates] == [9.0, 2.0]


def test_inference_mode_around_a_call(pipeline: Any) -> None:
    found = []
    for mode in (torch.inference_mode, torch.no_grad):
        with mode(), attnguide.steer(pipeline, **MOVING):
            found.append(call(pipeline).clone())
    assert torch.equal(*found)


# ----------------------------------------------------------------------------------------------------------------- texts


def test_text_states_are_read_by_the_prompt_that_is_named(pipeline: Any) -> None:
    cond, uncond = pipeline.encode_prompt(tiny.PROMPT, "cpu", 1, True)
    given = {"prompt_embeds": cond, "negative_prompt_embeds": uncond}
    with attnguide.steer(pipeline, **MOVING):
        expected = call(pipeline)
    with attnguide.steer(pipeline, tiny.PROMPT, **MOVING):
        assert torch.equal(call(pipeline, None, **given), expected)
    placed = [
        Region(phrase, box=box, token_indices=at) for (phrase, box), at in zip(REGIONS.items(), ((2, 3), (6, 7)), strict=True)
    ]
    with attnguide.steer(pipeline, **{**MOVING, "regions": placed}):
        assert torch.equal(call(pipeline, None, **given), expected)
    with pytest.raises(attnguide.SteerError, match="'red cat' cannot be found: name the prompt"):
        with attnguide.steer(pipeline, **MOVING):
            call(pipeline, None, **given)


def test_longer_text_states_are_refused(pipeline: Any) -> None:
    """Where chunks of a long prompt stand side by side, words are not where the tokenizer has them."""
    cond, uncond = pipeline.encode_prompt(tiny.PROMPT, "cpu", 1, True)
    given = {"prompt_embeds": cond.repeat(1, 2, 1), "negative_prompt_embeds": uncond.repeat(1, 2, 1)}
    with pytest.raises(attnguide.SteerError, match=f"reads {2 * tiny.LENGTH} tokens, but .* makes {tiny.LENGTH}"):
        with attnguide.steer(pipeline, tiny.PROMPT, **MOVING):
            call(pipeline, None, **given)


def test_several_prompts_with_regions_of_their_own(pipeline: Any) -> None:
    prompts = ["a red cat and a dog", "a blue ball"]
    regions = [{"red cat": (0, 0, 0.5, 1)}, {"blue ball": (0.5, 0, 1, 1)}]
    options = {**MOVING, "regions": regions, "maps": True}
    with attnguide.steer(pipeline, prompts, **options) as run:
        call(pipeline, prompts, num_images_per_prompt=2)
    assert [sample.prompt for sample in run.samples] == [prompts[0]] * 2 + [prompts[1]] * 2
    assert [sample.seed for sample in run.samples] == [0, 1, 2, 3]
    assert [bool(picture.any()) for picture in run.maps["blue ball"]] == [False, False, True, True]


# -------------------------------------------------------------------------------------------------------------- callbacks


def test_guidance_may_end_in_the_midst(pipeline: Any) -> None:
    """The pipeline drops its unconditional half after the first of three steps."""

    def drop(pipeline: Any, index: int, timestep: Any, state: dict[str, Any]) -> dict[str, Any]:
        if index == 0:
            pipeline._guidance_scale = 0.0
            state["prompt_embeds"] = state["prompt_embeds"].chunk(2)[-1]
        return state

    settings: dict[str, Any] = {
        "num_inference_steps": 3, "callback_on_step_end": drop, "callback_on_step_end_tensor_inputs": ["prompt_embeds"],
    }  # fmt: skip
    plain = call(pipeline, **settings)
    with attnguide.steer(pipeline, **STILL):
        assert torch.equal(call(pipeline, **settings), plain)
    with attnguide.steer(pipeline, regions=REGIONS, method="forward_layout", maps=False) as run:
        call(pipeline, **settings)
    assert run.cost[0].unet_forwards == 2 + 1 + 1 and run.notes == []


def test_latents_and_text_states_that_callbacks_change(pipeline: Any) -> None:
    def change(pipeline: Any, index: int, timestep: Any, state: dict[str, Any]) -> dict[str, Any]:
        return {name: 1.01 * value for name, value in state.items()}

    settings: dict[str, Any] = {"callback_on_step_end": change}
    names = ["latents", "prompt_embeds"]
    plain = call(pipeline, **settings, callback_on_step_end_tensor_inputs=names)
    with attnguide.steer(pipeline, **STILL) as run:
        assert torch.equal(call(pipeline, **settings, callback_on_step_end_tensor_inputs=names), plain)
    assert "are not those that the pipeline encoded" in run.notes[0]
    with pytest.raises(attnguide.SteerError, match="were changed inside its call, and a method changes them, too"):
        with attnguide.steer(pipeline, regions=REGIONS, method="regional_prompts"):
            call(pipeline, **settings, callback_on_step_end_tensor_inputs=names)


def test_an_interrupted_call_is_noted(pipeline: Any) -> None:
    def interrupt(pipeline: Any, index: int, timestep: Any, state: dict[str, Any]) -> dict[str, Any]:
        pipeline._interrupt = True
        return state

    with attnguide.steer(pipeline, **MOVING) as run:
        call(pipeline, callback_on_step_end=interrupt)
    assert run.notes == ["the pipeline ended after 1 of 2 evaluations"]
    assert run.results[0].status == "ok: the pipeline ended after 1 of 2 evaluations"


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_exceptions_leave_nothing_behind(pipeline: Any, kind: type[BaseException]) -> None:
    def fail(pipeline: Any, index: int, timestep: Any, state: dict[str, Any]) -> dict[str, Any]:
        raise kind("of the callback")

    with pytest.raises(kind, match="of the callback"), attnguide.steer(pipeline, **MOVING):
        call(pipeline, callback_on_step_end=fail)


def test_a_call_that_failed_may_be_made_again_in_the_same_block(pipeline: Any) -> None:
    with attnguide.steer(pipeline, **MOVING):
        expected = call(pipeline)

    def fail(pipeline: Any, index: int, timestep: Any, state: dict[str, Any]) -> dict[str, Any]:
        raise RuntimeError

    with attnguide.steer(pipeline, **MOVING) as run:
        with pytest.raises(RuntimeError):
            call(pipeline, callback_on_step_end=fail)
        assert torch.equal(call(pipeline), expected)
    assert run.calls == 2 and run.results[0].status == "ok"


def test_nan_of_a_loss_ends_a_row_and_is_told(pipeline: Any) -> None:
    with pytest.raises(attnguide.SteerError, match="No row is left: latents are not finite after step 0 of mask_guidance"):
        with attnguide.steer(pipeline, **{**MOVING, "step_size": 1e38}) as run:
            call(pipeline)
    assert "not finite" in run.stopped[0]


@pytest.mark.filterwarnings("ignore:In the steered call")
def test_a_row_that_has_broken_is_not_told_of_methods_without_effect(pipeline: Any) -> None:
    with attnguide.steer(pipeline, **MOVING) as run:
        noise = run.latents(2)
        noise[1] = torch.nan
        call(pipeline, latents=noise, num_images_per_prompt=2)
    reason = "loss of mask_guidance is not finite at step 0"
    assert [result.status for result in run.results] == ["ok", reason]
    assert run.notes == [reason]


# ------------------------------------------------------------------------------------------------ blocks, threads, hooks


def test_two_pipelines_at_once_and_one_after_the_other(pipeline: Any) -> None:
    other = tiny.pipeline(seed=2)
    with attnguide.steer(pipeline, **MOVING):
        first = call(pipeline)
    with attnguide.steer(other, **MOVING):
        second = call(other)
    with attnguide.steer(pipeline, **MOVING), attnguide.steer(other, **MOVING):
        assert torch.equal(call(other), second) and torch.equal(call(pipeline), first)


def test_what_replaces_the_networks_forward_between_calls_is_followed(pipeline: Any) -> None:
    """As libraries do that move networks between devices after every call."""
    own, passes = pipeline.unet.forward, []

    @functools.wraps(own)
    def moving(*args: Any, **kwargs: Any) -> Any:
        passes.append(1)
        return own(*args, **kwargs)

    with attnguide.steer(pipeline, **MOVING) as run:
        first = call(pipeline)
        pipeline.unet.forward = moving
        assert torch.equal(call(pipeline), first)
    assert run.calls == 2 and len(passes) == 4
    assert pipeline.unet.forward is moving
    del pipeline.unet.forward


def test_passes_of_other_threads_are_their_own(pipeline: Any) -> None:
    inputs = torch.zeros(1, 4, 16, 16), torch.tensor(5), torch.zeros(1, tiny.LENGTH, tiny.CHANNELS)
    with torch.no_grad():
        expected = pipeline.unet(*inputs)[0]
    found: list[Tensor] = []

    def run() -> None:
        with torch.no_grad():
            found.append(pipeline.unet(*inputs)[0])

    with attnguide.steer(pipeline, **MOVING):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        call(pipeline)
    assert torch.equal(found[0], expected)


def test_observers_are_told_as_in_our_own_loop(pipeline: Any) -> None:
    seen: list[str] = []

    class Told(attnguide.Observer):
        def on_sample_start(self, info: Any) -> None:
            seen.append(f"start of {len(info.steps)}")

        def on_denoise_step_start(self, step: Any, latents: Tensor) -> None:
            seen.append(f"step {step.index}")

        def on_guidance_update(self, event: Any) -> None:
            seen.append("update")

        def on_denoise_step_end(self, step: Any, latents: Tensor, noise_pred: Tensor) -> None:
            seen.append(f"end {tuple(latents.shape)} {tuple(noise_pred.shape)}")

        def on_sample_end(self, results: Any) -> None:
            seen.append(results[0].status)

    with attnguide.steer(pipeline, observer=Told(), **MOVING):
        call(pipeline)
    shape = (1, 4, 16, 16)
    assert seen == [
        "start of 2",
        *["step 0", "update", f"end {shape} {shape}"],
        *["step 1", "update", f"end {shape} {shape}"],
        "ok",
    ]
