"""Rows with input pictures: made by their pipeline, steered from inside, and like all other rows in every other respect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from attnguide.ablation.cost import expected_cost
from attnguide.engine.noise import generators, initial_noise
from attnguide.engine.observer import BatchInfo, Observer, Observers
from attnguide.figures.watch import Watch
from attnguide.inputs import Control
from attnguide.models.base import ModelAdapter
from attnguide.models.load import adapt
from attnguide.sampling import foreign
from attnguide.sampling.check import mark_rows
from attnguide.sampling.denoising import denoising_errors
from attnguide.sampling.sampler import Sampler
from attnguide.sampling.table import sample_batch, sample_each, sample_rows
from attnguide.tuning import InsideShare
from attnguide.types import MapSource, MethodConfig, Region, Sample, SampleResult, Step
from tests import tiny
from tests.closeness import assert_close
from tests.steering import pipelines

SIZE = (32, 48)
LAYOUT, GUIDANCE = MethodConfig("forward_layout"), MethodConfig("mask_guidance", {"step_size": 20.0})
KINDS = ("img2img", "inpaint", "controlnet", "controlnet_img2img", "controlnet_inpaint")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(3):
        pipelines.picture(seed, *SIZE).save(folder / f"{seed}.png")
    pipelines.inputs("sd")["mask_image"].save(folder / "mask.png")
    return folder


@pytest.fixture(scope="module")
def model() -> ModelAdapter:
    model = adapt(pipelines.shared("sd"))
    model.controlnets["canny"] = pipelines.shared("sd_controlnet").controlnet
    return model


def row(folder: Path, kind: str = "img2img", number: int = 0, **given: Any) -> Sample:
    inputs: dict[str, Any] = {}
    if not kind.endswith("controlnet"):
        inputs = {"init_image": str(folder / f"{number}.png"), "strength": 0.6}
    if kind.endswith("inpaint"):
        inputs["inpaint_mask"] = str(folder / "mask.png")
    if kind.startswith("controlnet"):
        inputs["control"] = (Control("canny", str(folder / f"{2 - number}.png"), 0.7),)
    common = {"height": SIZE[0], "width": SIZE[1], "steps": 4, "cfg_scale": 4.0, "regions": (tiny.CAT, tiny.BALL)}
    return Sample(f"row{number}", tiny.PROMPT, seed=10 * number, **{**common, **inputs, **given})


def latents(result: SampleResult) -> torch.Tensor:
    assert result.latents is not None, result.status
    return result.latents


@pytest.mark.parametrize("kind", KINDS)
def test_plain_rows_are_those_of_their_pipeline(model: ModelAdapter, folder: Path, kind: str) -> None:
    one = row(folder, kind)
    (found,) = sample_batch(model, [one])
    pipe = pipelines.build(f"sd_{kind}")
    pipe.register_modules(vae=model.pipeline.vae)
    given = pipelines.inputs("sd")
    first, edges = (Image.open(folder / name) for name in ("0.png", "2.png"))
    pictures = {"image": edges if kind == "controlnet" else first, "control_image": edges, "mask_image": given["mask_image"]}
    pictures |= {"strength": 0.6, "controlnet_conditioning_scale": 0.7}
    chosen = {name: pictures[name] for name in pipelines.KINDS[f"sd_{kind}"].inputs}
    if kind == "controlnet" or kind.endswith("inpaint"):
        chosen |= {"height": SIZE[0], "width": SIZE[1]}
    expected = pipe(
        one.prompt,
        num_inference_steps=4,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        **chosen,
    ).images[0]
    assert torch.equal(latents(found), expected)
    assert found.status == "ok" and found.image is not None and found.image.size == (48, 32)


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_is_the_same_alone_and_in_a_batch(model: ModelAdapter, folder: Path, kind: str) -> None:
    rows = [row(folder, kind, number, methods=(GUIDANCE,), scheduler="euler_ancestral") for number in range(2)]
    together = sample_batch(model, rows)
    assert [result.sample for result in together] == rows
    (alone,) = sample_batch(model, rows[1:2])
    assert_close(latents(together[1]), latents(alone))
    assert not torch.equal(latents(together[0]), latents(together[1]))
    plain = sample_batch(model, [replace(one, methods=()) for one in rows])
    assert all(not torch.equal(latents(a), latents(b)) for a, b in zip(together, plain, strict=True))


@pytest.fixture(scope="module")
def flux() -> ModelAdapter:
    model = adapt(pipelines.shared("flux_dev"))
    model.controlnets["canny"] = pipelines.shared("flux_controlnet").controlnet
    return model


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("controlnet")])
def test_controlnets_of_flux(flux: ModelAdapter, folder: Path, kind: str) -> None:
    """The latents of a control picture are drawn by the row's own seed, too."""
    rows = [row(folder, kind, number, methods=(GUIDANCE,), cfg_scale=3.5) for number in range(2)]
    together, (alone,) = sample_batch(flux, rows), sample_batch(flux, rows[1:])
    assert [result.status for result in together] == ["ok", "ok"]
    assert_close(latents(together[1]), latents(alone))
    (other,) = sample_batch(flux, [replace(rows[1], control=(replace(rows[1].control[0], scale=0.1),))])
    assert not torch.equal(latents(other), latents(alone))


