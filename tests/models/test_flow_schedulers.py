"""Schedulers of flow matching, driven by networks whose answers are known."""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import diffusers
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchLCMScheduler, SASolverScheduler, UniPCMultistepScheduler
from torch import Tensor

from attnguide.engine.noise import generators
from attnguide.models.names import FLOW_NAMES, flow_choice
from attnguide.models.schedulers import FlowScheduler, is_flow, make_flow, named_flow_scheduler, size_shift, written_config

pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__")  # the library on a newer numpy

CPU = torch.device("cpu")
OWN = FlowMatchEulerDiscreteScheduler(shift=3.0)
CLEAN = 0.3
NAMES = (*FLOW_NAMES, "euler_karras", "euler_exponential", "euler_beta")


def _make(name: str, steps: int = 5) -> FlowScheduler:
    made = FlowScheduler(named_flow_scheduler(name, written_config(OWN)), steps, CPU)
    made.check()
    return made


def _run(scheduler: FlowScheduler, answer: Callable[..., Tensor], seeds: Sequence[int] = (0, 1)) -> Tensor:
    random = generators(seeds)
    latents = torch.cat([torch.randn(1, 4, 2, 2, generator=source) for source in random])
    for step in scheduler.steps:
        latents = scheduler.step(answer(latents, step), step, latents, random)
    return latents


def _to_clean(latents: Tensor, step: Any) -> Tensor:
    """The velocity that leads to the same clean latents from everywhere."""
    return (latents - CLEAN) / step.noise


def test_levels_by_hand() -> None:
    """``3 s / (1 + 2 s)`` of 1, 3/4, 1/2 and 1/4."""
    steps = FlowScheduler(FlowMatchEulerDiscreteScheduler(shift=3.0), 4, CPU, sigmas=[1, 0.75, 0.5, 0.25]).steps
    assert [step.noise for step in steps] == pytest.approx([1, 0.9, 0.75, 0.5])
    assert [step.signal for step in steps] == pytest.approx([0, 0.1, 0.25, 0.5])
    assert [step.timestep for step in steps] == pytest.approx([1000, 900, 750, 500])
    assert [step.sigma for step in steps] == pytest.approx([math.inf, 9, 3, 1])
    assert [step.alpha_bar for step in steps] == pytest.approx([0, 0.01 / 0.82, 0.1, 0.5])


@pytest.mark.parametrize(("kind", "factor"), [("exponential", math.e), ("linear", 1.0)])
def test_a_shift_by_size_by_hand(kind: Any, factor: float) -> None:
    own = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind)
    (first, second) = FlowScheduler(own, 2, CPU, sigmas=[0.8, 0.5], mu=1.0).steps
    assert (first.noise, second.noise) == pytest.approx((factor / (factor + 0.25), factor / (factor + 1)))
    # Schedulers that shift by a factor are given the same.
    assert named_flow_scheduler("dpmpp_2m", own.config, 1.0).config.flow_shift == pytest.approx(factor)
    assert named_flow_scheduler("heun", own.config, 1.0).config.shift == pytest.approx(factor)


def test_the_shift_of_a_size() -> None:
    assert [size_shift(tokens, {}) for tokens in (256, 2176, 4096)] == pytest.approx([0.5, 0.825, 1.15])
    other = {"base_image_seq_len": 100, "max_image_seq_len": 300, "base_shift": 0.0, "max_shift": 2.0}
    assert size_shift(150, other) == pytest.approx(0.5)


@pytest.mark.parametrize("name", NAMES)
def test_steps(name: str) -> None:
    scheduler = _make(name)
    assert scheduler.name == flow_choice(name).class_name and scheduler.prediction_type == "flow_prediction"
    assert scheduler.initial_sigma == 1
    assert all(step.signal + step.noise == pytest.approx(1) for step in scheduler.steps)
    assert all(step.timestep == pytest.approx(1000 * step.noise, abs=1) for step in scheduler.steps)
    assert sum(scheduler.span(step) for step in scheduler.steps if step.begins) == len(scheduler.steps)
    noise = [step.noise for step in scheduler.steps]
    assert noise == sorted(noise, reverse=True) and noise[0] > 0.99


