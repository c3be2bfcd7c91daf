"""What cannot be followed is refused in one line, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch

import attnguide
from attnguide.models.folder import UnsupportedModelError
from attnguide.types import MapSource, MethodConfig
from tests import tiny
from tests.steering import pipelines
from tests.steering.test_calls import MOVING, call
from tests.steering.watch import REGIONS, parts, with_scheduler


@pytest.fixture
def pipeline() -> Iterator[Any]:
    """The shared pipeline, found as it was when a test is over."""
    found = tiny.shared_pipeline()
    before = parts(found)
    yield found
    assert parts(found) == before


def refused(pipeline: Any, said: str, *, prompt: Any = tiny.PROMPT, named: Any = None, **options: Any) -> None:
    """A call that is refused by the call or before it, in one line."""
    with pytest.raises(ValueError, match=said) as caught, attnguide.steer(pipeline, named, **{**MOVING, **options}):
        call(pipeline, prompt)
    assert "\n" not in str(caught.value)


class TestTexts:
    def test_a_phrase_that_the_prompt_lacks(self, pipeline: Any) -> None:
        refused(pipeline, "Phrase 'red dog' does not occur in the prompt", regions={"red dog": (0, 0, 1, 1)})

    def test_another_prompt_than_announced(self, pipeline: Any) -> None:
        refused(pipeline, "was told of the prompt 'a red cat', but .* called with the prompt 'a red cat and", named="a red cat")
        refused(pipeline, "was told of 2 prompts, the first 'a', but", named=["a", "b"])

    def test_regions_of_another_number_of_prompts(self, pipeline: Any) -> None:
        refused(pipeline, "regions were given for 2 prompts, but .* called with 1", regions=[REGIONS, REGIONS])

    def test_names_that_are_none(self, pipeline: Any) -> None:
        refused(pipeline, "prompt must be text", named=[])
        for seed in ("x", -1, 2**63):
            refused(pipeline, "seed must be a whole number from 0 to 9223372036854775807; got", seed=seed)
        with pytest.raises(ValueError, match="Unknown method 'mask'"), attnguide.steer(pipeline, method="mask"):
            pass
        refused(pipeline, "regions must be a mapping", regions=3)
        refused(pipeline, "maps must be True or False; got 'red cat'", maps="red cat")
        refused(pipeline, "refresh_controlnet must be True or False; got None", refresh_controlnet=None)


class TestMethods:
    @pytest.mark.parametrize(
        ("method", "options", "said"),
        [
            ("best_of_k", {"candidates": 2}, "several pictures .* Use attnguide.sample"),
            ("stable", {"attempts": 3}, "attempts must be 1 inside a pipeline's call.* got 3. Use attnguide.sample"),
            ("prompt_to_prompt", {"source_prompt": "a dog"}, "another picture that is made beside.* Use attnguide.sample"),
            ("count_guidance", {"count": 2}, "with a count it looks at the picture before.* Use attnguide.sample"),
        ],
        ids=["best_of_k", "stable", "prompt_to_prompt", "count_guidance"],
    )
    def test_methods_that_one_call_cannot_be(self, pipeline: Any, method: str, options: dict[str, Any], said: str) -> None:
        config = MethodConfig(method, options)
        with pytest.raises(attnguide.SteerError, match=said), attnguide.steer(pipeline, regions=REGIONS, method=config):
            call(pipeline)

    def test_restarts_that_are_only_a_default_are_left_out_and_told(self, pipeline: Any) -> None:
        with pytest.warns(UserWarning, match="'stable' makes one attempt"):
            with attnguide.steer(pipeline, regions=REGIONS, method="stable") as run:
                call(pipeline)
        assert "makes one attempt" in run.notes[0] and run.calls == 1

    def test_places_that_other_pictures_say(self, pipeline: Any) -> None:
        refused(pipeline, "another picture's attention", regions={"red cat": MapSource("seed", seed=1)})

    def test_noise_is_not_changed_where_there_is_a_picture(self) -> None:
        for method in (MethodConfig("paint_with_words", {"region_seeds": {"red cat": 3}}), MethodConfig("initno")):
            with pytest.raises(
                attnguide.SteerError, match=f"'{method.name}' changes the initial noise, but .* begins at evaluation 2"
            ):
                with attnguide.steer(pipelines.shared("sd_img2img"), regions=REGIONS, method=method):
                    pipelines.sample("sd_img2img")

    def test_painting_without_seeds_begins_at_a_picture(self) -> None:
        with attnguide.steer(pipelines.shared("sd_img2img"), regions=REGIONS, method="paint_with_words") as run:
            pipelines.sample("sd_img2img")
        assert run.results[0].status.startswith("ok")

    def test_windows_that_a_low_strength_never_reaches_are_told(self) -> None:
        with pytest.warns(UserWarning, match="'inject1' does nothing: its window"):
            with attnguide.steer(pipelines.shared("sd_img2img"), regions=REGIONS, method="inject1", maps=False) as run:
                pipelines.sample("sd_img2img")
        assert run.results[0].status == "ok: inject1 did nothing (no step is in its window)"


class TestBlocks:
    def test_a_block_without_a_call(self, pipeline: Any) -> None:
        with pytest.raises(attnguide.SteerError, match="left without a call of the StableDiffusionPipeline: nothing was"):
            with attnguide.steer(pipeline, **MOVING):
                pass

    def test_a_call_without_a_pass_of_the_network(self) -> None:
        """Not even after another call, behind whose results it would hide."""
        pipeline = pipelines.shared("sd_img2img")
        with pytest.raises(attnguide.SteerError, match="Img2ImgPipeline ended without a pass of its unet, so nothing was"):
            with attnguide.steer(pipeline, **MOVING) as run:
                pipelines.sample("sd_img2img")
                pipelines.sample("sd_img2img", strength=0.01)
        assert run.calls == 1

    def test_noise_of_no_picture(self, pipeline: Any) -> None:
        for rows in (0, -1, 2.5, "x", True):
            with pytest.raises(ValueError, match="rows must be a whole number from 1 on; got"):
                with attnguide.steer(pipeline, **MOVING) as run:
                    run.latents(rows)  # type: ignore[arg-type]

    @pytest.mark.parametrize("side", [0, -8, 16.5, "x"])
    def test_noise_of_no_size(self, side: Any, pipeline: Any) -> None:
        with pytest.raises(ValueError, match="width must be a whole number from 1 on; got"):
            with attnguide.steer(pipeline, **MOVING) as run:
                run.latents(width=side)

    def test_a_block_that_is_entered_twice(self, pipeline: Any) -> None:
        block = attnguide.steer(pipeline, **MOVING)
        with block:
            call(pipeline)
        with pytest.raises(attnguide.SteerError, match=r"A block of steer\(\) can be entered once: call steer\(\) anew"), block:
            pass

    def test_a_map_that_is_not_there(self, pipeline: Any) -> None:
        with attnguide.steer(pipeline, **{**MOVING, "maps": True}) as run:
            with pytest.raises(KeyError, match="no map of 'dog'; there are none, before a call has ended"):
                run.maps["dog"]
            call(pipeline)
        with pytest.raises(KeyError, match=r"There is no map of 'dog'; there are 'red cat', 'blue ball'\."):
            run.maps["dog"]
        assert "dog" not in run.maps and run.maps.get("dog") is None

    def test_a_call_of_another_thread(self, pipeline: Any) -> None:
        """It would be plain; what the block's own thread does goes on."""
        with attnguide.steer(pipeline, **MOVING) as run, ThreadPoolExecutor(1) as pool:
            call(pipeline)
            with pytest.raises(
                attnguide.SteerError, match="Another thread than that of the block calls the StableDiffusionPip"
            ):
                pool.submit(call, pipeline).result()
            call(pipeline)
        assert run.calls == 2

    def test_an_exception_of_the_block_is_not_hidden(self, pipeline: Any) -> None:
        with pytest.raises(ZeroDivisionError), attnguide.steer(pipeline, **MOVING):
            _ = 1 / 0

    def test_two_steers_on_one_pipeline(self, pipeline: Any) -> None:
        with attnguide.steer(pipeline, **MOVING):
            with pytest.raises(attnguide.SteerError, match="is steered already"), attnguide.steer(pipeline, **MOVING):
                pass
            call(pipeline)

    def test_two_pipelines_that_share_a_network(self, pipeline: Any) -> None:
        other = pipelines.build("sd_img2img", pipeline)
        with attnguide.steer(pipeline, **MOVING):
            with pytest.raises(attnguide.SteerError, match="shares with another"), attnguide.steer(other, **MOVING):
                pass
            with pytest.raises(attnguide.SteerError, match="outside of a call of the StableDiffusionPipeline"):
                pipelines.sample("sd_img2img", pipeline=other)
            call(pipeline)

    def test_parts_that_are_replaced_inside(self) -> None:
        pipeline = with_scheduler(tiny.shared_pipeline(), "euler")
        scheduler, network = pipeline.scheduler, pipeline.unet
        with pytest.raises(attnguide.SteerError, match="scheduler was replaced inside"), attnguide.steer(pipeline, **MOVING):
            pipeline.scheduler = type(scheduler).from_config(scheduler.config)
            call(pipeline)
        pipeline.scheduler = scheduler
        with pytest.raises(attnguide.SteerError, match="unet was replaced inside"), attnguide.steer(pipeline, **MOVING):
            pipeline.unet = tiny.pipeline(seed=2).unet
            call(pipeline)
        assert not {"step", "scale_model_input"} & set(vars(scheduler)) and "forward" not in vars(network)


