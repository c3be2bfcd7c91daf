"""Guide passes: what they compute, how far they move, and when they stop."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from attnguide.attention.attach import attach
from attnguide.attention.capture import Probe, Recorder
from attnguide.attention.maps import AttentionMaps
from attnguide.attention.sites import SiteSelector
from attnguide.engine.cfg import pass_context
from attnguide.guidance.attend_and_excite import AttendAndExcite
from attnguide.guidance.base import Guidance, LossOutput
from attnguide.guidance.mask_guidance import TERMS, MaskGuidance
from attnguide.guidance.update import Refinement, Update
from attnguide.prompt.targets import Targets
from attnguide.schedules import Window, constant
from attnguide.types import Step
from tests import tiny
from tests.closeness import assert_close
from tests.engine.watch import Watch, final, inputs_of, latents, run

pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__")  # the library on a newer numpy

UNET: Any = tiny.model().networks["unet"]
CROSS = SiteSelector(kind="cross", levels=(0,))


class _Share(Guidance):
    """One minus the share of attention on the first word, times a factor: smooth, and easy to repeat."""

    name = "share"

    def __init__(self, update: Update, window: Window | None = None, sites: SiteSelector = CROSS) -> None:
        super().__init__(sites=sites, window=window or Window(), update=update)
        self.frozen: list[bool] = []

    def loss(self, maps: AttentionMaps, targets: Targets, step: Step) -> LossOutput:
        self.frozen.append(not any(weight.requires_grad for weight in UNET.parameters()))
        found = 1 - torch.stack([probs[..., 2].mean((1, 2)) for probs in maps.probs.values()]).mean(0)
        return LossOutput(found, found.detach())


def _watched(guidance: Guidance, count: int = 1, **settings: Any) -> Watch:
    watch = Watch()
    run([tiny.row(str(seed), seed=seed, **settings) for seed in range(3, 3 + count)], [guidance], (), watch)
    return watch


# ------------------------------------------------------------------------------------------------- what is computed


def test_guide_passes_are_the_conditional_half_and_stop_after_the_last_site() -> None:
    guidance = MaskGuidance(places=("down",), iterations=2, stop=0.5)  # of the guidance level, 16x16 cells
    first, later = UNET.conv_in, (UNET.down_blocks[1].resnets[0].norm1, UNET.mid_block.resnets[0].norm1, UNET.conv_out)
    with inputs_of(first) as entered, inputs_of(later[0]) as down, inputs_of(later[1]) as middle, inputs_of(later[2]) as out:
        run([tiny.row(), tiny.row("1", seed=4)], [guidance])
    # Two updates in each of the first two steps, on two rows; denoising passes on both halves of them.
    assert [len(inputs) for inputs in entered] == [2, 2, 4, 2, 2, 4, 4, 4]
    for seen in (down, middle, out):
        assert [len(inputs) for inputs in seen] == [4, 4, 4, 4]


def test_a_guide_pass_goes_as_far_as_its_last_site() -> None:
    with inputs_of(UNET.mid_block.resnets[0].norm1) as middle, inputs_of(UNET.conv_out) as out:
        final(MaskGuidance(stop=0.5))
    assert [len(inputs) for inputs in middle] == [1, 2, 1, 2, 2, 2]
    assert [len(inputs) for inputs in out] == [2, 2, 2, 2]


@pytest.mark.parametrize("name", ["euler", "heun", "lms", "euler_ancestral"])
def test_guide_passes_see_the_latents_as_the_network_reads_them(name: str) -> None:
    with inputs_of(UNET.conv_in) as entered:
        watch = _watched(MaskGuidance(step_size=0.0, stop=0.3), scheduler=name)
    judged, denoised = entered[:2]
    assert torch.equal(judged, denoised[:1]) and torch.equal(judged, denoised[1:])
    assert watch.before[0].std() > 10 and judged.std() < 1.1


def test_weights_get_no_gradient_and_are_frozen_in_guide_passes_only() -> None:
    denoising: list[bool] = []
    handle = UNET.conv_out.register_forward_pre_hook(
        lambda _module, _args: denoising.append(any(weight.requires_grad for weight in UNET.parameters()))
    )
    guidance = _Share(Update(constant(1.0)))
    final(guidance)
    handle.remove()
    assert guidance.frozen == [True] * 4 and denoising == [True] * 4
    assert all(weight.grad is None for weight in UNET.parameters())


def test_guide_passes_run_without_injections() -> None:
    """Injections act in denoising passes; the loss judges the model's own attention."""
    from attnguide.injection.hand_maps import MapInjection

    alone, beside = Watch(), Watch()
    run([tiny.row()], [MaskGuidance(stop=0.25)], (), alone)
    run([tiny.row()], [MaskGuidance(stop=0.25)], [MapInjection(start=0.0, scale=3.0)], beside)
    assert alone.events[0].losses == beside.events[0].losses
    assert not torch.equal(alone.noise[0], beside.noise[0])