@pytest.mark.parametrize("name", NAMES)
def test_noise_shares_that_a_pipeline_gives(name: str) -> None:
    """They count for the schedulers of diffusers that take any; the others spread their own."""
    made = make_flow(OWN, name, 4, CPU, sigmas=[1, 0.75, 0.5, 0.25])
    levels = [step.noise for step in made.steps if step.begins]
    kind = getattr(diffusers, flow_choice(name).class_name)
    takes = "sigmas" in inspect.signature(kind.set_timesteps).parameters and not name.startswith("euler_")
    assert levels == pytest.approx([1, 0.9, 0.75, 0.5] if takes else levels, abs=1e-5) and made.steps[0].noise > 0.99


@pytest.mark.parametrize("name", NAMES)
def test_a_network_that_knows_the_picture_reaches_it(name: str) -> None:
    assert _run(_make(name), _to_clean) == pytest.approx(torch.full((2, 4, 2, 2), CLEAN), abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_equals_the_library_s_own_loop(name: str) -> None:
    """Same batch, same machine: to the bit. The library's loop is given one generator a row."""

    def answer(latents: Tensor, timestep: float) -> Tensor:
        return torch.sin(3 * latents) + timestep / 1000

    inner = named_flow_scheduler(name, written_config(OWN))
    inner.set_timesteps(4, device=CPU)
    random = generators((0, 1))
    latents = torch.cat([torch.randn(1, 4, 2, 2, generator=source) for source in random])
    drawn = {"generator": random} if name in ("lcm", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde") else {}
    for timestep in inner.timesteps:
        latents = inner.step(answer(latents, float(timestep)), timestep, latents, **drawn, return_dict=False)[0]
    assert torch.equal(_run(_make(name, 4), lambda values, step: answer(values, step.timestep)), latents)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_is_the_same_alone_and_in_a_batch(name: str) -> None:
    scheduler = _make(name)
    together = _run(scheduler, lambda latents, step: torch.sin(latents))
    assert torch.equal(_run(scheduler.anew(), lambda latents, step: torch.sin(latents)), together)
    assert torch.equal(_run(scheduler.anew(), lambda latents, step: torch.sin(latents), (1,)), together[1:])


def test_stochastic_sampling_draws_each_row_s_noise_or_is_refused() -> None:
    """Older versions of the library draw it from torch's own stream."""
    made = FlowScheduler(FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), 3, CPU)
    try:
        made.check()
    except ValueError as error:
        assert "draws noise that no row's seed decides" in str(error)
        return
    both = _run(made.anew(), lambda latents, step: torch.sin(latents))
    alone = _run(made.anew(), lambda latents, step: torch.sin(latents), (1,))
    assert torch.equal(both[1], alone[0]) and not torch.equal(both[0], both[1])


def test_noise_of_torch_s_own_stream_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*_: Any, **__: Any) -> tuple[Tensor]:
        return (torch.randn(1, 1, 2, 2),)

    made = FlowScheduler(FlowMatchEulerDiscreteScheduler(), 3, CPU)
    monkeypatch.setattr(FlowMatchEulerDiscreteScheduler, "step", step)
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler draws noise that no row's seed decides"):
        made.check()


@pytest.mark.parametrize("inverted", [False, True])
def test_noising_denoising_and_shifting_fit_each_other(inverted: bool) -> None:
    own = FlowMatchEulerDiscreteScheduler(shift=3.0, invert_sigmas=inverted)
    scheduler = FlowScheduler(own, 4, CPU, sigmas=[1, 0.75, 0.5, 0.25])
    clean, noise, shift = torch.randn(3, 1, 4, 2, 2, dtype=torch.float64)
    for step in scheduler.steps:
        latents = scheduler.add_noise(clean, noise, step)
        velocity = clean - noise if inverted else noise - clean
        torch.testing.assert_close(latents, step.signal * clean + step.noise * noise)
        torch.testing.assert_close(scheduler.denoised(velocity, latents, step), clean)
        moved = scheduler.denoised(scheduler.shift_noise(velocity, shift, step), latents, step)
        share = step.noise / max(step.signal, 1 / 16)  # bounded in the first step, whose signal is 0
        torch.testing.assert_close(moved, clean - share * shift)


