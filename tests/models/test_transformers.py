"""Adapters of transformers against diffusers' own pipelines, and methods that steer them."""

import copy
import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, StableDiffusion3Img2ImgPipeline
from torch import Tensor, nn

from attnguide.attention.attach import attach
from attnguide.attention.capture import Probe, Recorder
from attnguide.engine.cfg import pass_context
from attnguide.engine.inversion import encode_pictures, invert
from attnguide.engine.observer import BatchInfo, Observer
from attnguide.models.base import ModelAdapter
from attnguide.models.folder import UnsupportedModelError
from attnguide.models.load import ModelNotFoundError, adapt, load_model
from attnguide.models.schedulers import named_flow_scheduler, named_scheduler
from attnguide.prompt.tokens import token_indices
from attnguide.sampling.check import check_rows, sampleable
from attnguide.sampling.sampler import Sampler
from attnguide.sampling.table import sample_batch
from attnguide.types import MethodConfig, Sample
from tests import tiny
from tests.closeness import assert_close
from tests.models import families

FAMILIES = ("sd3", "sd35", "pixart_alpha", "pixart_alpha_1024", "pixart_sigma", "auraflow")


@functools.cache
def model(family: str) -> ModelAdapter:
    return adapt(families.shared(family))


def latents(row: Sample, adapter: ModelAdapter) -> Tensor:
    (result,) = sample_batch(adapter, [row])
    assert result.status == "ok" and result.latents is not None, result.status
    return result.latents


def plain(id: str = "0", **settings: Any) -> Sample:
    return tiny.row(id, **{"steps": 2, "height": 32, "width": 32, "methods": (), "regions": (), **settings})


def peer(row: Sample, family: str, pipeline: Any = None, **options: Any) -> Tensor:
    """Latents of diffusers' own pipeline."""
    held = families.shared(family) if pipeline is None else pipeline
    own = {"use_resolution_binning": False, "clean_caption": False} if family.startswith("pixart") else {}
    made: Tensor = held(
        row.prompt,
        num_inference_steps=row.steps,
        height=row.height,
        width=row.width,
        guidance_scale=row.cfg_scale,
        generator=torch.Generator().manual_seed(row.seed),
        output_type="latent",
        **own,
        **options,
    )[0]
    return made[0]


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({}, {}),
        ({"cfg_scale": 1.0, "height": 32, "width": 48}, {}),
        ({"cfg_scale": 3.0, "height": 48, "negative_prompt": "a blue dog"}, {"negative_prompt": "a blue dog"}),
    ],
    ids=["cfg", "no cfg", "negative"],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_plain_row_equals_the_pipeline_s_to_the_bit(family: str, settings: dict[str, Any], options: dict[str, Any]) -> None:
    row = plain(**settings)
    assert torch.equal(latents(row, model(family)), peer(row, family, **options))


@pytest.mark.parametrize(
    ("family", "name"),
    [
        *(("sd35", name) for name in ("euler_karras", "heun", "dpmpp_2m", "unipc")),
        *(("pixart_alpha", name) for name in ("ddim", "euler", "unipc")),
        ("auraflow", "dpmpp_2m"),
    ],
)
def test_other_schedulers_equal_the_pipeline_s_too(family: str, name: str) -> None:
    held = copy.copy(families.shared(family))
    config = held.scheduler.config
    held.scheduler = named_scheduler(name, config) if family == "pixart_alpha" else named_flow_scheduler(name, config)
    row = plain(steps=4, scheduler=name)
    assert torch.equal(latents(row, model(family)), peer(row, family, held))


