"""Families whose text is a language model's states: their own pipelines, their attention, and methods on them."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from attnguide.attention.attach import attach
from attnguide.attention.capture import Probe, Recorder
from attnguide.attention.sites import SiteSelector
from attnguide.models.base import ModelAdapter
from attnguide.models.folder import UnsupportedModelError
from attnguide.models.language import packed, unpacked
from attnguide.models.load import adapt
from attnguide.prompt.tokens import token_indices
from attnguide.sampling.cfg import pass_context
from attnguide.sampling.noise import generators, initial_noise
from attnguide.sampling.table import sample_batch
from attnguide.types import MethodConfig, Region, Sample, SampleResult
from tests import tiny
from tests.closeness import assert_close
from tests.models import families

FAMILIES = [name for name in ("qwen_image", "z_image", "krea2") if name in families.available()]
SIDE = 32
CAT, BALL = Region("red cat", box=(0.0, 0.0, 0.5, 0.75)), Region("blue ball", box=(0.5, 0.25, 1.0, 1.0))


@cache
def model(family: str) -> ModelAdapter:
    return adapt(families.shared(family))


def row(family: str, id: str = "0", **settings: Any) -> Sample:
    plain = {"width": SIDE, "height": SIDE, "steps": 2, "cfg_scale": 1.0, "regions": (), "scheduler": None}
    return tiny.row(id, **{**plain, **settings})


def latents(family: str, rows: list[Sample]) -> list[Tensor]:
    results: list[SampleResult] = sample_batch(model(family), rows)
    assert [result.status.partition(":")[0] for result in results] == ["ok"] * len(rows), results
    return [result.latents for result in results if result.latents is not None]


def of_pipeline(family: str, sample: Sample) -> Tensor:
    """Latents of the row as the family's own pipeline makes them, in the layout of ours."""
    adapter = model(family)
    height, width = sample.height or SIDE, sample.width or SIDE
    noise = initial_noise(generators([sample.seed]), adapter.latent_shape(height, width), adapter.dtype, adapter.device)
    patch = 0 if family == "z_image" else adapter.patch  # type: ignore[attr-defined]
    scale = {"qwen_image": ("true_cfg_scale", 0.0)}.get(family, ("guidance_scale", -1.0))
    made: Tensor = families.sample(
        family,
        sample.prompt,
        height=height,
        width=width,
        num_inference_steps=sample.steps,
        latents=packed(noise, patch) if patch else noise,
        negative_prompt=sample.negative_prompt,
        **{scale[0]: sample.cfg_scale + scale[1]},
    )
    return unpacked(made, noise, patch)[0] if patch else made[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_latents_are_the_pipeline_s_own(family: str) -> None:
    wide = row(family, height=SIDE, width=2 * SIDE)
    assert torch.equal(latents(family, [wide])[0], of_pipeline(family, wide))
    # The pipeline asks for one half after the other; here both are padded to one length, under a mask.
    guided = row(family, prompt="a red cat and a blue ball", negative_prompt="a dog", cfg_scale=4.0, height=2 * SIDE)
    assert_close(latents(family, [guided])[0], of_pipeline(family, guided))


@pytest.mark.parametrize("family", FAMILIES)
def test_reading_changes_nothing_and_gradients_reach_every_row(family: str) -> None:
    adapter, prompts = model(family), ["a cat", "a red cat and a blue ball"]
    states = adapter.encode_prompt(prompts, None)
    step = adapter.make_scheduler(None, 4, adapter.latent_shape(SIDE, 2 * SIDE)).steps[1]
    inputs = initial_noise(generators([0, 1]), adapter.latent_shape(SIDE, 2 * SIDE), adapter.dtype, adapter.device)
    modules = adapter.attention_modules(SIDE, 2 * SIDE)
    context = pass_context(step, "guide", (0, 1), ("cond",))
    recorder = Recorder()
    probe = Probe("probs", recorder, SiteSelector(also=(SiteSelector("joint"),)), frozenset({"guide"}))
    with torch.no_grad():
        plain = adapter.predict(inputs, step, states.for_pass(context))
        with attach(modules, [probe], [], adapter.network) as attention, attention.during(context):
            read = adapter.predict(inputs, step, states.for_pass(context))
    assert plain is not None and read is not None and torch.equal(plain, read) and plain.shape == inputs.shape
    assert recorder.tensors.keys() == modules.keys()
    for site, probs in recorder.tensors.items():
        if site.kind == "cross":
            own = recorder.tensors[next(other for other in modules if (other.name, other.kind) == (site.name, "self"))]
            total = probs.sum(-1) + own.sum(-1)
            assert site.cells == probs.shape[2] == own.shape[3] and (total <= 1 + 1e-5).all() and total.min() > 0.5
        else:
            assert_close(probs.sum(-1), torch.ones(probs.shape[:3])) if site.kind == "joint" else None

    columns = token_indices(adapter.tokenize(prompts[0]), "cat")
    cross = Probe("probs", recorder, SiteSelector("cross"), frozenset({"guide"}))
    leaf = inputs.clone().requires_grad_()
    until = [site for site in modules if site.kind == "cross"]
    with attach(modules, [cross], [], adapter.network, columns) as attention, attention.during(context, until):
        assert adapter.predict(leaf, step, states.for_pass(context), until=until) is None
    for position in range(2):
        loss = torch.stack([recorder.tensors[site][position].square().sum() for site in until]).sum()
        (gradient,) = torch.autograd.grad(loss, leaf, retain_graph=True)
        assert gradient[position].abs().max() > 0 and gradient[1 - position].abs().max() == 0


METHODS = {
    "mask_guidance": {"stop": 1.0},
    "attend_and_excite": {"stop": 1.0, "max_refinements": 1},
    "stable": {"attempts": 1},
    "inject5": {"start": 0.0},
}


@cache
def wide_model(family: str) -> ModelAdapter:
    """In float64, as guidance makes much of single precision's rounding."""
    return adapt(families.build(family).to(torch.float64))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_with_methods_equal_rows_alone(family: str, name: str) -> None:
    """Texts of two lengths, with classifier-free guidance and without."""
    adapter, methods = wide_model(family), (MethodConfig(name, METHODS[name]),)
    prompts = ("a red cat and a blue ball", "a red cat , a photo of a dog and a blue ball")
    rows = [
        row(family, str(index), prompt=prompt, seed=index, cfg_scale=1.0 + 3 * index, regions=(CAT, BALL), methods=methods)
        for index, prompt in enumerate(prompts)
    ]
    together = sample_batch(adapter, rows)
    for found, one in zip(together, rows, strict=True):
        (alone,), (plain,) = sample_batch(adapter, [one]), sample_batch(adapter, [replace(one, methods=(), regions=())])
        assert found.status == alone.status == "ok"
        assert found.latents is not None and alone.latents is not None and plain.latents is not None
        assert_close(found.latents, alone.latents, 1e-6)
        assert (found.latents - plain.latents).abs().max() > 1e-4 * plain.latents.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_words_stand_where_the_network_reads_them(family: str) -> None:
    adapter = model(family)
    read = adapter.tokenize("a red cat and a blue ball")
    states = adapter.encode_prompt([read.text], None)
    assert len(read.tokens) == states.length
    assert [read.tokens[position] for position in token_indices(read, "blue ball")] == ["Ġblue", "Ġball"]
    other = adapter.encode_prompt(["a red cat and a blue dog"], None)
    (changed,) = token_indices(read, "ball")
    same = (states.cond == other.cond).flatten(2).all(2)[0]
    assert same[:changed].all() and not same[changed]  # attention of the text encoder is causal


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_go_in_and_out(family: str) -> None:
    adapter = model(family)
    shape = adapter.latent_shape(SIDE, 2 * SIDE)
    (picture,) = adapter.decode(torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)))
    assert picture.image is not None and picture.image.size == (2 * SIDE, SIDE)
    assert adapter.encode_image([picture.image]).shape == (1, *shape)
    with pytest.raises(ValueError, match="width must be a multiple of"):
        adapter.latent_shape(SIDE, SIDE + 1)


def test_what_would_be_misread_is_refused() -> None:
    distilled = families.build("qwen_image")
    distilled.transformer.register_to_config(guidance_embeds=True)
    with pytest.raises(UnsupportedModelError, match="guidance_embeds"):
        adapt(distilled)
    other = families.build("krea2")
    other.vae = families.shared("z_image").vae
    with pytest.raises(UnsupportedModelError, match="vae must be AutoencoderKLQwenImage; got AutoencoderKL"):
        adapt(other)