def test_inverted_levels_still_fall_from_noise_to_data() -> None:
    """The network's time then runs from data to noise; a step leads to the same clean latents."""
    scheduler = FlowScheduler(FlowMatchEulerDiscreteScheduler(invert_sigmas=True), 2, CPU, sigmas=[1, 0.5])
    assert [(step.timestep, step.noise) for step in scheduler.steps] == [(1000, 1), (500, 0.5)]
    assert _run(scheduler, lambda latents, step: -_to_clean(latents, step)) == pytest.approx(torch.full((2, 4, 2, 2), CLEAN))


@pytest.mark.parametrize("kind", [UniPCMultistepScheduler, SASolverScheduler])
def test_a_corrector_moves_by_exactly_the_change_where_the_denoised_picture_stays(kind: Any) -> None:
    results = []
    for amount in (0.0, 1.0):
        own = kind(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
        scheduler, random, latents = FlowScheduler(own, 5, CPU), generators([0]), torch.ones(1, 4, 2, 2)
        for step in scheduler.steps[:4]:
            if step.index == 3:
                latents = latents + amount
                scheduler.latents_moved(torch.full_like(latents, amount), step)
            latents = scheduler.step(_to_clean(latents, step), step, latents, random)
        results.append(scheduler._scheduler.last_sample)
    torch.testing.assert_close(results[1] - results[0], torch.ones_like(results[0]), rtol=1e-4, atol=1e-5)


def test_one_step_from_the_middle_is_linear() -> None:
    """``x + (s' - s) v``, at any step without those before it."""
    scheduler = FlowScheduler(FlowMatchEulerDiscreteScheduler(), 4, CPU, sigmas=[1, 0.75, 0.5, 0.25])
    for step, after in zip(scheduler.steps, (0.75, 0.5, 0.25, 0.0), strict=True):
        latents, velocity = torch.randn(2, 1, 4, 2, 2)
        moved = scheduler.at(step).step(velocity, step, latents, generators([0]))
        torch.testing.assert_close(moved, latents + (after - step.noise) * velocity)


@pytest.mark.parametrize("name", ["ddim", "ddpm", "pndm", "lms", "euler_a", "kdpm2", "dpmpp_sde", "tcd", "deis", "sa_solver"])
def test_what_does_not_exist_for_flow_matching_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"Scheduler '{name}' .*flow-matching models.*choose from euler, heun, lcm"):
        named_flow_scheduler(name, OWN.config)


@pytest.mark.parametrize(
    ("name", "said"), [("dpmpp_2m_karras", "; it"), ("euler_trailing", "; it has karras, exponential, beta")]
)
def test_noise_levels_that_do_not_exist_for_flow_matching(name: str, said: str) -> None:
    base, _, ending = name.rpartition("_")
    with pytest.raises(ValueError, match=f"'{base}' has no {ending} noise levels for flow-matching models") as refused:
        named_flow_scheduler(name, OWN.config)
    assert (said in str(refused.value)) == (base == "euler")


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (diffusers.DDIMScheduler(), "Scheduler DDIMScheduler is not supported for a network trained by flow matching; choose"),
        (UniPCMultistepScheduler(), "UniPCMultistepScheduler must be set up for flow matching"),
        (FlowMatchLCMScheduler(scale_factors=[0.5]), "changes the latents' size"),
        (FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), "by how much is not said"),
        (
            UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", use_beta_sigmas=True),
            "has no noise levels of flow matching with use_beta_sigmas",
        ),
    ],
    ids=["discrete", "not set up", "growing", "no size", "beta"],
)
def test_schedulers_that_would_be_driven_wrongly(scheduler: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FlowScheduler(scheduler, 4, CPU)


def test_which_schedulers_are_of_flow_matching() -> None:
    assert is_flow(OWN) and is_flow(named_flow_scheduler("unipc", OWN.config)) and not is_flow(diffusers.DDIMScheduler())