class TestPipelines:
    @pytest.mark.parametrize("name", ["AnimateDiffPipeline", "StableDiffusionUpscalePipeline", "NobodysPipeline"])
    def test_unknown_classes(self, name: str) -> None:
        kind = type(name, (), {"__module__": "diffusers.pipelines.some"})
        with pytest.raises(
            attnguide.SteerError, match=f"{name} cannot be steered from inside.*Known are .* pipelines of StableDiffusion"
        ):
            with attnguide.steer(kind()):
                pass

    def test_a_loaded_model(self) -> None:
        with pytest.raises(attnguide.SteerError, match="is a model of attnguide around a pipeline; hand over that one"):
            with attnguide.steer(tiny.model()):
                pass

    def test_classes_of_other_people(self) -> None:
        class Mine(diffusers.StableDiffusionPipeline):  # type: ignore[misc]
            pass

        class StableDiffusionImg2ImgPipeline(diffusers.StableDiffusionImg2ImgPipeline):  # type: ignore[misc]
            pass

        for kind, way in (
            (Mine, "StableDiffusionPipeline"),
            (StableDiffusionImg2ImgPipeline, "StableDiffusionImg2ImgPipeline"),
        ):
            built = object.__new__(kind)
            with pytest.raises(attnguide.SteerError, match=rf"hand over {way}\.from_pipe"), attnguide.steer(built):
                pass

    def test_schedulers_of_other_networks(self) -> None:
        pipeline = with_scheduler(tiny.shared_pipeline(), None)
        pipeline.scheduler = diffusers.EDMEulerScheduler()
        refused(pipeline, "scheduler cannot be followed: Scheduler EDMEulerScheduler is not supported")

    def test_compiled_networks(self) -> None:
        pipeline = with_scheduler(tiny.shared_pipeline(), None)
        vars(pipeline)["unet"] = SimpleNamespace(_orig_mod=pipeline.unet)  # as torch.compile(unet) has it
        refused(pipeline, r"compile it in place \(pipeline.unet.compile\(\)\)")

    @pytest.mark.parametrize("name", ["sd_img2img", "sd_inpaint_9"])
    def test_our_own_loop_points_here(self, name: str) -> None:
        for refuse in (lambda held: attnguide.sample(tiny.PROMPT, model=held), attnguide.adapt):
            with pytest.raises(UnsupportedModelError, match=r"with attnguide\.steer\(pipeline, \.\.\.\): pipeline"):
                refuse(pipelines.shared(name))


