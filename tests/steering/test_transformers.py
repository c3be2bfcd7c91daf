"""Transformer pipelines that are steered from inside: to the bit our own loop's latents where that can make the picture."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import attnguide
from attnguide.models.load import adapt
from attnguide.sampling.table import sample_batch
from attnguide.types import MethodConfig, Region, Sample
from tests import tiny
from tests.closeness import assert_close
from tests.models import families
from tests.steering import pipelines
from tests.steering.watch import REGIONS, parts

MOVING = MethodConfig("layout_guidance", {"iterations": 1, "until": 0.0, "step_size": 1.0, "stop": 1.0})
EDITING = MethodConfig("forward_layout", {"stop": 1.0})
KINDS = [name for name in pipelines.available() if pipelines.KINDS[name].family not in ("sd", "sdxl")]
TWINS = ("pixart_alpha", "pixart_alpha_1024", "sd3", "flux_schnell", "flux2_klein")
"""Called as other families are, or slow."""
FAMILIES = [name for name in families.available() if name not in ("sd", "sdxl", "ovis", *TWINS)]


def our_row(family: str, methods: tuple[MethodConfig, ...], cfg_scale: float) -> Sample:
    height, width = pipelines.size(family)
    regions = tuple(Region(phrase, box=box) for phrase, box in REGIONS.items())
    common = {"steps": 2, "seed": 3, "cfg_scale": cfg_scale, "height": height, "width": width}
    return Sample("0", tiny.PROMPT, regions=regions, methods=methods, **common)


def difference(family: str, methods: tuple[MethodConfig, ...], cfg_scale: float = 1.0) -> float:
    """Largest difference from our own loop's latents."""
    row, pipeline = our_row(family, methods, cfg_scale), families.shared(family)
    adapter = adapt(pipeline, family)
    before = parts(pipeline)
    with attnguide.steer(pipeline, regions=REGIONS, method=list(methods), seed=row.seed) as run:
        found = families.peer(family, row, adapter)
    assert parts(pipeline) == before
    (result,) = sample_batch(adapter, [row])
    assert result.latents is not None, result.status
    assert (run.cost[0].unet_forwards, run.cost[0].unet_backwards) == (result.cost.unet_forwards, result.cost.unet_backwards)
    return float((found - result.latents).abs().max())


@pytest.mark.parametrize("family", FAMILIES)
def test_our_own_loop_makes_the_same(family: str) -> None:
    allowed = 1e-5 if family == "qwen_image_21" else 0.0  # its network adds gradients up in another order
    assert difference(family, (MOVING, EDITING)) <= allowed


@pytest.mark.parametrize("family", [name for name in ("qwen_image", "z_image", "lumina2") if name in FAMILIES])
def test_both_halves_are_steered_alike(family: str) -> None:
    """In calls of their own or in another order than ours, which rounds otherwise."""
    assert difference(family, (EDITING,), 4.0) < 1e-4


@pytest.mark.parametrize("name", [name for name in KINDS if name != "sd3_pag"])
def test_every_kind_is_steered(name: str) -> None:
    with attnguide.steer(pipelines.shared(name), regions=REGIONS, method="forward_layout", stop=1.0) as run:
        found = pipelines.sample(name, num_inference_steps=2)
    assert bool(torch.isfinite(found).all()) and run.notes == []
    rows, height, width = run.maps["red cat"].shape
    assert rows == 1 and 2 * width == 3 * height


@pytest.mark.parametrize("name", ["flux_ip_adapter", "sd3_ip_adapter"])
def test_ip_adapters_take_part_in_guided_passes(name: str) -> None:
    """Each row's picture goes with it into every pass; two rows are made as one by one."""
    pipeline, kind = pipelines.shared(name), pipelines.KINDS[name]
    height, width = pipelines.size(kind.family)
    adapter = adapt(families.shared(kind.family), kind.family)
    noise = torch.randn(2, *adapter.latent_shape(height, width), generator=torch.Generator().manual_seed(8))
    found, losses = [], []
    for rows in (noise, noise[:1], noise[1:]):
        packed = pipeline._pack_latents(rows, *rows.shape) if kind.family == "flux_dev" else rows
        settings = {"latents": packed, "num_images_per_prompt": len(rows), "num_inference_steps": 1}
        with attnguide.steer(pipeline, regions=REGIONS, method=[MOVING]) as run:
            found.append(pipelines.sample(name, **settings))
        losses.append(run.updates[0].losses)
    assert_close(found[0], torch.cat(found[1:]), 2e-3)
    before = adapters_off(pipeline)
    try:
        with attnguide.steer(pipeline, regions=REGIONS, method=[MOVING]) as run:
            pipelines.sample(name, **settings)
    finally:
        before()
    assert abs(run.updates[0].losses[0] - losses[2][0]) > 1e-6  # what guidance reads depends on the adapter's picture


