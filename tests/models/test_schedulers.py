"""Schedulers driven by a network that always answers the same, so that their part alone is seen."""

import itertools
import math
import sys
import types
from collections.abc import Sequence

import pytest
import torch
from diffusers import DDIMScheduler, EDMEulerScheduler, EulerDiscreteScheduler, IPNDMScheduler, PNDMScheduler
from torch import Tensor

from attnguide.engine.noise import generators
from attnguide.models.names import SCHEDULER_CHOICES, SCHEDULERS
from attnguide.models.schedulers import DiscreteScheduler, named_scheduler, scheduler_class
from attnguide.models.unet import StableDiffusion
from attnguide.types import Step
from tests import tiny

pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__")  # the library on a newer numpy

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _torchsde(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's noise is never drawn, hence it need not be there."""
    monkeypatch.setitem(sys.modules, "torchsde", types.ModuleType("torchsde"))


def _make(name: str, steps: int = 6) -> DiscreteScheduler:
    return tiny.model().make_scheduler(name, steps)


def _run(scheduler: DiscreteScheduler, at: int | None = None, amount: float = 1.0, seeds: Sequence[int] = (0, 1)) -> Tensor:
    """Final latents; ``amount`` is added before the evaluation ``at``."""
    random = generators(seeds)
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
    sigmas = [step.sigma for step in scheduler.steps if step.begins]
    assert sigmas == sorted(sigmas, reverse=True)


EVALUATIONS = {"heun": 11, "kdpm2": 11, "kdpm2_ancestral": 11, "dpmpp_sde": 11, "pndm": 15, "plms": 7}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_number_of_evaluations(name: str) -> None:
    assert len(_make(name).steps) == EVALUATIONS.get(name, 6)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_change_survives_exactly_where_a_step_begins(name: str) -> None:
    scheduler = _make(name, 4)
    plain = _run(scheduler)
    for step in scheduler.steps:
        whole = 1.0 if scheduler.initial_sigma > 2 else 1 / math.sqrt(step.alpha_bar)
        survived = (_run(scheduler.anew(), step.index) - plain).mean().item() / whole
        if step.begins:
            assert survived > 0.98, step
        else:
            assert abs(survived - 1) > 1e-4, step


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_change_of_nothing_changes_no_bit(name: str) -> None:
    scheduler = _make(name, 4)
    plain = _run(scheduler)
    for step in scheduler.steps:
        if step.begins:
            assert torch.equal(_run(scheduler.anew(), step.index, amount=0.0), plain)


@pytest.mark.parametrize("predict_x0", [True, False])
def test_unipc_s_corrector_keeps_the_change_whole(predict_x0: bool) -> None:
    own = tiny.model().make_scheduler("unipc", 4)._scheduler
    results = []
    for amount in (0.0, 1.0):
        scheduler = DiscreteScheduler(type(own).from_config(own.config, predict_x0=predict_x0, solver_order=1), 4, CPU)
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
    scheduler = _make(name)
    assert torch.equal(_run(scheduler.anew()), _run(scheduler.anew()))


STOCHASTIC = ("ddpm", "euler_ancestral", "kdpm2_ancestral", "dpmpp_2m_sde", "dpmpp_3m_sde", "dpmpp_sde", "sa_solver", "lcm")


@pytest.mark.parametrize("name", STOCHASTIC)
def test_added_noise_depends_on_the_row_s_seed_alone(name: str) -> None:
    a, b = _run(_make(name), seeds=(0, 1)), _run(_make(name), seeds=(1, 2))
    assert torch.equal(a[1], b[0]) and not torch.equal(a[0], b[0])


@pytest.mark.parametrize("name", SCHEDULER_CHOICES)
def test_every_name_gives_a_row_the_same_alone_and_in_a_batch(name: str) -> None:
    scheduler = _make(name, 5)
    together, again = _run(scheduler), _run(scheduler.anew())
    assert torch.isfinite(together).all() and torch.equal(again, together)
    assert torch.equal(_run(scheduler.anew(), seeds=(1,)), together[1:])


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "unipc", "heun"])
def test_endings_choose_other_noise_levels(name: str) -> None:
    levels = [[step.sigma for step in _make(name + ending, 5).steps] for ending in ("", "_karras", "_exponential", "_beta")]
    assert all(one != other for one, other in itertools.combinations(levels, 2))


