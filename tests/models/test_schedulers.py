"""Schedulers driven by a network that always answers the same, so that their part alone is seen."""

import itertools
import math

import pytest
import torch
from diffusers import DDIMScheduler, EDMEulerScheduler, PNDMScheduler
from torch import Tensor

from attnguide.models.schedulers import SCHEDULERS, NoiseScheduler, scheduler_class
from attnguide.models.unet import StableDiffusion
from attnguide.sampling.noise import generators
from attnguide.types import Step
from tests import tiny

pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__")  # the library on a newer numpy

CPU = torch.device("cpu")


def _make(name: str, steps: int = 6) -> NoiseScheduler:
    return tiny.model().make_scheduler(name, steps)


def _run(scheduler: NoiseScheduler, at: int | None = None, amount: float = 1.0, seed: int = 0) -> Tensor:
    """Final latents; ``amount`` is added before the evaluation ``at``."""
    random = generators([seed, seed + 1])
    latents = torch.cat([torch.randn(1, 4, 2, 2, generator=source) for source in random]) * scheduler.initial_sigma
    for step in scheduler.steps:
        if step.index == at:
            change = torch.full_like(latents, amount)
            latents = latents + change
            scheduler.latents_moved(change, step)
        scheduler.scale_model_input(latents, step)
        latents = scheduler.step(torch.full_like(latents, 0.3), step, latents, random)
    return latents


@pytest.mark.parametrize("name", SCHEDULERS)
def test_steps(name: str) -> None:
    scheduler = _make(name)
    assert scheduler.name == SCHEDULERS[name]
    assert [step.index for step in scheduler.steps] == list(range(len(scheduler.steps)))
    assert {step.count for step in scheduler.steps} == {len(scheduler.steps)}
    assert sum(scheduler.span(step) for step in scheduler.steps if step.begins) == len(scheduler.steps)
    assert scheduler.steps[0].begins and scheduler.steps[0].timestep > 800 and scheduler.steps[-1].timestep < 300
    sigmas = [step.sigma for step in scheduler.steps]
    assert sigmas == sorted(sigmas, reverse=True)


EVALUATIONS = {"heun": 11, "kdpm2": 11, "kdpm2_ancestral": 11, "pndm": 15}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_number_of_evaluations(name: str) -> None:
    assert len(_make(name).steps) == EVALUATIONS.get(name, 6)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_change_survives_exactly_where_a_step_begins(name: str) -> None:
    scheduler = _make(name, 4)
    plain = _run(scheduler)
    for step in scheduler.steps:
        whole = 1.0 if scheduler.initial_sigma > 2 else 1 / math.sqrt(step.alpha_bar)
        survived = (_run(_make(name, 4), step.index) - plain).mean().item() / whole
        if step.begins:
            assert survived > 0.98, step
        else:
            assert survived < 0.9, step


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_change_of_nothing_changes_no_bit(name: str) -> None:
    scheduler = _make(name, 4)
    plain = _run(scheduler)
    for step in scheduler.steps:
        if step.begins:
            assert torch.equal(_run(_make(name, 4), step.index, amount=0.0), plain)


@pytest.mark.parametrize("predict_x0", [True, False])
def test_unipc_s_corrector_keeps_the_change_whole(predict_x0: bool) -> None:
    own = tiny.model().make_scheduler("unipc", 4)._scheduler
    results = []
    for amount in (0.0, 1.0):
        scheduler = NoiseScheduler(type(own).from_config(own.config, predict_x0=predict_x0, solver_order=1), 4, CPU)
        corrected = []
        inner = scheduler._scheduler
        latents = torch.ones(1, 4, 2, 2)
        for step in scheduler.steps[:3]:
            if step.index == 2:
                latents = latents + amount
                scheduler.latents_moved(torch.full_like(latents, amount), step)
            # The network's answer compensates for the change, so that only the corrector's own starting point differs.
            latents = scheduler.step(torch.full_like(latents, 0.3), step, latents, generators([0]))
            corrected.append(inner.last_sample)
        results.append(corrected[2])
    difference = results[1] - results[0]
    # Half of the first-order correction sees the denoised picture, which the change moves too (only when it predicts pictures).
    assert (difference > 0.99).all() if predict_x0 else torch.allclose(difference, torch.ones_like(difference), rtol=1e-4)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_runs_are_independent(name: str) -> None:
    assert torch.equal(_run(_make(name)), _run(_make(name)))


@pytest.mark.parametrize("name", ["ddpm", "euler_ancestral", "kdpm2_ancestral"])
def test_added_noise_depends_on_the_row_s_seed_alone(name: str) -> None:
    a, b = _run(_make(name), seed=0), _run(_make(name), seed=1)
    assert torch.equal(a[1], b[0]) and not torch.equal(a[0], b[0])


def test_the_user_s_scheduler_is_never_touched() -> None:
    own = tiny.model().pipeline.scheduler
    before = (dict(own.config), own.timesteps.clone())
    _run(tiny.model().make_scheduler(None, 3))
    assert dict(own.config) == before[0] and torch.equal(own.timesteps, before[1])
    assert tiny.model().make_scheduler(None, 3).name == type(own).__name__


