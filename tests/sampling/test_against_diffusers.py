"""The loop against the pipelines of diffusers, on the same random weights."""

from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionAttendAndExcitePipeline, StableDiffusionPipeline
from torch import Tensor

from attnguide.attention.capture import Probe, Quantity
from attnguide.attention.sites import Site
from attnguide.engine.observer import BatchInfo, Observer, UpdateEvent
from attnguide.guidance.attend_and_excite import AttendAndExcite
from attnguide.models.load import adapt
from attnguide.models.names import SCHEDULERS
from attnguide.models.schedulers import named_scheduler
from attnguide.sampling.sampler import Sampler
from attnguide.types import PassContext, Region, Sample
from tests import tiny
from tests.closeness import assert_close

pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__")  # the library on a newer numpy


SHOWN = [quantity for quantity in get_args(Quantity) if quantity != "beside"]
"""What a pass shows of its attention; a reader beside it makes its own."""


class _ReadsEverything(Observer):
    """Probes of every quantity on every site, in every kind of pass."""

    def __init__(self) -> None:
        self.seen: set[tuple[str, Quantity]] = set()
        self.events: list[UpdateEvent] = []

    def probes(self, info: BatchInfo) -> Sequence[Probe]:
        def reader(quantity: Quantity) -> Probe:
            def record(site: Site, tensor: Tensor, context: PassContext) -> None:
                self.seen.add((site.name, quantity))

            return Probe(quantity, record, kinds=frozenset({"denoise", "guide"}))

        return [reader(quantity) for quantity in SHOWN]

    def on_guidance_update(self, event: UpdateEvent) -> None:
        self.events.append(event)


def _with_scheduler(name: str | None, **options: Any) -> StableDiffusionPipeline:
    parts = dict(tiny.shared_pipeline().components)
    if name is not None:
        parts["scheduler"] = named_scheduler(name, {**parts["scheduler"].config, **options})
    built = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    built.set_progress_bar_config(disable=True)
    return built


def _pipeline_run(pipe: StableDiffusionPipeline, rows: Sequence[Sample]) -> tuple[Tensor, list[np.ndarray[Any, Any]]]:
    first = rows[0]
    kept: list[Tensor] = []

    def keep(_pipe: Any, _index: int, _timestep: Any, state: dict[str, Any]) -> dict[str, Any]:
        kept.append(state["latents"])
        return state

    images = pipe(
        [row.prompt for row in rows],
        negative_prompt=[row.negative_prompt or "" for row in rows],
        height=first.height,
        width=first.width,
        num_inference_steps=first.steps,
        guidance_scale=first.cfg_scale,
        generator=[torch.Generator().manual_seed(row.seed) for row in rows],
        callback_on_step_end=keep,
    ).images
    return kept[-1], [np.asarray(image) for image in images]


def _assert_equal(pipe: StableDiffusionPipeline, rows: Sequence[Sample]) -> None:
    latents, images = _pipeline_run(pipe, rows)
    observer = _ReadsEverything()
    results = Sampler(adapt(pipe), observer=observer).run(rows)
    assert len(observer.seen) == 14 * len(SHOWN)
    for row, result in enumerate(results):
        assert result.latents is not None and result.image is not None
        assert torch.equal(result.latents, latents[row])
        assert np.array_equal(np.asarray(result.image), images[row])


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name != "dpmpp_sde"])
def test_capture_alone_is_the_plain_pipeline(name: str) -> None:
    """A batch of two, not square, with negative prompts and everything recorded: not one bit differs."""
    steps = 4 if name == "pndm" else 3
    rows = [
        tiny.row("0", seed=5, height=32, width=48, steps=steps, negative_prompt="blue"),
        tiny.row("1", "a dog", seed=6, height=32, width=48, steps=steps, regions=()),
    ]
    _assert_equal(_with_scheduler(name), rows)


def test_the_pipeline_s_own_scheduler_alone_in_its_batch() -> None:
    _assert_equal(_with_scheduler(None), [tiny.row()])


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_without_classifier_free_guidance(scale: float) -> None:
    _assert_equal(_with_scheduler("euler"), [tiny.row(cfg_scale=scale), tiny.row("1", seed=4, cfg_scale=scale)])


def test_karras_sigmas() -> None:
    _assert_equal(_with_scheduler("dpmpp_2m_karras"), [tiny.row()])


def test_velocity_prediction() -> None:
    _assert_equal(_with_scheduler("ddim", prediction_type="v_prediction"), [tiny.row()])


def test_latents_that_do_not_halve_evenly() -> None:
    _assert_equal(_with_scheduler("ddim"), [tiny.row(height=40, width=24)])


# ----------------------------------------------------------------------------------------------- attend-and-excite

STEPS = 6
WORDS = (3, 7)  # cat, ball


def _peer_run(thresholds: dict[int, float], size: tuple[int, int], seed: int, most: int) -> Tensor:
    """Final latents of diffusers' pipeline."""
    parts = {name: part for name, part in tiny.pipeline().components.items() if name != "image_encoder"}
    pipe = StableDiffusionAttendAndExcitePipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    latents: Tensor = pipe(
        tiny.PROMPT,
        token_indices=list(WORDS),
        height=32,
        width=32,
        num_inference_steps=STEPS,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(seed),
        max_iter_to_alter=most,
        thresholds=thresholds,
        attn_res=size,
        output_type="latent",
    ).images
    return latents[0]


def _our_row(seed: int, id: str = "0") -> Sample:
    words = tuple(Region(str(token), token_indices=(token,)) for token in WORDS)
    return Sample(id, tiny.PROMPT, seed=seed, regions=words, steps=STEPS, cfg_scale=5.0)


def _ours(thresholds: dict[int, float], level: int, most: int) -> AttendAndExcite:
    points = {index / STEPS: peak for index, peak in thresholds.items()}
    return AttendAndExcite(stop=most / STEPS, thresholds=points, levels=(level,), quirks="reference")


@pytest.mark.parametrize(
    ("thresholds", "level"),
    [
        ({}, 0),
        ({}, 1),
        ({0: 0.05, 1: 0.15}, 0),  # one already met, one met after a few refinements
        ({1: 0.9}, 1),  # never met
    ],
)
def test_attend_and_excite_is_the_peer_s(thresholds: dict[int, float], level: int) -> None:
    size = (16, 16) if level == 0 else (8, 8)
    expected = _peer_run(thresholds, size, seed=3, most=3)
    observer = _ReadsEverything()
    result = Sampler(tiny.model(), [_ours(thresholds, level, 3)], observer=observer).run([_our_row(3)])[0]
    assert result.latents is not None
    assert_close(result.latents, expected)
    refined = [event.iteration for event in observer.events if event.step.index == 1]
    assert refined == list(range({0.15: 5, 0.9: 21}.get(thresholds.get(1, 0), 1)))
    plain = Sampler(tiny.model()).run([_our_row(3)])[0].latents
    assert plain is not None and (plain - expected).abs().max() > 1e-2


def test_attend_and_excite_rows_of_a_batch_are_the_peer_s_one_by_one() -> None:
    thresholds = {1: 0.15}
    observer = _ReadsEverything()
    results = Sampler(tiny.model(), [_ours(thresholds, 0, 2)], observer=observer).run([_our_row(3), _our_row(4, "1")])
    assert {event.rows for event in observer.events} == {(0, 1), (0,)}  # the second needs fewer refinements
    for seed, result in zip((3, 4), results, strict=True):
        assert result.latents is not None
        assert_close(result.latents, _peer_run(thresholds, (16, 16), seed, most=2))
