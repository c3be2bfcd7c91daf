"""FLUX.1, FLUX.2 and Chroma against diffusers' own pipelines, and methods that steer them."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from attnguide.attention.attach import attach
from attnguide.attention.capture import Probe, Recorder
from attnguide.engine.cfg import pass_context
from attnguide.engine.observer import BatchInfo, Observer
from attnguide.models.base import ModelAdapter
from attnguide.models.folder import UnsupportedModelError
from attnguide.models.load import adapt
from attnguide.prompt.tokens import token_indices
from attnguide.sampling.check import check_rows, sampleable
from attnguide.sampling.sampler import Sampler
from attnguide.sampling.table import sample_batch
from attnguide.types import MethodConfig, Sample
from tests import tiny
from tests.closeness import assert_close
from tests.models import families

FAMILIES = [name for name in families.available() if name in ("flux_dev", "flux_schnell", "chroma", "flux2", "flux2_klein")]
SIZE = {"height": 32, "width": 48}


@functools.cache
def model(family: str) -> ModelAdapter:
    return adapt(families.shared(family), family)


@functools.cache
def double(family: str) -> ModelAdapter:
    return adapt(families.build(family).to(torch.float64), family)


def plain(id: str = "0", **settings: Any) -> Sample:
    return tiny.row(id, **{"steps": 2, **SIZE, "methods": (), "regions": (), "cfg_scale": 1.0, **settings})


def latents(row: Sample, adapter: ModelAdapter) -> Tensor:
    (result,) = sample_batch(adapter, [row])
    assert result.status == "ok" and result.latents is not None, result.status
    return result.latents


def peer(family: str, row: Sample, **options: Any) -> Tensor:
    """Latents of diffusers' own pipeline."""
    found = families.sample(
        family,
        row.prompt,
        num_inference_steps=row.steps,
        guidance_scale=row.cfg_scale,
        generator=torch.Generator().manual_seed(row.seed),
        **SIZE,
        **options,
    )
    _, height, width = model(family).latent_shape(row.height or 0, row.width or 0)
    return families.unpacked(found, height, width)[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plain_row_equals_the_pipelines_to_the_bit(family: str) -> None:
    row = plain()
    assert torch.equal(latents(row, model(family)), peer(family, row))


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "flux_schnell"])
def test_the_guidance_weight_means_what_it_means_to_the_pipeline(family: str) -> None:
    """A condition of dev and of FLUX.2; two halves, which diffusers makes in two passes, of the others."""
    row = plain(cfg_scale=4.0)
    found = latents(row, model(family))
    assert_close(found, peer(family, row), 1e-5)
    assert (found - latents(plain(), model(family))).abs().max() > 1e-3


@pytest.mark.parametrize("family", [name for name in FAMILIES if name.startswith("flux_")])
def test_true_guidance_runs_both_halves(family: str) -> None:
    row = plain(cfg_scale=3.5, true_cfg_scale=3.0, negative_prompt="a blue dog")
    assert model(family).halves(row) == ("uncond", "cond") and model(family).combining_scale(row) == 3.0
    assert_close(latents(row, model(family)), peer(family, row, true_cfg_scale=3.0, negative_prompt="a blue dog"), 1e-5)
    assert model(family).halves(plain(cfg_scale=3.5, true_cfg_scale=3.0)) == ("cond",)  # nothing is negative


def test_schnell_reads_no_guidance_weight() -> None:
    assert torch.equal(*(latents(plain(cfg_scale=scale), model("flux_schnell")) for scale in (1.0, 7.5)))
    with pytest.warns(UserWarning, match="cfg_scale has no effect: flux_schnell reads no weight") as told:
        sampleable(model("flux_schnell"), [plain(cfg_scale=7.5), plain("1", cfg_scale=3.0)])
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampleable(model("flux_schnell"), [plain(cfg_scale=scale) for scale in (0.0, 1.0, Sample.cfg_scale)])
        sampleable(model("flux_dev"), [plain(cfg_scale=7.5), plain(steps=30)])