def test_sigma_at_is_the_training_noise() -> None:
    scheduler = _make("ddim")
    alphas = scheduler._scheduler.alphas_cumprod.double()
    for timestep in (0, 500, 999):
        expected = float(((1 - alphas[timestep]) / alphas[timestep]).sqrt())
        assert scheduler.sigma_at(timestep) == pytest.approx(expected, rel=1e-6)
    assert scheduler.sigma_at(500) < scheduler.sigma_at(500.5) < scheduler.sigma_at(501)
    assert scheduler.sigma_at(999) == pytest.approx(14.6, rel=0.01)


@pytest.mark.parametrize("name", ["euler", "lms", "heun"])
def test_input_scale_of_exploding_latents(name: str) -> None:
    scheduler = _make(name)
    assert scheduler.initial_sigma > 10
    first = scheduler.steps[0]
    assert scheduler.input_scale(first) == pytest.approx(1 / math.sqrt(1 + first.sigma**2), rel=1e-3)
    latents = torch.randn(1, 4, 2, 2)
    torch.testing.assert_close(scheduler.scale_model_input(latents, first), latents * scheduler.input_scale(first))


@pytest.mark.parametrize("name", ["ddim", "pndm", "dpmpp_2m", "unipc"])
def test_input_scale_of_preserving_latents(name: str) -> None:
    assert _make(name).input_scale(_make(name).steps[0]) == 1


@pytest.mark.parametrize("name", ["ddim", "euler"])
def test_adding_noise_and_predicting_the_clean_latents_are_inverse(name: str) -> None:
    scheduler = _make(name)
    step = scheduler.steps[0]
    clean, noise = torch.randn(1, 4, 2, 2), torch.randn(1, 4, 2, 2)
    inputs = scheduler.scale_model_input(scheduler.add_noise(clean, noise, step), step)
    torch.testing.assert_close(scheduler.denoised(noise, inputs, step), clean, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_shifted_noise_means_the_same_whatever_is_predicted(prediction: str) -> None:
    scheduler = NoiseScheduler(DDIMScheduler(prediction_type=prediction), 4, CPU)
    step = scheduler.steps[1]
    inputs, answer, shift = torch.randn(1, 4, 2, 2), torch.randn(1, 4, 2, 2), torch.randn(1, 4, 2, 2)
    clean = scheduler.denoised(answer, inputs, step)
    moved = scheduler.denoised(scheduler.shift_noise(answer, shift, step), inputs, step)
    alpha, noise = math.sqrt(step.alpha_bar), math.sqrt(1 - step.alpha_bar)
    torch.testing.assert_close(moved, clean - noise / alpha * shift)


def test_pndm_without_its_runge_kutta_start() -> None:
    scheduler = NoiseScheduler(PNDMScheduler(skip_prk_steps=True), 4, CPU)
    assert [step.begins for step in scheduler.steps] == [True, False, True, True, True]
    plain = _run(NoiseScheduler(PNDMScheduler(skip_prk_steps=True), 4, CPU))
    assert torch.equal(_run(NoiseScheduler(PNDMScheduler(skip_prk_steps=True), 4, CPU), at=1), plain)


def test_span_of_a_second_order_step() -> None:
    scheduler = _make("heun", 3)
    assert [(step.begins, scheduler.span(step)) for step in scheduler.steps if step.begins] == [(True, 2), (True, 2), (True, 1)]


def test_unknown_scheduler_says_what_exists() -> None:
    with pytest.raises(ValueError, match=r"Unknown scheduler 'eular' .did you mean 'euler'.*; choose from ddim, ddpm"):
        scheduler_class("eular")


def test_scheduler_without_a_noise_table() -> None:
    with pytest.raises(ValueError, match="EDMEulerScheduler has no table alphas_cumprod; choose from ddim"):
        NoiseScheduler(EDMEulerScheduler(), 4, CPU)


def test_too_few_steps() -> None:
    """The Runge-Kutta start of PNDM takes four."""
    with pytest.raises(ValueError, match="steps must be more for PNDMScheduler; got 3"):
        _make("pndm", 3)


def test_progress_of_steps() -> None:
    assert [step.progress for step in _make("ddim", 4).steps] == [0, 0.25, 0.5, 0.75]
    assert isinstance(_make("ddim", 4).steps[0], Step)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_noised_latents_at_every_step_wherever_the_scheduler_stands(name: str) -> None:
    """Signal and noise are in the proportion of the step, in the scheduler's own scale."""
    scheduler = _make(name)
    for step in scheduler.steps:
        one, none = torch.tensor(1.0), torch.tensor(0.0)
        signal, noise = scheduler.add_noise(one, none, step).item(), scheduler.add_noise(none, one, step).item()
        assert noise / signal == pytest.approx(step.sigma, rel=1e-4)
        own = math.sqrt(1 + step.sigma**2) if scheduler.initial_sigma > 1 else 1.0
        assert signal == pytest.approx(own * math.sqrt(step.alpha_bar), rel=1e-4)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_steps_are_numbered_where_they_begin(name: str) -> None:
    steps = _make(name).steps
    assert [step.number for step in steps if step.begins] == list(range(sum(step.begins for step in steps)))
    assert all(one.number == other.number for one, other in itertools.pairwise(steps) if not other.begins)


@pytest.mark.parametrize("name", ["ddim", "ddpm"])
def test_latents_are_not_clipped_where_the_configuration_does_not_ask_for_it(name: str) -> None:
    pipeline = tiny.pipeline()
    pipeline.scheduler = scheduler_class("euler").from_config({"beta_schedule": "scaled_linear"})
    assert StableDiffusion(pipeline).make_scheduler(name, 4)._scheduler.config.clip_sample is False