# ---------------------------------------------------------------------------------------------------- how far it moves


def _gradient(at: Tensor, step: Step, row: int = 0) -> Tensor:
    """Gradient of ``_Share`` at the network's input, by a whole forward pass."""
    model, recorder = tiny.model(), Recorder()
    states = model.encode_prompt([tiny.PROMPT], None)
    inputs = at.clone().requires_grad_(True)
    context = pass_context(step, "guide", [0], ("cond",))
    with (
        torch.enable_grad(),
        attach(model.attention_modules(32, 32), [Probe("probs", recorder, CROSS, frozenset({"guide"}))]) as a,
    ):
        with a.during(context):
            model.predict(inputs, step, states)
        loss = 1 - torch.stack([probs[..., 2].mean() for probs in recorder.tensors.values()]).mean()
        return torch.autograd.grad(loss, inputs)[0]


@pytest.mark.parametrize("name", ["ddim", "euler"])
def test_latents_follow_the_gradient_in_the_network_s_scale(name: str) -> None:
    size = 2000.0
    with inputs_of(UNET.conv_in) as entered:
        watch = _watched(_Share(Update(constant(size), scale=0.5), Window(0.0, 0.25)), scheduler=name)
    step = watch.events[0].step
    judged, denoised = entered[0], entered[1][:1]
    gradient = _gradient(judged, step)
    assert (denoised - judged).norm() > 1e-3
    torch.testing.assert_close(denoised - judged, -0.5 * size * gradient, rtol=1e-3, atol=1e-5)
    assert watch.events[0].gradient_norms[0] == pytest.approx(float(gradient.norm()), rel=1e-4)


def test_noise_guidance_adds_to_the_prediction_and_leaves_latents() -> None:
    size = 500.0
    plain, watch = Watch(), Watch()
    run([tiny.row()], (), (), plain)
    with inputs_of(UNET.conv_in) as entered:
        run([tiny.row()], [_Share(Update(constant(size), space="noise"), Window(0.0, 0.25))], (), watch)
    assert torch.equal(entered[0], entered[1][:1])
    step = watch.events[0].step
    expected = size * math.sqrt(1 - step.alpha_bar) * _gradient(entered[0], step)
    assert expected.norm() > 1e-3
    torch.testing.assert_close(watch.noise[0] - plain.noise[0], expected, rtol=1e-3, atol=1e-5)
    assert not torch.equal(watch.after[0], plain.after[0])


def test_shifts_of_several_noise_guidances_add_up() -> None:
    def noise(*sizes: float) -> Tensor:
        watch = Watch()
        run([tiny.row()], [_Share(Update(constant(size), space="noise")) for size in sizes], (), watch)
        return watch.noise[0]

    torch.testing.assert_close(noise(100.0, 200.0), noise(300.0), rtol=0, atol=1e-5)
    assert not torch.equal(noise(100.0), noise(300.0))


@pytest.mark.parametrize("name", ["ddim", "euler"])
def test_max_norm_holds(name: str) -> None:
    with inputs_of(UNET.conv_in) as entered:
        _watched(MaskGuidance(step_size=1e6, stop=0.25, max_norm=0.05), scheduler=name)
    judged, denoised = entered[0], entered[1][:1]
    assert float((denoised - judged).norm() / judged.norm()) == pytest.approx(0.05, rel=1e-3)


@pytest.mark.parametrize("term", TERMS)
def test_an_update_lowers_the_loss(term: str) -> None:
    watch = _watched(MaskGuidance(losses={term: 1.0}, step_size=1e4, max_norm=0.02, iterations=2, stop=1.0), count=2)
    for event, later in zip(watch.events[::2], watch.events[1::2], strict=True):
        assert (event.iteration, later.iteration) == (0, 1)
        assert all(after < before for before, after in zip(event.losses, later.losses, strict=True))