def test_many_steps_that_nothing_guides_are_told_of_once() -> None:
    """A network that reads no weight and is given many steps is FLUX.1-schnell in format alone."""
    rows = [plain(steps=30), plain("1", steps=9)]
    with pytest.warns(UserWarning, match="Nothing guides these pictures: flux_schnell .*true_cfg_scale above 1 with a") as told:
        sampleable(model("flux_schnell"), rows)
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampleable(model("flux_schnell"), [plain(steps=8), plain(steps=30, true_cfg_scale=2.0, negative_prompt="")])


def test_prompts_beyond_clip_are_read_by_t5_and_told_of_once() -> None:
    long = "a cat and " * 12 + "a blue dog"
    rows = [plain(prompt=long), plain("1", prompt=f"{long} and a ball")]
    with pytest.warns(UserWarning, match="longer than the 24 tokens that CLIP reads: flux_dev reads their beginning") as told:
        sampleable(model("flux_dev"), rows)
    assert len(told) == 1
    assert torch.equal(latents(rows[0], model("flux_dev")), peer("flux_dev", rows[0]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"true_cfg_scale": 3.0}, "true_cfg_scale above 1 needs a negative_prompt, which may be empty"),
        ({"negative_prompt": "a dog"}, "negative_prompt: flux_dev reads one with a true_cfg_scale above 1 only; got 'a dog'"),
        ({"negative_prompt": "a dog", "true_cfg_scale": 0.5}, "negative_prompt: flux_dev reads one with a true_cfg_scale"),
    ],
    ids=["no prompt", "no scale", "below one"],
)
def test_half_of_what_true_guidance_needs_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model("flux_dev").check_row(plain(**settings))


def test_flux2_with_the_other_text_encoder_is_refused() -> None:
    """The tokenizer of one writes another conversation than the class of the other asks for."""
    wanted = {
        "flux2": "Mistral3ForConditionalGeneration; got Qwen3ForCausalLM",
        "flux2_klein": "Qwen3ForCausalLM; got MistralModel",
    }
    for family, kinds in wanted.items():
        built, other = families.build(family), families.shared("flux2_klein" if family == "flux2" else "flux2")
        built.text_encoder, built.tokenizer = other.text_encoder, other.tokenizer
        with pytest.raises(UnsupportedModelError, match=f"text_encoder must be a {kinds}"):
            adapt(built)


def test_flux2_has_no_second_half() -> None:
    with pytest.raises(ValueError, match="negative_prompt: flux2 is distilled for guidance and has no unconditional half"):
        model("flux2").check_row(plain(negative_prompt="a dog"))


class _Probing(Observer):
    def __init__(self) -> None:
        self.recorder = Recorder()

    def probes(self, info: BatchInfo) -> list[Probe]:
        return [Probe("probs", self.recorder)]


@pytest.mark.parametrize("family", FAMILIES)
def test_reading_every_map_changes_nothing(family: str) -> None:
    row, watch = plain(), _Probing()
    found = Sampler(model(family), observer=watch).run([row])[0].latents
    assert found is not None and torch.equal(found, latents(row, model(family)))
    sites = watch.recorder.tensors
    assert {site.kind for site in sites} >= {"cross", "self"} and {(site.height, site.width) for site in sites} == {(8, 12)}
    assert len({site.name for site in sites}) == 5  # two blocks of two streams, three of one