def test_a_schedule_that_depends_on_the_size_equals_the_pipeline_s() -> None:
    held = copy.copy(families.shared("sd3"))
    held.scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_image_seq_len=16, max_image_seq_len=128)
    row = plain(height=32, width=48)
    assert torch.equal(latents(row, adapt(held)), peer(row, "sd3", held))
    levels = [adapt(held).make_scheduler(name, 3, (4, 16, 24)).steps for name in (None, "euler")]
    assert levels[0] == levels[1] != adapt(held).make_scheduler(None, 3, (4, 16, 16)).steps


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
    kinds = {site.kind for site in watch.recorder.tensors}
    assert {"cross", "self"} <= kinds
    # 8 x 8 cells: pictures have twice the latents' side, image tokens are 2 x 2 latents.
    assert {(site.height, site.width, site.level) for site in watch.recorder.tensors} == {(8, 8, 1)}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_blocks_of_a_call_make_its_rows(family: str) -> None:
    """Text and picture together hold all of the picture's attention, but for registers."""
    adapter, recorder = model(family), Recorder()
    steps = adapter.make_scheduler(None, 2).steps
    states = adapter.encode_prompt([tiny.PROMPT], None)
    modules = adapter.attention_modules(32, 48)
    with torch.no_grad(), attach(modules, [Probe("probs", recorder)], network=adapter.network) as attention:
        context = pass_context(steps[0], "denoise", [0], ("cond",))
        with attention.during(context):
            adapter.predict(torch.randn(1, *adapter.latent_shape(32, 48)), steps[0], states.for_pass(context))
    sums: dict[str, Tensor] = {}
    for site, probs in recorder.tensors.items():
        assert probs.shape[-2] == site.height * site.width == 96
        if site.kind in ("cross", "self"):
            sums[site.name] = sums.get(site.name, 0) + probs.sum(-1)
    assert sums
    for whole in sums.values():
        assert ((whole < 1 + 1e-4) & (whole > 0.3)).all() if family == "auraflow" else torch.allclose(whole, torch.ones(()))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_gradient_reaches_every_row(family: str) -> None:
    adapter, recorder = model(family), Recorder()
    step = adapter.make_scheduler(None, 2).steps[1]
    states = adapter.encode_prompt([tiny.PROMPT, "a blue dog"], None)
    noise = torch.randn(2, *adapter.latent_shape(32, 32), requires_grad=True)
    sites = [site for site in adapter.attention_sites(32, 32) if site.kind == "cross"]
    modules = adapter.attention_modules(32, 32)
    with adapter.frozen(), attach(modules, [Probe("probs", recorder)], network=adapter.network) as attention:
        context = pass_context(step, "denoise", [0, 1], ("cond",))
        with torch.enable_grad(), attention.during(context, sites):
            assert adapter.predict(noise, step, states.for_pass(context), until=sites) is None
        loss = sum(probs[..., :4].square().sum() for site, probs in recorder.tensors.items() if site.kind == "cross")
        (gradient,) = torch.autograd.grad(loss, noise)  # type: ignore[arg-type]
    assert (gradient.flatten(1).norm(dim=1) > 0).all()


SOURCE = {"source_prompt": "a blue cat and a red ball"}
METHODS: list[tuple[str, dict[str, Any]]] = [
    ("mask_guidance", {"step_size": 20.0}),
    ("layout_guidance", {}),
    ("attend_and_excite", {"max_refinements": 1}),
    ("stable", {"guide": True}),
    ("forward_layout", {}),
    ("inject5", {"start": 0.0}),
    ("prompt_to_prompt", SOURCE),
    ("masactrl", {**SOURCE, "start": 0.0}),
    ("pag", {"places": None}),
]


STEERED = [
    *((family, *method) for family in ("sd35", "pixart_alpha_1024") for method in METHODS),
    *(("auraflow", *method) for method in METHODS if method[0] in ("mask_guidance", "stable", "inject5", "pag")),
]


@pytest.mark.parametrize(("family", "name", "options"), STEERED, ids=[f"{family}-{name}" for family, name, _ in STEERED])
def test_methods_steer_a_batch_as_its_rows(family: str, name: str, options: dict[str, Any]) -> None:
    """Prompts of differing lengths, pictures that are not square."""
    adapter = model(family)
    longer = tiny.PROMPT.replace("ball", "ball of a dog") if name != "prompt_to_prompt" else "a red cat and a blue ball"
    texts = ((tiny.PROMPT, (tiny.CAT, tiny.BALL)), (longer, (tiny.BALL,)))
    rows = [
        plain(
            str(seed),
            prompt=prompt,
            seed=seed,
            width=48,
            regions=regions,
            methods=(MethodConfig(name, options),),
        )
        for seed, (prompt, regions) in enumerate(texts)
    ]
    check_rows(adapter, rows)
    together = [result.latents for result in sample_batch(adapter, rows)]
    for row, found in zip(rows, together, strict=True):
        assert found is not None
        assert_close(found, latents(row, adapter))
        assert not torch.equal(found, latents(row.plain(), adapter))


