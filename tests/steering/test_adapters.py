"""LoRA, half precision, offloaded and compiled networks inside a steered pipeline."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

import attnguide
from attnguide.models.load import adapt
from attnguide.sampling.table import sample_batch
from attnguide.types import MethodConfig, Region, Sample
from tests import tiny
from tests.models import families
from tests.steering import pipelines
from tests.steering.watch import REGIONS, parts

MOVING = MethodConfig("mask_guidance", {"step_size": 40.0, "stop": 1.0})
EDITING = MethodConfig("forward_layout", {"stop": 1.0})


def with_lora(family: str) -> Any:
    """A family's pipeline with an adapter of random weights in its attention, which makes another picture."""
    from peft import LoraConfig

    built = families.build(family)
    network = getattr(built, "unet", None) or built.transformer
    with torch.random.fork_rng([]):
        torch.manual_seed(5)
        network.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False))
    return built


def ours(pipeline: Any, family: str, methods: tuple[MethodConfig, ...]) -> Sample:
    height, width = pipelines.size(family)
    regions = tuple(Region(phrase, box=box) for phrase, box in REGIONS.items())
    scale = 1.0 if family.startswith("flux") else 4.0
    common: dict[str, Any] = {"steps": 2, "seed": 3, "cfg_scale": scale, "height": height, "width": width}
    return Sample("0", tiny.PROMPT, regions=regions, methods=methods, **common)


@pytest.mark.parametrize("family", ["sd", "sdxl", "flux_dev"])
def test_lora(family: str) -> None:
    pipeline = with_lora(family)
    row = ours(pipeline, family, (MOVING, EDITING))
    adapter = adapt(pipeline, family)
    settings = {"num_inference_steps": 2, "pipeline": pipeline}
    plain = pipelines.sample(family, **settings)
    assert not torch.equal(plain, pipelines.sample(family, num_inference_steps=2))
    before = parts(pipeline)
    with attnguide.steer(pipeline, regions=REGIONS, method="mask_guidance", scale=0.0, stop=1.0):
        assert torch.equal(pipelines.sample(family, **settings), plain)
    with attnguide.steer(pipeline, regions=REGIONS, method=[MOVING, EDITING], seed=3, maps=False):
        found = families.peer(family, row, adapter, pipeline=pipeline)
    assert parts(pipeline) == before
    (result,) = sample_batch(adapter, [row])
    assert torch.equal(found, result.latents)


@pytest.mark.parametrize(
    ("family", "dtype"), [("z_image", torch.bfloat16), ("flux_dev", torch.bfloat16), ("sd", torch.float16)]
)
def test_half_precision(family: str, dtype: torch.dtype) -> None:
    """The network's time is rounded with its weights, and is found in the schedule all the same."""
    pipeline = families.build(family).to(dtype)
    settings = {"num_inference_steps": 2, "pipeline": pipeline}
    plain = pipelines.sample(family, **settings)
    with attnguide.steer(pipeline, regions=REGIONS, method="mask_guidance", scale=0.0, stop=1.0):
        assert torch.equal(pipelines.sample(family, **settings), plain)
    with attnguide.steer(pipeline, regions=REGIONS, method=[MOVING, EDITING], seed=3) as run:
        found = pipelines.sample(family, **settings)
    assert found.dtype == plain.dtype and bool(torch.isfinite(found).all()) and not torch.equal(found, plain)
    assert len(run.updates) == 2 and run.notes == []


@pytest.mark.parametrize("family", ["sd", "flux_dev"])
def test_blocks_that_wait_elsewhere(family: str) -> None:
    """Group offloading hooks into modules; the pictures are those without it."""
    whole, pipeline = families.build(family), families.build(family)
    network = getattr(pipeline, "unet", None) or pipeline.transformer
    network.enable_group_offload(torch.device("cpu"), torch.device("cpu"), offload_type="leaf_level")
    found = []
    for one in (whole, pipeline):
        before = parts(one)
        with attnguide.steer(one, regions=REGIONS, method=[MOVING, EDITING], seed=3):
            found.append(pipelines.sample(family, num_inference_steps=2, pipeline=one))
        assert parts(one) == before
    assert torch.equal(*found)


@pytest.mark.parametrize("way", ["weights elsewhere", "layer by layer"])
@pytest.mark.parametrize("family", ["sd", "flux_dev"])
def test_networks_that_accelerate_brings_in(family: str, way: str) -> None:
    """What a pipeline's model and sequential offload put on its parts, with the processor as the device that runs."""
    from accelerate import cpu_offload, cpu_offload_with_hook
    from accelerate.hooks import remove_hook_from_module

    whole, pipeline = families.shared(family), families.build(family)
    network = getattr(pipeline, "unet", None) or pipeline.transformer
    cpu = torch.device("cpu")
    if way == "weights elsewhere":
        cpu_offload_with_hook(network, cpu)
    else:
        cpu_offload(network, cpu)
        assert {weight.device.type for weight in network.parameters()} == {"meta"}
    found = []
    for one in (whole, pipeline):
        before = parts(one)
        with attnguide.steer(one, regions=REGIONS, method=[MOVING, EDITING], seed=3) as run:
            found.append(pipelines.sample(family, num_inference_steps=2, pipeline=one))
        assert parts(one) == before and len(run.updates) == 2
    remove_hook_from_module(network, recurse=True)
    assert torch.equal(*found)


def test_compiled_networks_run_as_they_are_written_and_say_so_once() -> None:
    pipeline = families.build("flux_dev")
    settings = {"num_inference_steps": 2, "pipeline": pipeline}
    plain = pipelines.sample("flux_dev", **settings)
    pipeline.transformer.compile(backend="eager")
    compiled = pipeline.transformer._compiled_call_impl
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with attnguide.steer(pipeline, regions=REGIONS, method="mask_guidance", scale=0.0, stop=1.0):
            assert torch.equal(pipelines.sample("flux_dev", **settings), plain)
    assert [str(one.message) for one in told if "compiled" in str(one.message)] == [
        "FluxTransformer2DModel is compiled; passes in which attention is read or edited run without the compiled code."
    ]
    assert pipeline.transformer._compiled_call_impl is compiled