def test_a_control_picture_of_flux_is_read_as_its_pipeline_reads_it(flux: ModelAdapter, folder: Path) -> None:
    one = row(folder, "controlnet", cfg_scale=3.5)
    (found,) = sample_batch(flux, [one])
    sources = generators([one.seed])
    noise = initial_noise(sources, flux.latent_shape(*SIZE), torch.float32, torch.device("cpu"))
    pipe = pipelines.build("flux_controlnet")
    pipe.register_modules(vae=flux.pipeline.vae)
    expected = pipe(
        one.prompt,
        control_image=Image.open(folder / "2.png"),
        controlnet_conditioning_scale=0.7,
        num_inference_steps=4,
        guidance_scale=3.5,
        height=SIZE[0],
        width=SIZE[1],
        latents=flux.pack(noise),  # type: ignore[attr-defined]
        generator=sources,
        output_type="latent",
    ).images
    assert_close(latents(found), flux.unpack(expected, noise)[0])  # type: ignore[attr-defined]


def test_what_controlnets_of_transformers_cannot_be_given(flux: ModelAdapter, folder: Path) -> None:
    one = row(folder, "controlnet", cfg_scale=3.5)
    two = replace(one, control=(*one.control, replace(one.control[0], type="depth")))
    halves = row(folder, "controlnet_img2img", negative_prompt="a dog", true_cfg_scale=3.0)
    flux.controlnets["depth"] = flux.controlnets["canny"]
    several, true_cfg = mark_rows(flux, [two, replace(halves, id="halves")])
    del flux.controlnets["depth"]
    assert several.problem is not None and "takes one control picture a row; got canny, depth" in several.problem
    assert true_cfg.problem is not None and "true_cfg_scale must be 1 in rows of controlnet_img2img" in true_cfg.problem
    other = adapt(pipelines.shared("sd3"))
    other.controlnets["canny"] = pipelines.shared("sd3_controlnet").controlnet
    (bad,) = mark_rows(other, [one])
    assert bad.problem is not None and "no seed gives a picture again" in bad.problem


def test_a_control_of_no_weight_is_no_control(model: ModelAdapter, folder: Path) -> None:
    """The noise is that of text to image, and so is what ancestral steps add."""
    one = row(folder, "controlnet", methods=(LAYOUT,), scheduler="euler_ancestral")
    silent = replace(one, control=(replace(one.control[0], scale=0.0),))
    (found,) = sample_batch(model, [silent])
    (expected,) = sample_batch(model, [replace(one, control=())])
    assert_close(latents(found), latents(expected))


def test_pixels_that_are_kept_are_kept(model: ModelAdapter, folder: Path) -> None:
    (found,) = sample_batch(model, [row(folder, "inpaint", methods=(GUIDANCE,))])
    before = np.asarray(Image.open(folder / "0.png"))
    after = np.asarray(found.image)
    assert (after[:, :24] == before[:, :24]).all()
    assert (after[:, 24:] != before[:, 24:]).any()


class _Seen(Observer):
    def __init__(self) -> None:
        self.began: list[tuple[str, ...]] = []
        self.steps: list[int] = []
        self.ended: list[SampleResult] = []

    def on_sample_start(self, info: BatchInfo) -> None:
        self.began.append(tuple(sample.id for sample in info.samples))

    def on_denoise_step_end(self, step: Step, latents: torch.Tensor, noise_pred: torch.Tensor) -> None:
        self.steps.append(step.index)

    def on_sample_end(self, results: Sequence[SampleResult]) -> None:
        self.ended += results