def test_an_update_of_attend_and_excite_lowers_its_loss() -> None:
    watch = _watched(AttendAndExcite(step_size=1.0, thresholds={0.0: 0.99}, max_refinements=3))
    found = [event.losses[0] for event in watch.events if event.step.index == 0]
    assert len(found) == 4 and found == sorted(found, reverse=True) and found[0] > found[-1]


# ----------------------------------------------------------------------------------------------------- when it acts


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        (Window(0.25, 0.75), [1, 2]),
        (Window(0.0, 1.0), [0, 1, 2, 3]),
        (Window(0.6, 0.2, "timestep"), [1, 2]),  # timesteps are 751, 501, 251, 1
        (Window(0.751, 0.751, "timestep"), [0]),
        (Window(1.0, 2.0, "sigma"), [1]),
        (Window(0.0, math.inf, "sigma"), [0, 1, 2, 3]),
    ],
)
def test_windows(window: Window, expected: list[int]) -> None:
    watch = _watched(_Share(Update(constant(1.0)), window))
    assert [event.step.index for event in watch.events] == expected


@pytest.mark.parametrize(
    ("name", "evaluations", "begins"),
    [
        ("heun", 7, [0, 2, 4, 6]),
        ("kdpm2", 7, [0, 2, 4, 6]),
        ("euler", 4, [0, 1, 2, 3]),
        ("unipc", 4, [0, 1, 2, 3]),
        ("pndm", 13, [0, 4, 8, 12]),
    ],
)
def test_guidance_acts_once_a_denoising_step(name: str, evaluations: int, begins: list[int]) -> None:
    watch = _watched(_Share(Update(constant(1.0))), scheduler=name)
    assert len(watch.after) == evaluations
    assert [event.step.index for event in watch.events] == begins


def test_a_move_survives_a_second_order_scheduler_whole() -> None:
    """Heun goes back to the start of its step: a plain run started at the moved latents ends at the same place."""
    from attnguide.sampling.sampler import Sampler

    watch = Watch()
    with inputs_of(UNET.conv_in) as entered:
        guided = run([tiny.row(scheduler="heun")], [_Share(Update(constant(2000.0)), Window(0.0, 0.1))], (), watch)
    scheduler = tiny.model().make_scheduler("heun", 4)
    noise = entered[1][:1] / scheduler.input_scale(scheduler.steps[0]) / scheduler.initial_sigma
    started = Sampler(tiny.model()).run([tiny.row(scheduler="heun")], noise)
    assert_close(latents(guided[0]), latents(started[0]))
    assert (latents(started[0]) - final(scheduler="heun")).abs().max() > 1e-2


# -------------------------------------------------------------------------------------------------- rows that are done


def test_rows_stop_where_their_own_limit_says() -> None:
    rows = [tiny.row(str(seed), seed=seed) for seed in (3, 4, 5)]
    first = Watch()
    run(rows, [MaskGuidance(iterations=1, stop=0.25)], (), first)
    start = first.events[0].indicators
    # The first row is satisfied at once, the second after some updates, the third never.
    until = [start[0] + 0.01, start[1] - 0.02, 0.0]
    watch = Watch()
    guidance = MaskGuidance(until=until, iterations=8, stop=0.25, step_size=1e4, max_norm=0.02)
    results = run(rows, [guidance], (), watch)
    judged = [watch.of_row(row) for row in range(3)]
    assert judged[0] == [(0, 0, False)]
    assert 2 < len(judged[1]) < 8 and [moved for *_, moved in judged[1]] == [True] * (len(judged[1]) - 1) + [False]
    assert [moved for *_, moved in judged[2]] == [True] * 8
    last = next(event for event in reversed(watch.events) if 1 in event.rows)
    assert last.indicators[last.rows.index(1)] <= until[1]
    assert {event.rows for event in watch.events} == {(0, 1, 2), (1, 2), (2,)}
    # The cost of each row is its own: two halves in four steps, and one pass for each time it was judged.
    assert [result.cost.unet_forwards for result in results] == [8 + len(rows) for rows in judged]
    assert [result.cost.unet_backwards for result in results] == [0, len(judged[1]) - 1, 8]


