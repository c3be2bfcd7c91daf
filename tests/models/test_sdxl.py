"""Stable Diffusion XL: equal to diffusers' own pipeline, steered by the same methods, its odd parts refused by name."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline
from safetensors.torch import save_file
from torch import Tensor

from attnguide.attention.capture import Probe, Recorder
from attnguide.engine.observer import BatchInfo, Observer
from attnguide.models.folder import UnsupportedModelError
from attnguide.models.load import ModelNotFoundError, adapt, load_model
from attnguide.models.sdxl import StableDiffusionXL
from attnguide.sampling.check import check_rows
from attnguide.sampling.sampler import Sampler
from attnguide.sampling.table import sample_batch
from attnguide.types import MethodConfig, Sample
from tests import tiny
from tests.closeness import assert_close
from tests.models import xl


@functools.cache
def model() -> StableDiffusionXL:
    adapter = adapt(xl.shared_pipeline(), "xl")
    assert isinstance(adapter, StableDiffusionXL)
    return adapter


def latents(sample: Sample, adapter: StableDiffusionXL | None = None) -> Tensor:
    result = sample_batch(adapter or model(), [sample])[0]
    assert result.latents is not None, result.status
    return result.latents


def peer(sample: Sample, pipeline: Any = None, **options: Any) -> Tensor:
    """What diffusers' own pipeline makes of a plain row."""
    found: Tensor = (pipeline or xl.shared_pipeline())(
        sample.prompt,
        num_inference_steps=sample.steps,
        guidance_scale=sample.cfg_scale,
        height=sample.height,
        width=sample.width,
        generator=torch.Generator().manual_seed(sample.seed),
        output_type="latent",
        **options,
    ).images[0]
    return found


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({}, {}),
        ({"cfg_scale": 1.0}, {}),
        ({"height": 24, "width": 40}, {}),
        ({"negative_prompt": "a blue dog"}, {"negative_prompt": "a blue dog"}),
        ({"negative_prompt": ""}, {"negative_prompt": ""}),
    ],
    ids=["cfg", "no cfg", "not square", "negative", "empty"],
)
def test_a_plain_row_equals_the_pipeline_s_to_the_bit(settings: dict[str, Any], options: dict[str, Any]) -> None:
    row = tiny.row(methods=(), **settings)
    assert torch.equal(latents(row), peer(row, **options))


def test_a_negative_prompt_that_was_not_given_is_not_the_empty_one() -> None:
    """The pipeline's states of what was not given are zero."""
    rows = [tiny.row("0", methods=()), tiny.row("1", methods=(), negative_prompt="")]
    assert not torch.equal(latents(rows[0]), latents(rows[1]))
    states = model().encode_prompt(["a cat", "a cat"], [None, ""]).uncond
    assert states is not None and not states[0].any() and states[1].any()


def test_negative_prompts_that_are_not_zeroed() -> None:
    pipeline = xl.pipeline()
    pipeline.register_to_config(force_zeros_for_empty_prompt=False)
    row = tiny.row(methods=())
    assert torch.equal(latents(row, StableDiffusionXL(pipeline)), peer(row, pipeline))
    assert not torch.equal(latents(row, StableDiffusionXL(pipeline)), latents(row))


def test_a_distilled_unet_reads_the_cfg_scale_and_makes_no_second_half() -> None:
    pipeline = xl.pipeline(time_cond_proj_dim=8)
    row = tiny.row(methods=(), cfg_scale=6.0)
    result = sample_batch(StableDiffusionXL(pipeline), [row])[0]
    assert result.latents is not None and torch.equal(result.latents, peer(row, pipeline))
    assert result.cost.unet_forwards == row.steps


class _Probing(Observer):
    def __init__(self) -> None:
        self.recorder = Recorder()

    def probes(self, info: BatchInfo) -> list[Probe]:
        return [Probe("probs", self.recorder)]


def test_reading_every_map_changes_nothing() -> None:
    row, watch = tiny.row(methods=()), _Probing()
    found = Sampler(model(), observer=watch).run([row])[0].latents
    assert found is not None and torch.equal(found, peer(row))
    sites = model().attention_sites(32, 32)
    assert set(watch.recorder.tensors) == set(sites) and len(sites) == 2 * 2 * 4
    assert {(site.kind, site.height, site.level) for site in sites} == {("self", 8, 1), ("cross", 8, 1)}


SOURCE = {"source_prompt": "a blue cat and a red ball"}
METHODS: list[tuple[str, dict[str, Any]]] = [
    ("mask_guidance", {"step_size": 20.0}),
    ("layout_guidance", {}),
    ("attend_and_excite", {}),
    ("bounded_attention", {}),
    ("self_guidance", {}),
    ("stable", {"guide": True}),
    ("forward_layout", {}),
    ("inject5", {"start": 0.0}),
    ("inject1", {"start": 0.0}),
    ("prompt_to_prompt", SOURCE),
    ("masactrl", {**SOURCE, "start": 0.0, "places": None}),
    ("pag", {}),
]


