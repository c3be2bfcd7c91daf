"""Inpainting where the pipelines of diffusers do not do it: networks with another number of latent channels than four."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attnguide.models.base import ModelAdapter
from attnguide.models.load import adapt
from attnguide.sampling import keeping
from attnguide.sampling.table import sample_batch
from attnguide.types import MethodConfig
from tests.closeness import assert_close
from tests.steering import pipelines

from .test_foreign import SIZE, latents, row

INPAINT = "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(3):
        pipelines.picture(seed, *SIZE).save(folder / f"{seed}.png")
    pipelines.inputs("sd")["mask_image"].save(folder / "mask.png")
    return folder


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> ModelAdapter:
    """Four channels, as if they were no number that diffusers knows."""
    monkeypatch.setitem(keeping.KEEPING, "StableDiffusionPipeline", 3)
    model = adapt(pipelines.shared("sd"))
    model.controlnets["canny"] = pipelines.shared("sd_controlnet").controlnet
    return model


@pytest.mark.parametrize("scheduler", ["ddim", "heun"])
def test_latents_are_those_of_diffusers(
    model: ModelAdapter, folder: Path, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = row(folder, "inpaint", strength=1.0, scheduler=scheduler)
    (found,) = sample_batch(model, [one])
    monkeypatch.setattr(f"{INPAINT}.retrieve_latents", lambda encoded, generator: encoded.latent_dist.mode())
    monkeypatch.setitem(keeping.KEEPING, "StableDiffusionPipeline", 4)
    (expected,) = sample_batch(model, [one])
    assert_close(latents(found), latents(expected))


@pytest.mark.parametrize(
    ("kind", "strength", "way"),
    [
        ("inpaint", 1.0, None),
        ("inpaint", 0.6, "img2img"),
        ("controlnet_inpaint", 0.6, "controlnet_img2img"),
    ],
)
def test_another_pipeline_makes_the_row(model: ModelAdapter, folder: Path, kind: str, strength: float, way: str | None) -> None:
    rows = [row(folder, kind, number, strength=strength, methods=(MethodConfig("mask_guidance"),)) for number in range(2)]
    assert keeping.way_of(model, rows[0]) == way
    together = sample_batch(model, rows)
    (alone,) = sample_batch(model, rows[1:])
    assert_close(latents(together[1]), latents(alone))
    before, after = np.asarray(Image.open(folder / "1.png")), np.asarray(together[1].image)
    assert (after[:, :24] == before[:, :24]).all() and (after[:, 24:] != before[:, 24:]).any()
    kept = model.encode_image([Image.open(folder / "1.png")])[0]
    assert torch.equal(latents(alone)[..., :12], kept[..., :12])
