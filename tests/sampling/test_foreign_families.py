"""Rows with input pictures of other families: the steps, the noise and the latents are those of their own pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from attnguide.inputs import Control
from attnguide.models.load import adapt
from attnguide.sampling.check import mark_rows
from attnguide.sampling.table import sample_batch
from attnguide.types import MethodConfig, Sample
from tests import tiny
from tests.closeness import assert_close
from tests.steering import pipelines

NAMES = ("sdxl_img2img", "sdxl_inpaint", "sdxl_controlnet", "sd3_img2img", "flux_img2img", "flux_inpaint")


def _row(name: str, folder: Path, **given: Any) -> Sample:
    kind, (height, width) = pipelines.KINDS[name], pipelines.size("sd")
    inputs: dict[str, Any] = {}
    pictures = pipelines.inputs("sd")
    for field in ("image", "control_image", "mask_image"):
        pictures[field].save(folder / f"{field}.png")
    if "strength" in kind.inputs:
        inputs |= {"init_image": str(folder / "image.png"), "strength": 0.5}
    if "mask_image" in kind.inputs:
        inputs["inpaint_mask"] = str(folder / "mask_image.png")
    if "controlnet" in name:
        shown = "control_image" if "control_image" in kind.inputs else "image"
        inputs["control"] = (Control("canny", str(folder / f"{shown}.png"), pipelines.CONTROL_SCALE),)
    common = {"height": height, "width": width, "steps": 4, "cfg_scale": 4.0, "regions": (tiny.CAT,)}
    return Sample("row", tiny.PROMPT, **{**common, **inputs, **given})


@pytest.mark.parametrize("name", NAMES)
def test_a_plain_row_is_that_of_its_pipeline(name: str, tmp_path: Path) -> None:
    kind = pipelines.KINDS[name]
    model, own = adapt(pipelines.shared(kind.family)), pipelines.build(name)
    own.register_modules(vae=model.pipeline.vae)
    if "controlnet" in name:
        model.controlnets["canny"] = own.controlnet
    row = _row(name, tmp_path)
    assert mark_rows(model, [row])[0].problem is None
    (found,) = sample_batch(model, [row])
    assert found.status == "ok" and found.image is not None and found.latents is not None
    assert found.image.size == (row.width, row.height)
    given = {key: pipelines.inputs("sd")[key] for key in kind.inputs}
    given |= {"strength": 0.5} if "strength" in given else {}
    sizes = {} if name == "sdxl_img2img" else {"height": row.height, "width": row.width}
    expected = own(
        row.prompt,
        num_inference_steps=4,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        **sizes,
        **given,
    ).images
    if expected.ndim == 3:
        expected = own._unpack_latents(expected, row.height, row.width, own.vae_scale_factor)
    assert_close(found.latents, expected[0])
    assert found.cost.unet_forwards == len(model.halves(row)) * row.denoising_steps


@pytest.mark.parametrize("name", ["sd3_img2img", "sd3_inpaint", "flux_inpaint"])
def test_it_is_steered(name: str, tmp_path: Path) -> None:
    kind = pipelines.KINDS[name]
    model = adapt(pipelines.shared(kind.family))
    rows = [_row(name, tmp_path, methods=methods) for methods in ((), (MethodConfig("mask_guidance"),))]
    plain, steered = (sample_batch(model, [row])[0] for row in rows)
    assert steered.status == "ok" and steered.cost.unet_backwards > 0
    assert plain.latents is not None and steered.latents is not None
    assert not torch.equal(plain.latents, steered.latents)
    assert type(model.pipeline) is getattr(diffusers, type(model.pipeline).__name__)