class TestCalls:
    def test_a_batch_that_cannot_be_read(self, pipeline: Any) -> None:
        before = pipeline.encode_prompt
        pipeline.encode_prompt = lambda *args, **kwargs: tuple(half.repeat(2, 1, 1) for half in before(*args, **kwargs))
        try:
            with pytest.raises(attnguide.SteerError, match="batch cannot be read: it has 2 elements, and 2 for each of 2 pic"):
                with attnguide.steer(pipeline, **MOVING):
                    _mixed(pipeline)
        finally:
            del pipeline.encode_prompt

    def test_halves_in_another_order(self, pipeline: Any) -> None:
        with pytest.raises(attnguide.SteerError, match="stands where the conditional one should"):
            with attnguide.steer(pipeline, **MOVING), torch.no_grad():
                cond, uncond = pipeline.encode_prompt(tiny.PROMPT, "cpu", 1, True)
                pipeline._guidance_scale = 5.0
                pipeline.scheduler.set_timesteps(2)
                pipeline.unet(torch.zeros(2, 4, 16, 16), pipeline.scheduler.timesteps[0], torch.cat([cond, uncond]))

    def test_timesteps_that_are_none_of_the_schedulers(self, pipeline: Any) -> None:
        with pytest.raises(attnguide.SteerError, match="at timestep 7, which is none of the pipeline's scheduler"):
            with attnguide.steer(pipeline, **MOVING):
                _by_hand(pipeline, [7])
        with pytest.raises(attnguide.SteerError, match=r"Evaluation 1 of the network has timestep 501; .* has 1 there"):
            with attnguide.steer(pipeline, **MOVING):
                _by_hand(pipeline, [501, 501])

    def test_a_scheduler_that_moves_what_the_network_has_not_seen(self, pipeline: Any) -> None:
        with pytest.raises(attnguide.SteerError, match="moves latents that its network has not seen"):
            with attnguide.steer(pipeline, **MOVING):
                pipeline.scheduler.set_timesteps(2)
                pipeline.scheduler.step(torch.zeros(1, 4, 16, 16), 501, torch.zeros(1, 4, 16, 16))

    def test_inputs_that_the_scheduler_did_not_make(self) -> None:
        pipeline = with_scheduler(tiny.shared_pipeline(), "euler")
        with pytest.raises(attnguide.SteerError, match="is not what the scheduler makes of the latents"):
            with attnguide.steer(pipeline, **MOVING):
                _by_hand(pipeline, [None])