def test_a_row_without_a_limit_always_moves() -> None:
    watch = Watch()
    run([tiny.row(), tiny.row("1", seed=4)], [MaskGuidance(until=[None, 1.0], iterations=3, stop=0.25)], (), watch)
    assert watch.of_row(0) == [(0, 0, True), (0, 1, True), (0, 2, True)]
    assert watch.of_row(1) == [(0, 0, False)]


def _refining(lagging: bool) -> list[bool]:
    level = _watched(_Share(Update(constant(0.0)), Window(0.0, 0.25))).events[0].indicators[0]
    refinement = Refinement(level - 1e-4, 20, (0.0,), lagging=lagging)
    update = Update(constant(1e4), iterations=0, refinements=(refinement,), max_norm=0.02)
    watch = _watched(_Share(update))
    assert {event.step.index for event in watch.events} == {0}
    met = [event.indicators[0] <= level - 1e-4 for event in watch.events]
    assert met.index(True) == len(met) - 1  # judged until the limit is met, and no further
    return [event.moved[0] for event in watch.events]


def test_refinement_stops_as_soon_as_the_limit_is_met() -> None:
    moved = _refining(lagging=False)
    assert 1 < len(moved) < 20 and moved == [True] * (len(moved) - 1) + [False]


def test_a_lagging_refinement_makes_one_move_more() -> None:
    moved = _refining(lagging=True)
    assert len(moved) > 1 and all(moved)


def test_iterations_go_on_counting_after_refinements() -> None:
    update = Update(constant(1.0), iterations=2, refinements=(Refinement(0.0, 3, (0.5,)),))
    watch = _watched(_Share(update))
    assert [(event.step.index, event.iteration) for event in watch.events] == [
        *((0, i) for i in range(2)),
        *((1, i) for i in range(2)),
        *((2, i) for i in range(5)),
        *((3, i) for i in range(2)),
    ]


class _Flat(Guidance):
    """Nothing to gain."""

    def loss(self, maps: AttentionMaps, targets: Targets, step: Step) -> LossOutput:
        found = next(iter(maps.probs.values())).flatten(1).sum(1) * 0
        return LossOutput(found, found.detach())


def test_a_loss_of_zero_costs_no_backward() -> None:
    watch = Watch()
    result = run([tiny.row()], [_Flat(sites=CROSS)], (), watch)[0]
    assert (result.cost.unet_forwards, result.cost.unet_backwards) == (12, 0)
    assert all(event.moved == (False,) and event.gradient_norms == (0.0,) for event in watch.events)


# ------------------------------------------------------------------------------------------------------------ the cost


@pytest.mark.parametrize(
    ("guidances", "settings", "forwards", "backwards"),
    [
        (lambda: [], {}, 8, 0),
        (lambda: [], {"cfg_scale": 1.0}, 4, 0),
        (lambda: [], {"scheduler": "heun"}, 14, 0),
        (lambda: [MaskGuidance(stop=0.5)], {}, 10, 2),
        (lambda: [MaskGuidance(stop=0.5, iterations=3)], {"cfg_scale": 1.0}, 10, 6),
        (lambda: [MaskGuidance(stop=1.0)], {"scheduler": "heun"}, 18, 4),
        (lambda: [MaskGuidance(stop=0.5), AttendAndExcite(stop=1.0, thresholds={})], {}, 14, 6),
        # Never satisfied: three refinements at the first step, and one update in each of the first two.
        (lambda: [AttendAndExcite(thresholds={0.0: 1.0}, max_refinements=3)], {}, 13, 5),
        # Judged and satisfied.
        (lambda: [MaskGuidance(until=1.0, iterations=5, stop=0.5)], {}, 10, 0),
    ],
)
def test_passes_are_counted(
    guidances: Callable[[], list[Guidance]], settings: dict[str, Any], forwards: int, backwards: int
) -> None:
    with inputs_of(UNET.conv_in) as entered:
        result = run([tiny.row(**settings)], guidances())[0]
    assert (result.cost.unet_forwards, result.cost.unet_backwards) == (forwards, backwards)
    assert sum(len(inputs) for inputs in entered) == forwards
    assert result.cost.seconds > 0