@pytest.mark.parametrize(("name", "options"), METHODS, ids=[name for name, _ in METHODS])
def test_methods_steer_a_batch_as_its_rows(name: str, options: dict[str, Any]) -> None:
    rows = [
        tiny.row(str(seed), seed=seed, steps=2, regions=regions, methods=(MethodConfig(name, options),))
        for seed, regions in ((3, (tiny.CAT, tiny.BALL)), (4, (tiny.BALL,)))
    ]
    check_rows(model(), rows)
    together = [result.latents for result in sample_batch(model(), rows)]
    for row, found in zip(rows, together, strict=True):
        assert found is not None
        assert_close(found, latents(row))
        assert (found - latents(row.plain())).abs().max() > 1e-4 * found.abs().max()


def test_a_folder_opens_and_draws(tmp_path: Path) -> None:
    xl.shared_pipeline().save_pretrained(tmp_path / "xl")
    opened = load_model(str(tmp_path / "xl"), device="cpu")
    assert isinstance(opened, StableDiffusionXL) and opened.default_size == (32, 32)
    row = tiny.row(methods=(), steps=1)
    result = sample_batch(opened, [row])[0]
    assert result.status == "ok" and result.image is not None and result.image.size == (32, 32)
    assert result.latents is not None and torch.equal(result.latents, peer(row))


def test_a_single_file_with_two_text_encoders_is_read_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StableDiffusionXLPipeline, "from_single_file", lambda *_, **__: xl.pipeline())
    path = tmp_path / "weights.safetensors"
    save_file({"conditioner.embedders.1.model.ln_final.bias": torch.zeros(2)}, path)
    assert isinstance(load_model(str(path), device="cpu"), StableDiffusionXL)
    save_file({"conditioner.embedders.0.model.ln_final.bias": torch.zeros(2)}, path)
    with pytest.raises(ModelNotFoundError, match="could not be loaded"):
        load_model(str(path), device="cpu")


def test_pictures_go_through_the_autoencoder_s_mean_and_spread() -> None:
    pipeline = xl.pipeline()
    pipeline.vae.register_to_config(latents_mean=[0.5, -0.5, 0.0, 1.0], latents_std=[2.0, 1.0, 0.5, 1.0])
    row = tiny.row(methods=(), steps=1)
    result = sample_batch(StableDiffusionXL(pipeline), [row])[0]
    drawn = pipeline(row.prompt, num_inference_steps=1, guidance_scale=5.0, generator=torch.Generator().manual_seed(3))
    assert result.image is not None and result.image.tobytes() == drawn.images[0].tobytes()
    adapter = StableDiffusionXL(pipeline)
    encoded = adapter.encode_image([result.image])
    plain = pipeline.vae.encode(pipeline.image_processor.preprocess([result.image])).latent_dist.mode()
    mean, std = torch.tensor([0.5, -0.5, 0.0, 1.0]).view(1, -1, 1, 1), torch.tensor([2.0, 1.0, 0.5, 1.0]).view(1, -1, 1, 1)
    torch.testing.assert_close(encoded, (plain - mean) / std * pipeline.vae.config.scaling_factor)


# ------------------------------------------------------------------------------------------------------------- refusals


def test_the_image_to_image_pipeline_is_refused_with_the_way_that_works() -> None:
    parts = dict(xl.shared_pipeline().components)
    with pytest.raises(UnsupportedModelError, match=r"StableDiffusionXLPipeline\.from_pipe\(pipeline"):
        adapt(StableDiffusionXLImg2ImgPipeline(**parts, add_watermarker=False))


def test_a_refiner_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="six sizes and the pooled text, 60 channels; it reads 52, as the refiner"):
        adapt(xl.pipeline(projection_class_embeddings_input_dim=xl.POOLED + 5 * xl.SIZES))


def test_a_pipeline_without_its_first_encoder_is_refused() -> None:
    pipeline = xl.pipeline()
    pipeline.text_encoder = pipeline.tokenizer = None
    with pytest.raises(UnsupportedModelError, match="lacks its text_encoder and tokenizer"):
        adapt(pipeline)


def test_a_word_that_the_tokenizers_cut_differently_is_named() -> None:
    pipeline = xl.pipeline()
    pipeline.tokenizer_2 = tiny.tokenizer(tuple(word for word in tiny.WORDS if word != "ball"))
    with pytest.raises(ValueError, match="cut 'ball' differently"):
        StableDiffusionXL(pipeline).tokenize(tiny.PROMPT)