def test_levels_of_names_do_not_depend_on_the_model_s_own_scheduler() -> None:
    own = {**tiny.shared_pipeline().scheduler.config, "use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++"}
    assert not named_scheduler("euler", own).config.use_karras_sigmas
    assert named_scheduler("euler_beta", own).config.use_beta_sigmas
    assert named_scheduler("dpmpp_2m", own).config.algorithm_type == "dpmsolver++"
    multistep = scheduler_class("dpmpp_2m").from_config(tiny.shared_pipeline().scheduler.config)
    assert named_scheduler("dpmpp_2m_sde_karras", multistep.config).config.algorithm_type == "sde-dpmsolver++"
    assert named_scheduler("dpmpp_2m_sde_karras", multistep.config).config.use_karras_sigmas
    assert named_scheduler("ddim_trailing", tiny.shared_pipeline().scheduler.config).config.timestep_spacing == "trailing"


@pytest.mark.parametrize("name", ["dpmpp_2m_karras", "unipc_beta", "sa_solver_karras", "deis_exponential"])
def test_noise_levels_between_two_timesteps_are_the_scheduler_s_own(name: str) -> None:
    """Such schedulers tell the network the nearest whole timestep."""
    scheduler = _make(name)
    for step in scheduler.steps:
        assert step.sigma == pytest.approx(float(scheduler._scheduler.sigmas[step.index]))
        assert step.sigma == pytest.approx(scheduler.sigma_at(step.timestep), rel=0.2)


def test_noise_of_dpmpp_sde_is_one_brownian_motion_a_step() -> None:
    """The noise of a whole step holds that of its first part: with the variances a quarter and three, half correlates."""
    scheduler = _make("dpmpp_sde")
    noise, latents = scheduler._brownian, torch.zeros(1, 4, 100, 100)
    assert noise is not None
    noise.serve(latents, generators([0]))
    part, whole = noise(torch.tensor(4.0), torch.tensor(3.0)), noise(torch.tensor(4.0), torch.tensor(0.0))
    assert float(part.std()) == pytest.approx(1, abs=0.02) and float(whole.std()) == pytest.approx(1, abs=0.02)
    assert float((part * whole).mean()) == pytest.approx(0.5, abs=0.02)
    other = noise(torch.tensor(3.0), torch.tensor(2.0))
    assert float((whole * other).mean()) == pytest.approx(0, abs=0.02)


def test_dpmpp_sde_says_which_package_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchsde", None)
    monkeypatch.delitem(sys.modules, "diffusers.schedulers.scheduling_dpmsolver_sde", raising=False)
    with pytest.raises(ValueError, match="Scheduler 'DPM\\+\\+ SDE' needs the package torchsde: pip install torchsde"):
        scheduler_class("DPM++ SDE")


def test_a_held_dpmpp_sde_draws_each_row_s_noise_too() -> None:
    pipeline = tiny.pipeline()
    pipeline.scheduler = named_scheduler("dpmpp_sde", pipeline.scheduler.config)
    model = StableDiffusion(pipeline)
    together = _run(model.make_scheduler(None, 4))
    assert torch.equal(_run(model.make_scheduler(None, 4), seeds=(1,)), together[1:])


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
    scheduler = DiscreteScheduler(DDIMScheduler(prediction_type=prediction), 4, CPU)
    step = scheduler.steps[1]
    inputs, answer, shift = torch.randn(1, 4, 2, 2), torch.randn(1, 4, 2, 2), torch.randn(1, 4, 2, 2)
    clean = scheduler.denoised(answer, inputs, step)
    moved = scheduler.denoised(scheduler.shift_noise(answer, shift, step), inputs, step)
    alpha, noise = math.sqrt(step.alpha_bar), math.sqrt(1 - step.alpha_bar)
    torch.testing.assert_close(moved, clean - noise / alpha * shift)


def test_pndm_without_its_runge_kutta_start() -> None:
    scheduler = DiscreteScheduler(PNDMScheduler(skip_prk_steps=True), 4, CPU)
    assert [step.begins for step in scheduler.steps] == [True, False, True, True, True]
    plain = _run(DiscreteScheduler(PNDMScheduler(skip_prk_steps=True), 4, CPU))
    assert torch.equal(_run(DiscreteScheduler(PNDMScheduler(skip_prk_steps=True), 4, CPU), at=1), plain)