def _by_hand(pipeline: Any, timesteps: list[int | None]) -> None:
    """A loop of somebody's: the network is told these timesteps (``None``: the scheduler's), on latents that are not scaled."""
    cond, uncond = pipeline.encode_prompt(tiny.PROMPT, "cpu", 1, True)
    pipeline._guidance_scale, pipeline._num_timesteps = 5.0, len(timesteps)
    pipeline.scheduler.set_timesteps(2)
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    for index, given in enumerate(timesteps):
        told = pipeline.scheduler.timesteps[index] if given is None else torch.tensor(given)
        with torch.no_grad():
            answer = pipeline.unet(torch.cat([latents, latents]), told, torch.cat([uncond, cond]))[0]
        latents = pipeline.scheduler.step(answer[1:], pipeline.scheduler.timesteps[index], latents)[0]


def _mixed(pipeline: Any) -> None:
    """A call of the network for one picture, where two were encoded."""
    cond, uncond = pipeline.encode_prompt(tiny.PROMPT, "cpu", 1, True)
    pipeline._guidance_scale = 5.0
    pipeline.scheduler.set_timesteps(2)
    with torch.no_grad():
        pipeline.unet(torch.zeros(2, 4, 16, 16), pipeline.scheduler.timesteps[0], torch.cat([uncond[:1], cond[:1]]))