@pytest.mark.parametrize("family", ["sd3", "pixart_sigma", "auraflow"])
def test_pictures_come_from_latents_and_go_back(family: str) -> None:
    adapter = model(family)
    (result,) = sample_batch(adapter, [plain(width=48)])
    assert result.image is not None and result.image.size == (48, 32) and result.latents is not None
    drawn = families.shared(family).vae.decode(_unscaled(adapter, result.latents[None]), return_dict=False)[0].detach()
    shown = families.shared(family).image_processor.postprocess(drawn, "pil")[0]
    assert shown.tobytes() == result.image.tobytes()
    back = adapter.encode_image([result.image])
    assert back.shape == (1, *adapter.latent_shape(32, 48))
    plain_latents = (
        families.shared(family)
        .vae.encode(families.shared(family).image_processor.preprocess([result.image]))
        .latent_dist.mode()
    )
    torch.testing.assert_close(_unscaled(adapter, back), plain_latents)


def _unscaled(adapter: ModelAdapter, values: Tensor) -> Tensor:
    config = adapter.vae.config
    shifted: Tensor = values / config.scaling_factor + (config.get("shift_factor") or 0)
    return shifted


@pytest.mark.parametrize("family", ["sd3", "pixart_sigma"])
def test_a_picture_is_inverted_and_comes_back(family: str) -> None:
    adapter = model(family)
    (result,) = sample_batch(adapter, [plain()])
    assert result.image is not None
    clean = encode_pictures(adapter, [result.image], 32, 32)
    path = invert(adapter, clean, [tiny.PROMPT], steps=4, iterations=8)
    row = plain(steps=4, cfg_scale=1.0, scheduler=adapter.inversion_scheduler)
    (again,) = Sampler(adapter).run([row], path.noise)
    assert again.latents is not None
    assert_close(again.latents[None], clean, 0.02)


def test_words_of_sd3_stand_in_both_parts_of_the_text() -> None:
    read = model("sd35").tokenize(tiny.PROMPT)
    assert len(read.tokens) == tiny.LENGTH + 256 and len(read.segments) == 2
    found = token_indices(read, "blue ball")
    assert [read.tokens[place] for place in found] == ["blue</w>", "ball</w>", "▁blue", "▁ball"]
    assert found[2] - tiny.LENGTH == 5 and read.sinks == (0, tiny.LENGTH + 7)
    short = model("sd3").tokenize(tiny.PROMPT)
    assert len(short.tokens) == tiny.LENGTH and token_indices(short, "cat") == (3,)


def test_pixart_reads_prompts_in_lower_case() -> None:
    adapter = model("pixart_alpha")
    read = adapter.tokenize("  A Red CAT")
    assert [read.tokens[place] for place in token_indices(read, "red cat")] == ["▁red", "▁cat"]
    row = plain(prompt="  A Red CAT")
    assert torch.equal(latents(row, adapter), peer(row, "pixart_alpha"))


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_that_do_not_divide(family: str) -> None:
    with pytest.raises(ValueError, match=r"height must be a multiple of 4 for .*Pipeline; got 34"):
        model(family).latent_shape(34, 32)