def test_span_of_a_second_order_step() -> None:
    scheduler = _make("heun", 3)
    assert [(step.begins, scheduler.span(step)) for step in scheduler.steps if step.begins] == [(True, 2), (True, 2), (True, 1)]


def test_unknown_scheduler_says_what_exists() -> None:
    with pytest.raises(ValueError, match=r"Unknown scheduler 'eular' .did you mean 'euler'.*; choose from ddim, ddpm"):
        scheduler_class("eular")


@pytest.mark.parametrize("scheduler", [EDMEulerScheduler(), IPNDMScheduler()])
def test_a_scheduler_of_another_kind_of_network(scheduler: object) -> None:
    with pytest.raises(ValueError, match=f"{type(scheduler).__name__} is not supported; choose another by name: ddim, ddpm"):
        DiscreteScheduler(scheduler, 4, CPU)
    pipeline = tiny.pipeline()
    pipeline.scheduler = scheduler
    with pytest.raises(ValueError, match="'euler' cannot be set up: the pipeline's own does not say which noise"):
        StableDiffusion(pipeline).make_scheduler("euler", 4)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (DDIMScheduler(prediction_type="flow_prediction"), "prediction_type of DDIMScheduler must be one of epsilon, v_pred"),
        (EulerDiscreteScheduler(timestep_type="continuous"), "EulerDiscreteScheduler is set up for another kind of network"),
        (scheduler_class("unipc")(use_flow_sigmas=True), "UniPCMultistepScheduler is set up for another kind of network"),
    ],
)
def test_a_scheduler_set_up_for_another_kind_of_network(scheduler: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiscreteScheduler(scheduler, 4, CPU)


def test_a_scheduler_that_does_not_know_what_the_network_predicts() -> None:
    pipeline = tiny.pipeline()
    pipeline.scheduler = DDIMScheduler(prediction_type="sample")
    with pytest.raises(ValueError, match="KDPM2DiscreteScheduler does not work for a network that predicts 'sample'"):
        StableDiffusion(pipeline).make_scheduler("kdpm2", 4)


@pytest.mark.parametrize("name", ["unipc", "sa_solver"])
def test_a_corrector_moves_by_exactly_the_change_where_the_denoised_picture_stays(name: str) -> None:
    config = {"beta_schedule": "scaled_linear", "prediction_type": "sample"}
    results = []
    for amount in (0.0, 1.0):
        scheduler = DiscreteScheduler(named_scheduler(name, config), 5, CPU)
        latents, random = torch.ones(1, 4, 2, 2), generators([0])
        for step in scheduler.steps[:4]:
            if step.index == 3:
                latents = latents + amount
                scheduler.latents_moved(torch.full_like(latents, amount), step)
            latents = scheduler.step(torch.full_like(latents, 0.3), step, latents, random)
        results.append(scheduler._scheduler.last_sample)
    torch.testing.assert_close(results[1] - results[0], torch.ones_like(results[0]), rtol=1e-4, atol=1e-5)


def test_too_few_steps() -> None:
    """The Runge-Kutta start of PNDM takes four."""
    with pytest.raises(ValueError, match=r"steps must be more for PNDMScheduler; got 3\.$"):
        _make("pndm", 3)


def test_too_many_steps() -> None:
    with pytest.raises(ValueError, match="steps must be fewer for LCMScheduler; got 60"):
        _make("lcm", 60)
    with pytest.raises(ValueError, match="steps must be at most 1000, with which the network was trained; got 1001"):
        _make("euler", 1001)


@pytest.mark.parametrize("name", ["ddim", "ddpm", "plms", "euler"])
def test_timesteps_that_an_offset_pushes_past_the_last(name: str) -> None:
    """Stable Diffusion's schedulers add 1 to their timesteps, so that 1000 steps would begin at 1000 of 0 to 999."""
    options = {"beta_schedule": "linear", "steps_offset": 1, "timestep_spacing": "leading", "prediction_type": "epsilon"}
    scheduler = named_scheduler(name, {**options, "num_train_timesteps": 1000})
    with pytest.raises(ValueError, match=r"steps must be fewer for .*; got 1000 .*would be 1000"):
        DiscreteScheduler(scheduler, 1000, torch.device("cpu"))


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