@pytest.mark.parametrize("family", FAMILIES)
def test_a_gradient_reaches_every_row_from_every_site(family: str) -> None:
    adapter = model(family)
    step, states = adapter.make_scheduler(None, 2).steps[1], adapter.encode_prompt([tiny.PROMPT, "a blue dog"], None)
    modules = adapter.attention_modules(32, 32)
    noise = torch.randn(2, *adapter.latent_shape(32, 32), generator=torch.Generator().manual_seed(0)).requires_grad_()
    recorder, context = Recorder(), pass_context(step, "guide", [0, 1], ("cond",))
    with adapter.frozen(), attach(modules, [Probe("probs", recorder)], network=adapter.network) as attention:
        with torch.enable_grad(), attention.during(context, list(modules)):
            adapter.predict(noise, step, states.for_pass(context), until=list(modules))
        for site, probs in recorder.tensors.items():
            (gradient,) = torch.autograd.grad(probs[..., :4].square().sum(), noise, retain_graph=True)
            assert (gradient.flatten(1).norm(dim=1) > 0).all(), site


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("layout_guidance", {}),
        ("bounded_attention", {}),
        ("prompt_to_prompt", {"source_prompt": "a blue cat and a red ball", "edit": "refine"}),
        ("stable", {"guide": True}),
    ],
    ids=["layout_guidance", "bounded_attention", "prompt_to_prompt", "stable"],
)
@pytest.mark.parametrize("family", [name for name in ("flux_dev", "flux2") if name in FAMILIES])
def test_methods_steer_a_batch_as_its_rows(
    family: str, name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts of differing lengths, which a language model that pads on the left has at other positions."""
    monkeypatch.setattr("attnguide.models.flux.LONGEST", 48)
    monkeypatch.setattr("attnguide.models.flux2.LONGEST", 96)
    adapter, methods = double(family), (MethodConfig(name, options),)
    rows = [
        plain("0", seed=0, regions=(tiny.CAT, tiny.BALL), methods=methods),
        plain("1", seed=1, prompt="a blue ball of a dog and a red cat", regions=(tiny.CAT, tiny.BALL), methods=methods),
    ]
    check_rows(adapter, rows)
    for row, result in zip(rows, sample_batch(adapter, rows), strict=True):
        assert result.latents is not None, result.status
        assert_close(result.latents, latents(row, adapter), 1e-7)
        assert (result.latents - latents(row.plain(), adapter)).abs().max() > 1e-7 * result.latents.abs().max()


@pytest.mark.parametrize("family", [name for name in ("flux_dev", "flux2_klein") if name in FAMILIES])
def test_fused_projections_are_steered_alike(family: str) -> None:
    built = families.build(family)
    built.transformer.fuse_qkv_projections()
    row = plain(regions=(tiny.CAT, tiny.BALL), methods=(MethodConfig("layout_guidance"),))
    assert_close(latents(row, adapt(built)), latents(row, model(family)))


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_come_from_latents_and_go_back(family: str) -> None:
    adapter, row = model(family), plain()
    (result,) = sample_batch(adapter, [row])
    seen = families.sample(
        family, num_inference_steps=2, guidance_scale=1.0, output_type="pil", generator=torch.Generator().manual_seed(3), **SIZE
    )
    assert result.image is not None and result.image.tobytes() == seen[0].tobytes()
    back = adapter.encode_image([result.image])
    assert back.shape == (1, *adapter.latent_shape(32, 48)) and adapter.decode(back)[0].status == "ok"


@pytest.mark.parametrize("family", [name for name in FAMILIES if name.startswith("flux2")])
def test_words_are_found_inside_the_conversation(family: str) -> None:
    pipeline, read = families.shared(family), model(family).tokenize(tiny.PROMPT)
    written = model(family).conversation(tiny.PROMPT)  # type: ignore[attr-defined]
    padded = pipeline.tokenizer(written, padding="max_length", max_length=512, add_special_tokens=False)
    assert list(read.ids) == padded["input_ids"]
    assert [read.tokens[place] for place in token_indices(read, "red cat")] == ["Ġred", "Ġcat"]
    assert len(read.ends) == 1 and read.segments[0].sink < min(read.word_positions)


@pytest.mark.parametrize("how", ["network", "wrapped"])
def test_a_compiled_transformer_is_steered_as_written(how: str) -> None:
    held = families.build("flux_dev")
    if how == "network":
        held.transformer.compile(backend="eager")
    else:
        held.transformer = torch.compile(held.transformer, backend="eager")
    row = plain(methods=(MethodConfig("mask_guidance"), MethodConfig("inject5", {"stop": 0.5})), regions=tiny.row().regions)
    with pytest.warns(UserWarning, match=r"is compiled; passes|runs as it is, not compiled"):
        found = latents(row, adapt(held))
    assert torch.equal(found, latents(row, model("flux_dev")))
