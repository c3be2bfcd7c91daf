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
from attnguide.engine.cfg import pass_context
from attnguide.engine.noise import generators, initial_noise
from attnguide.models.base import ModelAdapter
from attnguide.models.folder import UnsupportedModelError
from attnguide.models.language import packed, unpacked
from attnguide.models.load import adapt
from attnguide.prompt.tokens import token_indices
from attnguide.sampling.check import check_rows
from attnguide.sampling.table import sample_batch
from attnguide.types import MethodConfig, Region, Sample, SampleResult
from tests import tiny
from tests.closeness import assert_close
from tests.models import families

FAMILIES = [name for name in ("qwen_image", "z_image", "krea2", "lumina2", "qwen_image_21") if name in families.available()]
UNEVEN = [name for name in FAMILIES if name in ("lumina2", "qwen_image_21")]
"""Families that read texts of different lengths in forwards of their own."""

PACKED = {"qwen_image": 2, "krea2": 2, "qwen_image_21": 1}
SCALES = {"qwen_image": ("true_cfg_scale", 0.0), "qwen_image_21": ("true_cfg_scale", 0.0), "lumina2": ("guidance_scale", 0.0)}
OWN = {"qwen_image_21": {"use_kv_cache": False}}


def side(family: str) -> int:
    """Of a picture of 8 x 8 cells, in pixels."""
    return 128 if family == "qwen_image_21" else 32


CAT, BALL = Region("red cat", box=(0.0, 0.0, 0.5, 0.75)), Region("blue ball", box=(0.5, 0.25, 1.0, 1.0))


@cache
def model(family: str) -> ModelAdapter:
    return adapt(families.shared(family))


def row(family: str, id: str = "0", **settings: Any) -> Sample:
    plain = {"width": side(family), "height": side(family), "steps": 2, "cfg_scale": 1.0, "regions": (), "scheduler": None}
    return tiny.row(id, **{**plain, **settings})


def latents(family: str, rows: list[Sample]) -> list[Tensor]:
    results: list[SampleResult] = sample_batch(model(family), rows)
    assert [result.status.partition(":")[0] for result in results] == ["ok"] * len(rows), results
    return [result.latents for result in results if result.latents is not None]