@pytest.mark.parametrize(("family", "side"), [("sd3", 128), ("auraflow", 64)])
def test_sizes_for_which_there_are_no_positions(family: str, side: int) -> None:
    assert model(family).latent_shape(32, side) == (4, 16, side // 2)
    with pytest.raises(ValueError, match=f"width must be at most {side} for .*, which knows no more; got {side + 4}"):
        model(family).latent_shape(32, side + 4)


@pytest.mark.parametrize("family", ["sd35", "pixart_alpha_1024", "auraflow"])
def test_half_precision_equals_the_pipeline_s(family: str) -> None:
    held = families.build(family).to(torch.bfloat16)
    row = plain(width=48)
    assert torch.equal(latents(row, adapt(held)), peer(row, family, held).float())


def test_a_compiled_transformer_runs_as_it_is() -> None:
    held = copy.copy(families.shared("sd3"))
    held.transformer = torch.compile(held.transformer)
    with pytest.warns(UserWarning, match="the transformer runs as it is, not compiled"):
        adapter = adapt(held)
    assert adapter.network is families.shared("sd3").transformer


@pytest.mark.parametrize(
    ("family", "scheduler", "name", "message"),
    [
        ("sd3", DDIMScheduler(), None, "DDIMScheduler is not supported for a network trained by flow matching"),
        ("sd3", DDIMScheduler(), "euler", "the pipeline's own, DDIMScheduler, is none of flow matching"),
        ("pixart_alpha", FlowMatchEulerDiscreteScheduler(), None, "FlowMatchEulerDiscreteScheduler is not supported"),
    ],
)
def test_a_scheduler_of_another_kind_of_network(family: str, scheduler: Any, name: str | None, message: str) -> None:
    held = copy.copy(families.shared(family))
    held.scheduler = scheduler
    with pytest.raises(ValueError, match=message):
        adapt(held).make_scheduler(name, 4)


def test_parts_that_do_not_fit() -> None:
    held = copy.copy(families.shared("sd35"))
    held.tokenizer_3 = None
    with pytest.raises(UnsupportedModelError, match="text_encoder_3 and tokenizer_3 belong together; one of them is missing"):
        adapt(held)
    held = copy.copy(families.shared("sd35"))
    held.transformer = nn.Linear(1, 1)
    with pytest.raises(UnsupportedModelError, match="transformer must be a SD3Transformer2DModel; got Linear"):
        adapt(held)
    held = copy.copy(families.shared("pixart_alpha"))
    held.vae = None
    with pytest.raises(UnsupportedModelError, match="PixArtAlphaPipeline lacks its vae"):
        adapt(held)


def test_a_pipeline_that_adds_something_names_the_way_that_works() -> None:
    parts = dict(families.shared("sd3").components)
    with pytest.raises(UnsupportedModelError, match=r"hand over StableDiffusion3Pipeline\.from_pipe\(pipeline"):
        adapt(StableDiffusion3Img2ImgPipeline(**parts))


@pytest.mark.parametrize("family", ["sd3", "pixart_sigma"])
def test_a_folder_opens_and_draws(family: str, tmp_path: Path) -> None:
    families.shared(family).save_pretrained(tmp_path / family)
    opened = load_model(str(tmp_path / family), device="cpu")
    row = plain()
    assert type(opened) is type(model(family))
    assert torch.equal(latents(row, opened), latents(row, model(family)))
    for path in (tmp_path / family / "transformer").iterdir():
        path.unlink()
    with pytest.raises(ModelNotFoundError, match=r"could not be loaded: the folder has no transformer/config.json"):
        load_model(str(tmp_path / family), device="cpu")


def test_a_prompt_beyond_clip_has_its_last_words_in_t5_alone() -> None:
    row = plain(prompt="a cat and " * 12 + "a blue dog", cfg_scale=1.0)
    with pytest.warns(UserWarning, match="longer than the 24 tokens that CLIP reads: .* have positions in T5 alone") as told:
        sampleable(model("sd35"), [row, replace(row, id="1", prompt=f"{row.prompt} and a ball")])
    assert len(told) == 1
    first, second = model("sd35").tokenize(row.prompt).rooms()
    assert all(place in second for place in token_indices(model("sd35").tokenize(row.prompt), "blue dog"))
    assert any(place in first for place in token_indices(model("sd35").tokenize(row.prompt), "cat"))
    assert torch.equal(latents(row, model("sd35")), peer(row, "sd35"))
