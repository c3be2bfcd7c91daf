"""Transformer pipelines that are steered from inside: to the bit our own loop's latents where that can make the picture."""

import pytest
import torch

import attnguide
from attnguide.models.load import adapt
from attnguide.sampling.table import sample_batch
from attnguide.types import MethodConfig, Region, Sample
from tests import tiny
from tests.models import families
from tests.steer import pipelines
from tests.steer.watch import REGIONS, parts

MOVING = MethodConfig("layout_guidance", {"iterations": 2, "until": 0.0, "step_size": 1.0, "stop": 1.0})
SHIFTING = MethodConfig("mask_guidance", {"space": "noise", "stop": 1.0})
EDITING = MethodConfig("forward_layout", {"stop": 1.0})
TEXT = MethodConfig("regional_prompts", {"stop": 1.0})
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


@pytest.mark.parametrize("name", ["flux_fill", "flux_kontext", "flux_controlnet", "sd3_controlnet", "z_image_controlnet"])
def test_strength_zero_is_the_plain_call(name: str) -> None:
    pipeline = pipelines.shared(name)
    before, plain = parts(pipeline), pipelines.sample(name, num_inference_steps=2)
    with attnguide.steer(pipeline, regions=REGIONS, method="mask_guidance", scale=0.0, stop=1.0):
        found = pipelines.sample(name, num_inference_steps=2)
    assert torch.equal(found, plain) and parts(pipeline) == before