def test_one_table_mixes_ways_of_making_pictures(model: ModelAdapter, folder: Path) -> None:
    rows = [row(folder, number=0), row(folder, number=1), row(folder, "inpaint", 2)]
    rows += [replace(rows[0], id="text", init_image=None, strength=None), replace(rows[1], id="more", strength=1.0)]
    seen = _Seen()
    found = list(sample_rows(model, rows, observer=seen))
    assert sorted(seen.began) == [("more",), ("row0", "row1"), ("row2",), ("text",)]
    assert {result.sample.id for result in seen.ended} == {one.id for one in rows}
    assert {result.sample.id: result for result in seen.ended} == {result.sample.id: result for result in found}
    assert len(seen.steps) == 2 + 2 + 4 + 4
    for result in found:
        assert result.status == "ok" and result.image is not None
        assert result.cost.unet_forwards == expected_cost(result.sample).forwards


@pytest.mark.parametrize("kind", ["img2img", "controlnet_inpaint"])
def test_costs_are_told_beforehand(model: ModelAdapter, folder: Path, kind: str) -> None:
    for scheduler in ("ddim", "heun"):
        one = row(folder, kind, methods=(GUIDANCE,), scheduler=scheduler, steps=6)
        told = expected_cost(one)
        (found,) = sample_batch(model, [one])
        assert told.forwards <= found.cost.unet_forwards <= told.most
        assert told.backwards <= found.cost.unet_backwards <= told.most_backwards


def test_a_picture_is_not_quite_redrawn(model: ModelAdapter, folder: Path) -> None:
    """The less noise, the nearer to where it began."""
    rows = [row(folder, strength=strength, steps=8) for strength in (0.125, 0.5, 1.0)]
    start = model.encode_image([Image.open(folder / "0.png")])[0]
    moved = [float((latents(sample_batch(model, [one])[0]) - start).square().mean()) for one in rows]
    assert moved == sorted(moved)


def test_a_baseline_stands_above_the_calls(model: ModelAdapter, folder: Path) -> None:
    judge = "tests.sampling.test_foreign:brightness"
    one = row(folder, methods=(MethodConfig("best_of_k", {"k": 2, "judge": judge}), LAYOUT))
    seen = _Seen()
    (found,) = sample_batch(model, [one], seen)
    tries = [sample_batch(model, [replace(one, seed=seed, methods=(LAYOUT,))])[0] for seed in (0, 1_000_003)]
    best = max(tries, key=lambda result: brightness(result)["light"])
    assert torch.equal(latents(found), latents(best)) and found.sample.seed == best.sample.seed
    assert found.cost.unet_forwards == sum(result.cost.unet_forwards for result in tries)
    assert [result.sample.id for result in seen.ended] == ["row0"]


def brightness(result: SampleResult) -> dict[str, float]:
    return {"light": float(np.asarray(result.image).mean())}


def test_a_place_may_come_from_another_picture(model: ModelAdapter, folder: Path) -> None:
    regions = (Region("red cat", source=MapSource("seed", seed=4)), tiny.BALL)
    (found,) = sample_each(model, [row(folder, methods=(LAYOUT,), regions=regions)])
    assert found.status == "ok", found.status
    assert found.cost.unet_forwards == 4 + 8, "of the row, and of the picture whose map is its place"


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        ("controlnet", {"control": (Control("depth", "x.png"),)}, "control 'depth' needs a ControlNet of the run"),
        ("img2img", {"methods": (MethodConfig("saga"),)}, "saga"),
        ("img2img", {"methods": (MethodConfig("stable", {"attempts": 3}),)}, "attempts must be 1"),
        ("img2img", {"methods": (MethodConfig("prompt_to_prompt", {"source_prompt": "a red dog and a blue ball"}),)}, "none"),
        ("img2img", {"methods": (MethodConfig("initno"),)}, "initno"),
    ],
    ids=["control", "previews", "restarts", "source", "noise"],
)
def test_what_a_call_cannot_do_is_refused_before_it(
    model: ModelAdapter, folder: Path, kind: str, given: dict[str, Any], said: str
) -> None:
    good = row(folder, number=1)
    bad, fine = mark_rows(model, [row(folder, kind, **given), good])
    assert bad.problem is not None and said in bad.problem
    assert fine.problem is None
    with pytest.raises(ValueError, match="rows of img2img are made by sample_rows"):
        Sampler(model).run([good])