def adapters_off(pipeline: Any) -> Callable[[], None]:
    """Set every adapter's scale to 0; what it gives puts them back."""
    scaled = [one for one in pipeline.transformer.attn_processors.values() if hasattr(one, "scale")]
    before = [one.scale for one in scaled]
    for one in scaled:
        one.scale = [0.0] * len(one.scale) if isinstance(one.scale, list) else 0.0

    def put_back() -> None:
        for one, scale in zip(scaled, before, strict=True):
            one.scale = scale

    return put_back


@pytest.mark.parametrize("name", ["flux_fill", "flux_kontext", "z_image_controlnet", "flux_ip_adapter", "sd3_ip_adapter"])
def test_strength_zero_is_the_plain_call(name: str) -> None:
    pipeline = pipelines.shared(name)
    before, plain = parts(pipeline), pipelines.sample(name, num_inference_steps=2)
    with attnguide.steer(pipeline, regions=REGIONS, method="mask_guidance", scale=0.0, stop=1.0):
        found = pipelines.sample(name, num_inference_steps=2)
    assert torch.equal(found, plain) and parts(pipeline) == before


@pytest.mark.parametrize("name", ["flux_controlnet", "sd3_controlnet", "qwen_image_controlnet", "z_image_controlnet"])
def test_controlnets_see_latents_that_guidance_has_moved(name: str) -> None:
    pipeline, found = pipelines.shared(name), []
    for refreshed in (True, False):
        settings = {"step_size": 400.0, "stop": 1.0, "refresh_controlnet": refreshed}
        with attnguide.steer(pipeline, regions=REGIONS, method="mask_guidance", **settings):
            found.append(pipelines.sample(name, num_inference_steps=2))
    assert not torch.equal(*found)


def test_further_texts_stand_in_both_halves_though_each_is_a_call() -> None:
    """What a region leads away from is read in the second call, which has no conditional half."""
    pipeline = families.shared("qwen_image")
    found = []
    for negative in ("a dog", "a red ball"):
        regions = [Region("red cat", box=(0.0, 0.0, 0.5, 1.0), negative_prompt=negative)]
        with attnguide.steer(pipeline, regions=regions, method="regional_prompts"):
            found.append(pipelines.sample("qwen_image", negative_prompt="", true_cfg_scale=4.0, num_inference_steps=2))
    assert not torch.equal(*found)


def test_states_of_a_picture_may_stand_behind_the_text() -> None:
    """As the prior of FLUX.1's redux makes them: words keep their places."""
    pipeline = families.shared("flux_dev")
    states, pooled, _ = pipeline.encode_prompt(tiny.PROMPT, None)
    longer = torch.cat([states, torch.randn(1, 9, states.shape[2], generator=torch.Generator().manual_seed(1))], 1)
    given = {"prompt_embeds": longer, "pooled_prompt_embeds": pooled, "num_inference_steps": 1}
    with attnguide.steer(pipeline, tiny.PROMPT, regions=REGIONS, method=[MOVING, EDITING]) as run:
        guided = pipelines.sample("flux_dev", None, **given)
    assert run.notes == [] and len(run.updates) == 1
    assert not torch.equal(guided, pipelines.sample("flux_dev", None, **given))


def test_pictures_of_one_prompt_in_a_family_that_lists_them() -> None:
    pipeline = families.shared("z_image")
    with attnguide.steer(pipeline, regions=REGIONS, method=[MOVING]) as run:
        found = pipelines.sample("z_image", num_images_per_prompt=2, num_inference_steps=1)
    assert len(found) == len(run.samples) == 2 and not torch.equal(found[0], found[1])


def test_left_out_blocks_are_refused() -> None:
    pipeline = families.shared("sd35")
    settings = {"skip_guidance_layers": [1], "skip_layer_guidance_stop": 1.0, "num_inference_steps": 2}
    with pytest.raises(attnguide.SteerError, match="without skip_guidance_layers"):
        with attnguide.steer(pipeline, regions=REGIONS, method=[EDITING]):
            pipelines.sample("sd35", **settings)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("QwenImageEditPipeline", "its text encoder reads pictures too"),
        ("Flux2KleinKVPipeline", "its network keeps keys and values of pictures"),
        ("FluxPriorReduxPipeline", "it makes text states, no pictures"),
    ],
)
def test_other_kinds_are_refused_by_name(kind: str, why: str) -> None:
    with pytest.raises(attnguide.SteerError, match=f"{kind} cannot be steered from inside .{why}"):
        with attnguide.steer(type(kind, (), {})()):
            pass