def of_pipeline(family: str, sample: Sample, **further: Any) -> Tensor:
    """Latents of the row as the family's own pipeline makes them, in the layout of ours."""
    adapter = model(family)
    height, width = sample.height or side(family), sample.width or side(family)
    noise = initial_noise(generators([sample.seed]), adapter.latent_shape(height, width), adapter.dtype, adapter.device)
    patch, scale = PACKED.get(family, 0), SCALES.get(family, ("guidance_scale", -1.0))
    made: Tensor = families.sample(
        family,
        sample.prompt,
        height=height,
        width=width,
        num_inference_steps=sample.steps,
        latents=packed(noise, patch) if patch else noise,
        negative_prompt=sample.negative_prompt,
        **{scale[0]: sample.cfg_scale + scale[1]},
        **(OWN.get(family, {}) | further),
    )
    return unpacked(made, noise, patch)[0] if patch else made[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_latents_are_the_pipeline_s_own(family: str) -> None:
    wide = row(family, width=2 * side(family))
    assert torch.equal(latents(family, [wide])[0], of_pipeline(family, wide))
    # The pipeline asks for one half after the other; here both are padded to one length, under a mask, where that can be.
    guided = row(family, prompt="a red cat and a blue ball", negative_prompt="a dog", cfg_scale=4.0, height=2 * side(family))
    found, expected = latents(family, [guided])[0], of_pipeline(family, guided)
    assert_close(found, expected, 0.0 if family in UNEVEN else 1e-4)
    if family == "qwen_image_21":
        assert_close(found, of_pipeline(family, guided, use_kv_cache=True))


def test_latents_of_z_image_stay_wide_as_in_its_pipeline() -> None:
    pipeline, sample = families.build("z_image").to(torch.bfloat16), row("z_image")
    noise = initial_noise(generators([sample.seed]), (4, 16, 16), torch.float32, torch.device("cpu"))
    size = {"height": 32, "width": 32, "num_inference_steps": 2}
    expected = pipeline(sample.prompt, guidance_scale=0.0, latents=noise, output_type="latent", **size)[0]
    (result,) = sample_batch(adapt(pipeline), [sample])
    assert result.latents is not None and torch.equal(result.latents, expected[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_reading_changes_nothing_and_gradients_reach_every_row(family: str) -> None:
    adapter, prompts = model(family), ["a cat", "a red cat and a blue ball"]
    height, width = side(family), 2 * side(family)
    states = adapter.encode_prompt(prompts, None)
    step = adapter.make_scheduler(None, 4, adapter.latent_shape(height, width)).steps[1]
    inputs = initial_noise(generators([0, 1]), adapter.latent_shape(height, width), adapter.dtype, adapter.device)
    modules = adapter.attention_modules(height, width)
    context = pass_context(step, "guide", (0, 1), ("cond",))
    recorder = Recorder()
    joint = (SiteSelector("joint"),) if family not in UNEVEN else ()
    probe = Probe("probs", recorder, SiteSelector(also=joint), frozenset({"guide"}))
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


METHODS: dict[str, dict[str, Any]] = {
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
    assert len(read.tokens) == int(states.extra["text_mask"][0].sum()) or family == "krea2"
    assert [read.tokens[position][1:] for position in token_indices(read, "blue ball")] == ["blue", "ball"]
    other = adapter.encode_prompt(["a red cat and a blue dog"], None)
    (changed,) = token_indices(read, "ball")
    same = (states.cond == other.cond).flatten(2).all(2)[0]
    assert same[:changed].all() and not same[changed]  # attention of the text encoder is causal


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_go_in_and_out(family: str) -> None:
    adapter = model(family)
    height, width = side(family), 2 * side(family)
    shape = adapter.latent_shape(height, width)
    (picture,) = adapter.decode(torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)))
    assert picture.image is not None and picture.image.size == (width, height)
    assert adapter.encode_image([picture.image]).shape == (1, *shape)
    with pytest.raises(ValueError, match="width must be a multiple of"):
        adapter.latent_shape(height, width + 1)
    if family in ("z_image", "lumina2"):
        with pytest.raises(ValueError, match="height must be at most 256 for"):
            adapter.latent_shape(260, width)


@pytest.mark.parametrize("family", UNEVEN)
def test_parts_of_a_pass_are_computed_again_as_they_were(family: str) -> None:
    adapter = adapt(families.build(family).to(torch.float64))
    prompts, shape = ["a cat", "a red cat and a blue ball"], adapter.latent_shape(side(family), side(family))
    states, step = adapter.encode_prompt(prompts, None), adapter.make_scheduler(None, 4, shape).steps[1]
    modules, context = adapter.attention_modules(side(family), side(family)), pass_context(step, "guide", (0, 1), ("cond",))
    columns = token_indices(adapter.tokenize(prompts[1]), "blue ball")

    def gradient() -> Tensor:
        recorder, leaf = Recorder(), initial_noise(generators([0, 1]), shape, adapter.dtype, adapter.device).requires_grad_()
        probe = Probe("probs", recorder, SiteSelector("cross"), frozenset({"guide"}))
        with attach(modules, [probe], [], adapter.network, columns) as attention, attention.during(context):
            adapter.predict(leaf, step, states.for_pass(context))
        found: Tensor = torch.autograd.grad(torch.stack([one.sum() for one in recorder.tensors.values()]).sum(), leaf)[0]
        return found

    plain = gradient()
    adapter.network.enable_gradient_checkpointing()  # type: ignore[operator]
    assert plain[1].abs().max() > 0
    assert_close(gradient(), plain, 1e-9)


SOURCE = {"source_prompt": "a blue cat and a red ball"}
COMPARING: dict[str, MethodConfig] = {
    "bounded": MethodConfig("bounded_attention", {"iterations": 1, "refine_start": 0.5, "stop": 0.5}),
    "prompt-to-prompt": MethodConfig("prompt_to_prompt", {**SOURCE, "blend": "red cat", "blend_source": "blue cat"}),
    "masactrl": MethodConfig("masactrl", {**SOURCE, "start": 0.0}),
    "union": MethodConfig("masactrl", {**SOURCE, "start": 0.0, "union": True}),
    "swap": MethodConfig("cross_attention_control", SOURCE),
}


def _comparing(family: str, name: str, **settings: Any) -> Sample:
    return row(family, methods=(COMPARING[name],), regions=(CAT, BALL), cfg_scale=4.0, **settings)


@pytest.mark.parametrize("name", COMPARING)
def test_what_compares_elements_does_the_same_in_forwards_for_each_half(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A negative prompt of as many tokens shares the forward; taken apart by half, the picture stays."""
    family = "qwen_image_21"
    if family not in FAMILIES:
        return
    given = _comparing(family, name, negative_prompt="a red dog and a blue dog")
    together = _latents_of(family, given)
    apart = {1: [[0]], 2: [[1], [0]], 3: [[1, 2], [0]], 4: [[1, 3], [0, 2]]}  # the conditional half first
    monkeypatch.setattr("attnguide.models.language.by_length", lambda lengths: apart[len(lengths)])
    assert_close(_latents_of(family, given), together, 1e-9)


def _latents_of(family: str, given: Sample) -> Tensor:
    (result,) = sample_batch(wide_model(family), [given])
    assert result.status == "ok" and result.latents is not None, result.status
    return result.latents


@pytest.mark.parametrize("name", COMPARING)
@pytest.mark.parametrize("family", UNEVEN)
def test_what_compares_elements_acts_where_the_halves_differ_in_length(family: str, name: str) -> None:
    given = _comparing(family, name)
    check_rows(model(family), [given])
    plain = latents(family, [replace(given, methods=(), regions=())])[0]
    assert (latents(family, [given])[0] - plain).abs().max() > 1e-4 * plain.abs().max()


@pytest.mark.parametrize("family", UNEVEN)
def test_what_cannot_be_compared_in_parts_is_refused(family: str) -> None:
    longer = {"source_prompt": "a blue cat and a red ball on a dog"}
    refusals = {
        r"'masactrl' compares a row with its source, but .*has \d+ tokens and the source prompt \d+;": longer,
        r"'masactrl' masks both halves of a pass by what it saw of one": {**SOURCE, "words": "cat", "source_words": "cat"},
    }
    for said, options in refusals.items():
        with pytest.raises(ValueError, match=said):
            check_rows(model(family), [row(family, methods=(MethodConfig("masactrl", options),), cfg_scale=4.0)])
    rows = [_comparing(family, "bounded"), _comparing(family, "bounded", id="1", prompt="a red cat , a dog and a blue ball")]
    with pytest.raises(ValueError, match="SubjectBounds compares elements of a pass, but this network reads texts"):
        sample_batch(model(family), rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_further_texts_stand_behind_the_prompt_where_padding_stays(family: str) -> None:
    regional = row(family, regions=(CAT, BALL), methods=(MethodConfig("regional_prompts", {"stop": 1.0}),))
    if model(family).repacks_text:
        with pytest.raises(ValueError, match=r"'regional_prompts' puts further texts behind the prompt, which .* would read"):
            check_rows(model(family), [regional])
    else:
        found, plain = latents(family, [regional])[0], latents(family, [row(family)])[0]
        assert (found - plain).abs().max() > 1e-3 * plain.abs().max()


def test_what_would_be_misread_is_refused() -> None:
    distilled = families.build("qwen_image")
    distilled.transformer.register_to_config(guidance_embeds=True)
    with pytest.raises(UnsupportedModelError, match="guidance_embeds"):
        adapt(distilled)
    other = families.build("krea2")
    other.vae = families.shared("z_image").vae
    with pytest.raises(UnsupportedModelError, match="vae must be AutoencoderKLQwenImage; got AutoencoderKL"):
        adapt(other)
