"""What a run promises, whatever the methods."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from attnguide.attention.capture import Probe
from attnguide.attention.maps import AttentionMaps
from attnguide.attention.sites import Site
from attnguide.engine.observer import BatchInfo, Observer
from attnguide.guidance.attend_and_excite import AttendAndExcite
from attnguide.guidance.base import Guidance, LossOutput
from attnguide.guidance.mask_guidance import MaskGuidance
from attnguide.injection.hand_maps import MapInjection
from attnguide.methods import build_method
from attnguide.models.load import adapt
from attnguide.models.names import SCHEDULERS
from attnguide.prompt.targets import Targets
from attnguide.sampling.sampler import Sampler
from attnguide.types import PassContext, Region, Step
from tests import tiny
from tests.closeness import assert_close
from tests.engine.watch import Watch, at_step, final, latents, left_as_found, run

pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__")  # the library on a newer numpy

UNET = tiny.model().networks["unet"]


def _injection(number: int = 5, **options: Any) -> MapInjection:
    built = build_method(f"inject{number}", {"start": 0.0, **options})
    assert isinstance(built, MapInjection)
    return built


# ------------------------------------------------------------------------------------------------ nothing is nothing


@pytest.fixture(scope="module")
def plain() -> Tensor:
    return final()


@pytest.mark.parametrize("number", range(1, 9))
def test_injection_of_scale_zero_is_no_method(number: int, plain: Tensor) -> None:
    assert torch.equal(final(_injection(number, scale=0.0, branch="both")), plain)
    assert not torch.equal(final(_injection(number)), plain)


@pytest.mark.parametrize(
    "idle",
    [
        lambda: MaskGuidance(stop=0.0),
        lambda: MaskGuidance(step_size=0.0),
        lambda: MaskGuidance(scale=0.0, iterations=2, stop=1.0),
        lambda: MaskGuidance(until=2.0),
        lambda: MaskGuidance(start=0.9, stop=1.0, unit="timestep"),
        lambda: AttendAndExcite(stop=0.0, thresholds={}),
        lambda: AttendAndExcite(scale=0.0, thresholds={0.0: 0.9}, max_refinements=2),
        lambda: _injection(stop=0.0, start=0.0, unit="progress"),
        lambda: MapInjection(start=0.9, stop=1.0),
    ],
)
def test_methods_that_never_act_are_no_method(idle: Callable[[], Any], plain: Tensor) -> None:
    assert torch.equal(final(idle()), plain)


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name != "dpmpp_sde"])
def test_guide_passes_leave_the_scheduler_s_history_alone(name: str) -> None:
    """Judged at every step, moved by nothing: not one bit differs."""
    steps = 4 if name == "pndm" else 3
    judged = MaskGuidance(step_size=0.0, stop=1.0, iterations=2)
    assert torch.equal(final(judged, scheduler=name, steps=steps), final(scheduler=name, steps=steps))


def test_a_run_repeats_bit_by_bit() -> None:
    methods = [MaskGuidance(), _injection()]
    assert torch.equal(final(*methods), final(*methods))
    assert torch.equal(final(*methods, scheduler="euler_ancestral"), final(*methods, scheduler="euler_ancestral"))


def test_autograd_modes_of_the_caller_change_nothing(plain: Tensor) -> None:
    guided = final(MaskGuidance())
    with torch.inference_mode():
        assert torch.equal(final(MaskGuidance()), guided) and torch.equal(final(), plain)
    with torch.no_grad():
        assert torch.equal(final(MaskGuidance()), guided)


# ---------------------------------------------------------------------------------------------------- left as found


class _Explodes(Guidance):
    """Fails in the middle of a guide pass, at its second step."""

    def loss(self, maps: AttentionMaps, targets: Targets, step: Step) -> LossOutput:
        if step.index == 1:
            raise ZeroDivisionError
        found = next(iter(maps.probs.values())).flatten(1).sum(1)
        return LossOutput(found, found.detach())


class _ProbeExplodes(Observer):
    def __init__(self, kind: Any) -> None:
        self.kind = kind

    def probes(self, info: BatchInfo) -> Sequence[Probe]:
        def record(site: Site, tensor: Tensor, context: PassContext) -> None:
            if context.step.index == 1:
                raise ZeroDivisionError

        return [Probe("probs", record, kinds=frozenset({self.kind}))]


def _raise() -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("guidances", "observer"),
    [
        ([_Explodes()], Observer()),
        ([MaskGuidance()], _ProbeExplodes("guide")),
        ([MaskGuidance()], _ProbeExplodes("denoise")),
        ([MaskGuidance()], at_step(2, _raise)),
    ],
    ids=["loss", "guide pass", "denoising pass", "observer"],
)
def test_the_model_is_left_as_found_after_an_exception(guidances: list[Guidance], observer: Observer, plain: Tensor) -> None:
    with left_as_found(UNET), pytest.raises(ZeroDivisionError):
        run([tiny.row()], guidances, [_injection()], observer)
    assert torch.equal(final(), plain)


def test_the_model_is_left_as_found_after_a_run() -> None:
    with left_as_found(UNET) as state:
        run([tiny.row()], [MaskGuidance(), AttendAndExcite()], [_injection()])
    assert state["gradients"] == [] and all(state["requires_grad"].values())


def test_a_run_inside_a_run(plain: Tensor) -> None:
    inner: list[Tensor] = []

    def sample() -> None:
        inner.append(final())

    methods = [MaskGuidance(), _injection()]
    alone = final(*methods)
    with left_as_found(UNET):
        outer = run([tiny.row()], [methods[0]], [methods[1]], at_step(2, sample))  # type: ignore[list-item]
    assert torch.equal(inner[0], plain)
    assert torch.equal(latents(outer[0]), alone)


def test_training_mode_and_frozen_weights_are_restored() -> None:
    model = adapt(tiny.pipeline())
    unet = model.networks["unet"]
    unet.train()
    next(unet.parameters()).requires_grad_(False)
    with left_as_found(unet):
        found = Sampler(model, [MaskGuidance()]).run([tiny.row()])[0]
    assert torch.equal(latents(found), final(MaskGuidance()))


def test_gradient_checkpointing_changes_no_gradient() -> None:
    model = adapt(tiny.pipeline())
    unet = model.networks["unet"]
    unet.enable_gradient_checkpointing()  # type: ignore[operator]
    asked = [module for module in unet.modules() if getattr(module, "gradient_checkpointing", False)]
    found = Sampler(model, [MaskGuidance()]).run([tiny.row()])[0]
    assert_close(latents(found), final(MaskGuidance()))
    assert asked and all(module.gradient_checkpointing for module in asked)


# --------------------------------------------------------------------------------------------- what rows may look like

EVERY_KIND = [MaskGuidance(stop=1.0), AttendAndExcite(stop=1.0, max_refinements=3), _injection(scale=1.0)]


def _moved(**settings: Any) -> None:
    """All methods together run, act, and give finite numbers."""
    settings = {"steps": 2, **settings}
    watch = Watch()
    guidances, injections = EVERY_KIND[:2], EVERY_KIND[2:]
    result = run([tiny.row(**settings)], guidances, injections, watch)[0]  # type: ignore[arg-type]
    assert torch.isfinite(latents(result)).all() and not watch.stopped
    assert {event.method for event in watch.events if any(event.moved)} == {"mask_guidance", "attend_and_excite"}
    assert not torch.equal(latents(result), final(**settings))


@pytest.mark.parametrize(("height", "width"), [(24, 40), (40, 24), (32, 64)])
def test_any_size(height: int, width: int) -> None:
    """20x12 latents have maps of 20x12 and 10x6 cells; 12x20 the other way round."""
    _moved(height=height, width=width)
    assert final(height=height, width=width).shape == (4, height // 2, width // 2)


def test_words_of_several_tokens() -> None:
    regions = (Region("striped zebra", box=(0, 0, 0.5, 1)), Region("cat", box=(0.5, 0, 1, 1)))
    _moved(prompt="a striped zebra, a cat", regions=regions)


def test_the_same_noun_twice() -> None:
    prompt = "a red cat and a blue cat"
    regions = (Region("cat", box=(0, 0, 0.5, 1)), Region("cat", box=(0.5, 0, 1, 1), occurrence=1))
    _moved(prompt=prompt, regions=regions)
    swapped = (Region("cat", box=(0, 0, 0.5, 1), occurrence=1), Region("cat", box=(0.5, 0, 1, 1)))
    found = [final(MaskGuidance(), prompt=prompt, regions=places) for places in (regions, swapped)]
    assert not torch.equal(*found)


def test_several_places_for_one_phrase() -> None:
    _moved(regions=(Region("cat", box=(0, 0, 0.3, 1)), Region("cat", box=(0.7, 0, 1, 1))))


@pytest.mark.parametrize("place", ["polygon", "blob", "mask"])
def test_every_kind_of_place(place: str) -> None:
    places: dict[str, Any] = {
        "polygon": ((0.1, 0.1), (0.9, 0.1), (0.5, 0.9)),
        "blob": (0.3, 0.4, 0.2, 0.1),
        "mask": torch.eye(9),
    }
    _moved(regions=(Region("cat", **{place: places[place]}),))


@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_without_classifier_free_guidance(scale: float) -> None:
    _moved(cfg_scale=scale)
    result = run([tiny.row(cfg_scale=scale)])[0]
    assert result.cost.unet_forwards == 4
    assert torch.equal(latents(result), final(cfg_scale=1.0, negative_prompt="blue"))


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name != "dpmpp_sde"])
def test_every_scheduler(name: str) -> None:
    _moved(scheduler=name, **({"steps": 4} if name == "pndm" else {}))


class _LossDtypes(MaskGuidance):
    def __init__(self) -> None:
        super().__init__(losses={"mass": 1.0, "cross_entropy": 1.0, "iou": 1.0, "inside": 1.0, "outside": 1.0}, iterations=2)
        self.seen: set[torch.dtype] = set()

    def loss(self, maps: AttentionMaps, targets: Targets, step: Step) -> LossOutput:
        output = super().loss(maps, targets, step)
        self.seen |= {output.loss.dtype, output.indicator.dtype, *(probs.dtype for probs in maps.probs.values())}
        return output


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    model = adapt(tiny.pipeline().to(dtype))
    guidance, watch = _LossDtypes(), Watch()
    rows = [tiny.row(cfg_scale=5.0), tiny.row("1", seed=4, cfg_scale=3.3)]
    results = Sampler(model, [guidance, AttendAndExcite()], [_injection(scale=0.5)], watch).run(rows)
    assert guidance.seen == {torch.float32}
    assert watch.after[-1].dtype == dtype
    assert all(torch.isfinite(latents(result)).all() for result in results)
    assert any(any(event.moved) for event in watch.events)
    alone = Sampler(model).run(rows[:1])[0]
    # Half precision is near what single precision gives: no step goes astray.
    assert (latents(alone) - final(cfg_scale=5.0)).abs().mean() < 0.05 * latents(alone).abs().mean()


# --------------------------------------------------------------------------------------------------- together, results


def test_several_guidances_and_injections_together() -> None:
    methods = [
        MaskGuidance(stop=1.0),
        AttendAndExcite(stop=1.0, thresholds={}),
        _injection(1, scale=0.5),
        MapInjection(kind="self", stage="scores", levels=(1,), scale=1.0, start=0.0),
    ]
    together = final(*methods)
    for left_out in methods:
        assert not torch.equal(final(*(method for method in methods if method is not left_out)), together)


def test_guidances_act_in_the_order_given() -> None:
    watch = Watch()
    first, second = AttendAndExcite(thresholds={}), MaskGuidance(iterations=2)
    run([tiny.row(steps=2)], [first, second], (), watch)
    assert [(event.step.index, event.method, event.iteration) for event in watch.events] == [
        (0, "attend_and_excite", 0),
        (0, "mask_guidance", 0),
        (0, "mask_guidance", 1),
    ]


def test_results_are_the_rows_in_order() -> None:
    rows = [tiny.row("a", seed=1), tiny.row("b", seed=2, negative_prompt="blue")]
    results = run(rows)
    assert [result.sample for result in results] == rows
    assert [result.status for result in results] == ["ok", "ok"]
    for result in results:
        assert result.latents is not None and result.latents.shape == (4, 16, 16) and result.latents.dtype == torch.float32
        assert result.image is not None and result.image.size == (32, 32)
    assert not np.array_equal(np.asarray(results[0].image), np.asarray(results[1].image))


def test_given_noise_takes_the_place_of_the_seed_s() -> None:
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    given = Sampler(tiny.model()).run([tiny.row(seed=99)], noise)[0]
    assert torch.equal(latents(given), final(seed=3))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "samples must hold at least one row; got none"),
        (
            [tiny.row(), tiny.row("1", steps=5)],
            "of one batch must share height, width, steps, scheduler and prompt_syntax",
        ),
        ([tiny.row(), tiny.row("1", height=64)], "must share height"),
        ([tiny.row(prompt="a cat " * 20, regions=())], r"longer than the text encoder reads .24 tokens.; lost words: 'a cat"),
        ([tiny.row(regions=(Region("cow"),))], "Phrase 'cow' does not occur"),
        ([tiny.row(scheduler="eular")], "Unknown scheduler 'eular'"),
    ],
)
def test_rows_that_cannot_be_sampled(rows: list[Any], message: str) -> None:
    with left_as_found(UNET), pytest.raises(ValueError, match=message):
        run(rows)


@pytest.mark.parametrize("method", [MaskGuidance(), _injection()])
def test_methods_need_a_region(method: Any) -> None:
    with pytest.raises(ValueError, match=f"Method '{method.name}' needs at least one region; the rows have none"):
        final(method, regions=())


@pytest.mark.parametrize("method", [MaskGuidance(), _injection()])
def test_methods_that_need_a_place(method: Any) -> None:
    with pytest.raises(ValueError, match=f"Method '{method.name}' needs a region with a place; the rows name phrases only"):
        final(method, regions=(Region("cat"),))


def test_rows_without_regions_beside_rows_with_some() -> None:
    rows = [tiny.row(), tiny.row("1", seed=4, regions=())]
    watch = Watch()
    guided = run(rows, [MaskGuidance(), AttendAndExcite(thresholds={})], [_injection()], watch)
    assert all(event.moved == (True, False) for event in watch.events)
    assert_close(latents(guided[1]), latents(run(rows)[1]))


def test_given_noise_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"initial_latents must have shape \(1, 4, 16, 16\); got \(4, 16, 16\)"):
        Sampler(tiny.model()).run([tiny.row()], torch.zeros(4, 16, 16))


def test_sites_that_do_not_exist_are_refused_before_the_first_step() -> None:
    watch = Watch()
    with left_as_found(UNET), pytest.raises(ValueError, match="No attention site matches"):
        run([tiny.row()], [MaskGuidance(places=("left",))], (), watch)
    with left_as_found(UNET), pytest.raises(ValueError, match="No attention site matches"):
        run([tiny.row()], (), [MapInjection(places=("left",))], watch)
    assert watch.before == []
