"""When observers are told what."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from attnguide.attention.capture import Probe
from attnguide.attention.maps import AttentionMaps
from attnguide.attention.sites import Site, SiteSelector
from attnguide.engine.observer import BatchInfo, Observer, Observers, UpdateEvent
from attnguide.guidance.base import Guidance, LossOutput
from attnguide.guidance.mask_guidance import MaskGuidance
from attnguide.injection.hand_maps import MapInjection
from attnguide.prompt.targets import Targets
from attnguide.types import PassContext, SampleResult, Step
from tests import tiny
from tests.engine.watch import Watch, run

HOOKS = (
    "probes",
    "on_sample_start",
    "on_denoise_step_start",
    "on_guidance_update",
    "on_denoise_step_end",
    "on_row_stopped",
    "on_sample_end",
    "on_rows_given_up",
)
LAST = SiteSelector(names=("up_blocks.1.attentions.1.*.attn2",))


class _Diary(Observer):
    """Writes down every call and every probe that fires."""

    def __init__(self, name: str, pages: list[str]) -> None:
        self.name, self.pages = name, pages

    def _write(self, text: str) -> None:
        self.pages.append(f"{self.name}: {text}")

    def probes(self, info: BatchInfo) -> Sequence[Probe]:
        self._write("probes")

        def record(site: Site, tensor: Tensor, context: PassContext) -> None:
            self._write(f"read {context.kind} {context.step.index}")

        return [Probe("value", record, LAST, frozenset({"denoise", "guide"}))]

    def on_sample_start(self, info: BatchInfo) -> None:
        self._write(f"start of {len(info.samples)} rows, {len(info.steps)} steps")

    def on_denoise_step_start(self, step: Step, latents: Tensor) -> None:
        self._write(f"step {step.index} start")

    def on_guidance_update(self, event: UpdateEvent) -> None:
        self._write(f"update {event.step.index} {event.method} {event.iteration} rows {event.rows}")

    def on_denoise_step_end(self, step: Step, latents: Tensor, noise_pred: Tensor) -> None:
        self._write(f"step {step.index} end")

    def on_row_stopped(self, row: int, reason: str) -> None:
        self._write(f"row {row} stopped: {reason}")

    def on_sample_end(self, results: Sequence[SampleResult]) -> None:
        self._write(f"end: {[result.status == 'ok' for result in results]}")


class _BreaksRowOne(Guidance):
    """At the second step the loss of the second row is not finite."""

    name = "breaks"

    def loss(self, maps: AttentionMaps, targets: Targets, step: Step) -> LossOutput:
        found = maps.average(16, 16)[..., 2].flatten(1).sum(1)
        if step.index == 1 and len(found) == 2:
            found = found * torch.tensor([1.0, float("nan")])
        return LossOutput(found, found.detach())


def test_the_order_of_calls_whole() -> None:
    pages: list[str] = []
    guidances = [MaskGuidance(stop=0.6, iterations=2), _BreaksRowOne()]
    results = run([tiny.row(steps=3), tiny.row("1", seed=4, steps=3)], guidances, (), _Diary("a", pages))
    reason = "loss of breaks is not finite at step 1"
    assert [page.removeprefix("a: ") for page in pages] == [
        "probes",
        "start of 2 rows, 3 steps",
        "step 0 start",
        "read guide 0",
        "update 0 mask_guidance 0 rows (0, 1)",
        "read guide 0",
        "update 0 mask_guidance 1 rows (0, 1)",
        "read guide 0",
        "update 0 breaks 0 rows (0, 1)",
        "read denoise 0",
        "step 0 end",
        "step 1 start",
        "read guide 1",
        "update 1 mask_guidance 0 rows (0, 1)",
        "read guide 1",
        "update 1 mask_guidance 1 rows (0, 1)",
        "read guide 1",
        f"row 1 stopped: {reason}",
        "update 1 breaks 0 rows (0, 1)",
        "read denoise 1",
        "step 1 end",
        "step 2 start",
        "read guide 2",
        "update 2 breaks 0 rows (0,)",
        "read denoise 2",
        "step 2 end",
        "end: [True, False]",
    ]
    assert results[1].status == reason


def test_several_observers_are_told_in_the_order_given() -> None:
    pages: list[str] = []
    observers = Observers([_Diary("a", pages), _Diary("b", pages)])
    run([tiny.row(steps=3), tiny.row("1", seed=4, steps=3)], [MaskGuidance(), _BreaksRowOne()], (), observers)
    assert pages[::2] == [page.replace("b: ", "a: ") for page in pages[1::2]]
    assert all(page.startswith("a: ") for page in pages[::2]) and all(page.startswith("b: ") for page in pages[1::2])


def test_every_hook_is_passed_on() -> None:
    assert {name for name in vars(Observer) if not name.startswith("_")} == set(HOOKS)
    assert all(name in vars(Observers) for name in HOOKS)


@pytest.mark.parametrize("hook", HOOKS)
def test_the_order_is_documented(hook: str) -> None:
    assert Observer.__doc__ is not None and f"{hook}(" in Observer.__doc__


def test_observers_change_nothing() -> None:
    methods = ([MaskGuidance()], [MapInjection(start=0.0)])
    watched = run([tiny.row()], *methods, Observers([_Diary("a", []), Watch()]))[0]
    alone = run([tiny.row()], *methods)[0]
    assert watched.latents is not None and alone.latents is not None
    assert torch.equal(watched.latents, alone.latents)


class _Batch(Observer):
    def on_sample_start(self, info: BatchInfo) -> None:
        self.info = info


def test_what_is_known_before_the_first_step() -> None:
    observer = _Batch()
    rows = [tiny.row("a"), tiny.row("b", "a dog", regions=())]
    run(rows, (), (), observer)
    info = observer.info
    assert info.samples == tuple(rows) and info.model is tiny.model()
    assert info.targets.regions == (tiny.row().regions, ())
    assert info.sites == tiny.model().attention_sites(32, 32)
    assert [step.index for step in info.steps] == [0, 1, 2, 3]


def test_an_update_says_what_it_found() -> None:
    watch = Watch()
    run([tiny.row(), tiny.row("1", seed=4)], [MaskGuidance(stop=0.25)], (), watch)
    (event,) = watch.events
    assert (event.method, event.iteration, event.rows, event.moved) == ("mask_guidance", 0, (0, 1), (True, True))
    assert all(0 < loss <= indicator <= 1 for loss, indicator in zip(event.losses, event.indicators, strict=True))
    assert all(norm > 0 for norm in event.gradient_norms)


def test_latents_after_a_step_are_those_before_the_next() -> None:
    watch = Watch()
    result = run([tiny.row()], (), (), watch)[0]
    assert len(watch.before) == len(watch.after) == len(watch.noise) == 4
    assert all(torch.equal(before, after) for before, after in zip(watch.before[1:], watch.after[:-1], strict=True))
    assert result.latents is not None and torch.equal(result.latents, watch.after[-1][0])
