"""States in which people hold a pipeline, that are run as diffusers would or refused before a row is sampled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline
from diffusers.image_processor import VaeImageProcessor

from attnguide.models.folder import UnsupportedModelError
from attnguide.models.load import adapt
from attnguide.sampling.check import mark_rows
from attnguide.sampling.table import sample_rows
from attnguide.types import MethodConfig, Sample
from tests import tiny
from tests.models import xl

METHODS = (MethodConfig("mask_guidance"), MethodConfig("forward_layout"))


def _theirs(pipeline: StableDiffusionPipeline, row: Sample) -> Any:
    generator = [torch.Generator().manual_seed(row.seed)]
    options = {"num_inference_steps": row.steps, "guidance_scale": row.cfg_scale, "generator": generator}
    return np.asarray(pipeline(row.prompt, **options).images[0], dtype=int)


def _ours(pipeline: StableDiffusionPipeline, row: Sample) -> Any:
    (result,) = sample_rows(adapt(pipeline), [row])
    assert result.status == "ok" and result.image is not None
    return np.asarray(result.image, dtype=int)


def _euler() -> StableDiffusionPipeline:
    built = tiny.pipeline()
    built.scheduler = EulerDiscreteScheduler.from_config(built.scheduler.config)
    return built


def test_settings_that_were_registered_on_the_scheduler_later_count() -> None:
    """The library lists the defaults in use when a scheduler is made, and drops their values when another is made from it."""
    built, row = _euler(), tiny.row(steps=2)
    before = _ours(built, row)
    built.scheduler.register_to_config(prediction_type="v_prediction")
    found = _ours(built, row)
    assert np.abs(found - _theirs(built, row)).max() <= 1 and np.abs(found - before).max() > 20
    for name in (None, "ddim"):
        assert adapt(built).make_scheduler(name, 2).prediction_type == "v_prediction"


def test_noise_levels_that_were_set_on_the_scheduler_by_hand_count() -> None:
    built, row = tiny.pipeline(), tiny.row(steps=2)
    before = _ours(built, row)
    built.scheduler.alphas_cumprod = built.scheduler.alphas_cumprod**1.5
    found = _ours(built, row)
    assert np.abs(found - _theirs(built, row)).max() <= 1 and np.abs(found - before).max() > 1


def test_a_replaced_method_of_the_scheduler_is_refused() -> None:
    built = tiny.pipeline()
    theirs = built.scheduler.step
    built.scheduler.step = lambda *inputs, **options: theirs(*inputs, **options)
    with pytest.raises(ValueError, match=r"replaced step\(\)"):
        adapt(built).make_scheduler(None, 2)


def test_a_default_device_changes_nothing() -> None:
    row = tiny.row(steps=2, methods=METHODS)
    expected = _ours(tiny.shared_pipeline(), row)
    torch.set_default_device("meta")
    try:
        found = _ours(tiny.shared_pipeline(), row)
        assert torch.zeros(1).is_meta
    finally:
        torch.set_default_device(None)
    assert np.array_equal(found, expected)


def test_a_default_precision_changes_nothing() -> None:
    row = tiny.row(steps=2, methods=METHODS)
    expected = _ours(tiny.shared_pipeline(), row)
    torch.set_default_dtype(torch.float64)
    try:
        found = _ours(tiny.shared_pipeline(), row)
    finally:
        torch.set_default_dtype(torch.float32)
    assert np.abs(found - expected).max() <= 1


def test_weights_made_in_inference_mode_serve_all_but_guidance_and_stay_as_they_are() -> None:
    with torch.inference_mode():
        built = tiny.pipeline()
    model = adapt(built)
    edited, guided = mark_rows(model, [tiny.row(id=c.name, steps=1, methods=(c,)) for c in reversed(METHODS)])
    assert edited.problem is None
    assert guided.problem is not None and "the weights of unet were made inside torch.inference_mode()" in guided.problem
    assert [result.status for result in sample_rows(model, [edited])] == ["ok"]
    assert all(weight.requires_grad for weight in built.unet.parameters())


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_weights_that_hold_nothing(part: str) -> None:
    built = tiny.pipeline()
    getattr(built, part).to("meta")
    with pytest.raises(UnsupportedModelError, match=f"{part} has weights on the device 'meta'"):
        adapt(built)


@pytest.mark.parametrize("made", [tiny.pipeline, xl.pipeline], ids=["SD", "SDXL"])
def test_a_picture_processor_of_one_s_own_is_used_as_the_library_does(made: Any) -> None:
    built, row = made(), tiny.row(steps=1)
    built.image_processor = VaeImageProcessor(vae_scale_factor=2, do_normalize=False)
    assert np.abs(_ours(built, row) - _theirs(built, row)).max() <= 1


def test_steps_that_the_scheduler_cannot_make_are_refused_before_anything_runs() -> None:
    few, enough = mark_rows(tiny.model(), [tiny.row(str(steps), steps=steps, scheduler="pndm") for steps in (1, 4)])
    assert few.problem is not None and "steps must be more for PNDMScheduler; got 1" in few.problem
    assert enough.problem is None