def test_a_scheduler_with_noise_of_its_own_is_refused(
    model: ModelAdapter, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign, "_OWN_NOISE", ("EulerDiscreteScheduler",))
    bad, fine = mark_rows(model, [row(folder, scheduler="euler"), row(folder)])
    assert bad.problem is not None and "draws noise that no row's seed decides" in bad.problem
    assert fine.problem is None


def test_a_family_without_such_a_pipeline_says_so(folder: Path) -> None:
    other = adapt(pipelines.shared("pixart_sigma"))
    (bad,) = mark_rows(other, [row(folder, height=None, width=None, regions=())])
    assert bad.problem is not None and bad.problem.startswith("PixArtSigmaPipeline has no pipeline for img2img")


def test_a_picture_that_goes_missing_ends_its_row_alone(model: ModelAdapter, folder: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone.png"
    gone.write_bytes((folder / "0.png").read_bytes())
    rows = [replace(row(folder), id="gone", init_image=str(gone)), row(folder, number=1)]
    gone.unlink()
    found = sample_each(model, rows)
    assert [result.image is not None for result in found] == [False, True]
    assert found[0].status.startswith("failed: init_image file")


def test_prompts_with_weights_reach_the_pipeline_as_states(folder: Path, model: ModelAdapter) -> None:
    plain = row(folder, methods=(LAYOUT,))
    same, long = replace(plain, id="same", prompt_syntax="weights"), replace(plain, id="long", prompt_syntax="weights")
    long = replace(long, prompt="a (red cat:1.3) and " * 8 + "a [blue ball]", negative_prompt="a (dog:1.2)")
    found = {result.sample.id: result for result in sample_rows(model, [plain, same, long])}
    assert [result.status for result in found.values()] == ["ok"] * 3
    first, second, third = (found[id].latents for id in ("row0", "same", "long"))
    assert first is not None and second is not None and third is not None
    assert_close(second, first)
    assert not torch.allclose(third, first, atol=1e-3)


@pytest.mark.parametrize("judge", ["attention", "attention+denoising"])
@pytest.mark.parametrize("methods", [(), (LAYOUT,)], ids=["plain", "steered"])
def test_maps_are_read_where_halves_are_computed_one_after_the_other(
    judge: str, methods: tuple[MethodConfig, ...], flux: ModelAdapter, folder: Path
) -> None:
    """FLUX.1's pipelines compute the half of the empty prompt in a pass of its own."""
    halves = {"negative_prompt": "a dog", "true_cfg_scale": 3.0, "cfg_scale": 3.5}
    chosen = (MethodConfig("best_of_k", {"k": 2, "judge": judge}), *methods)
    inside, watch = InsideShare(), Watch()
    (found,) = sample_batch(flux, [row(folder, methods=chosen, **halves)], Observers([inside, watch]))
    assert found.status.startswith("ok") and found.image is not None, found.status
    assert 0 < inside.shares["row0"] < 1
    assert watch.rows[0].maps["red cat"].any()


@pytest.mark.parametrize(("seeds", "refused"), [(None, False), ({"red cat": 3}, True)])
def test_painting_begins_at_a_picture_unless_regions_have_seeds(
    seeds: dict[str, int] | None, refused: bool, model: ModelAdapter, folder: Path
) -> None:
    painting = MethodConfig("paint_with_words", {"region_seeds": seeds})
    (marked,) = mark_rows(model, [row(folder, methods=(painting,))])
    assert (marked.problem is not None and "chooses where a picture begins" in marked.problem) == refused


@pytest.mark.parametrize("kind", KINDS)
def test_denoising_chooses_among_pictures_of_every_kind(kind: str, folder: Path, model: ModelAdapter) -> None:
    """The pictures are those of the kind's pipeline; the network denoises them under the prompt alone."""
    methods = (MethodConfig("best_of_k", {"k": 3, "judge": "denoising"}),)
    (kept,) = sample_batch(model, [row(folder, kind, methods=methods)])
    tries = [sample_batch(model, [replace(row(folder, kind), seed=number * 1_000_003)])[0] for number in range(3)]
    errors = [denoising_errors(model, [one])[0][0] for one in tries]
    assert kept.status.startswith("ok") and kept.sample.seed == tries[errors.index(min(errors))].sample.seed
    passes = sum(one.cost.unet_forwards for one in tries)
    assert passes < kept.cost.unet_forwards <= passes + 3 * 3
