"""A method that did nothing to a row says so in the row's status."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from attnguide.attention import attend
from attnguide.attention.edits import Edit, Stage
from attnguide.attention.maps import AttentionMaps
from attnguide.attention.sites import Site, SiteSelector
from attnguide.engine.effects import _Watched
from attnguide.guidance.base import Guidance, LossOutput
from attnguide.guidance.mask_guidance import MaskGuidance
from attnguide.injection.base import Injection
from attnguide.injection.by_row import _EditForRows
from attnguide.prompt.targets import Targets
from attnguide.sampling.table import sample_batch
from attnguide.schedules import Window
from attnguide.types import MethodConfig, PassContext, Region, SampleResult, Step, verdict
from tests import tiny
from tests.engine.watch import run

WHOLE = (Region("red cat", box=(0.0, 0.0, 1.0, 1.0)),)
ZERO = "did nothing (its loss is 0 at every step)"


class _Given(Guidance):
    """A loss by row: the prompt's last word says which."""

    name = "given"

    def loss(self, maps: AttentionMaps, targets: Targets, step: Step) -> LossOutput:
        share = maps.average(16, 16)[..., 2].flatten(1).mean(1)
        kinds = [prompt.text.split()[-1] for prompt in targets.tokenized]
        value = {"ball": lambda x: 1 - x, "cat": lambda x: x * 0, "dog": lambda x: x * 0 + 1}
        loss = torch.stack([value[kind](one) for kind, one in zip(kinds, share, strict=True)])
        return LossOutput(loss, loss.detach())


def _statuses(results: Sequence[SampleResult]) -> list[str]:
    return [result.status for result in results]


def test_a_loss_or_a_gradient_of_zero_is_told_of_its_row_alone() -> None:
    rows = [tiny.row(str(index), f"a red {word}", regions=()) for index, word in enumerate(("ball", "cat", "dog"))]
    guidance = _Given()
    guidance.needs_regions = None
    results = run(rows, [guidance])
    gradient = "ok: given did nothing (its gradient is 0 at every step)"
    assert _statuses(results) == ["ok", f"ok: given {ZERO}", gradient]
    assert all(verdict(result.status) == "ok" and result.image is not None for result in results)


@pytest.mark.parametrize("name", ["mask_guidance", "layout_guidance", "r_and_b"])
def test_a_box_that_is_the_whole_picture(name: str) -> None:
    (result,) = sample_batch(tiny.model(), [tiny.row(regions=WHOLE, methods=(MethodConfig(name),))])
    assert result.status == f"ok: {name} {ZERO}"


def test_an_injection_that_changes_nothing() -> None:
    method = MethodConfig("dense_diffusion", {"splice": False, "stop": 1.0})
    whole, half = (tiny.row(id, regions=regions, methods=(method,)) for id, regions in (("0", WHOLE), ("1", (tiny.CAT,))))
    results = sample_batch(tiny.model(), [whole, half])
    assert _statuses(results) == ["ok: dense_diffusion did nothing (it changed no attention)", "ok"]


@pytest.mark.parametrize(
    "settings",
    [
        {"methods": (MethodConfig("mask_guidance", {"scale": 0.0}),)},
        {"methods": (MethodConfig("inject5", {"scale": 0.0, "start": 0.0}),)},
        {"methods": (MethodConfig("stable", {"scale": 0.0}),)},
        {"methods": (MethodConfig("mask_guidance", {"step_size": 0.0}),)},
        {"methods": (MethodConfig("mask_guidance", {"stop": 0.0}),)},
        {"methods": (MethodConfig("mask_guidance"),), "regions": (Region("red cat", box=(0, 0, 0.5, 1), weight=0.0),)},
        {"methods": (MethodConfig("mask_guidance", {"until": 0.99}),)},
    ],
)
def test_what_was_asked_for_or_is_reached_needs_no_remark(settings: dict[str, Any]) -> None:
    (result,) = sample_batch(tiny.model(), [tiny.row(**settings)])
    assert result.status == "ok"


def test_methods_that_act_need_no_remark() -> None:
    options = {"inject5": {"start": 0.0}, "dense_diffusion": {"splice": False}, "stable": {"inject_until": 0.0}}
    names = ("mask_guidance", "stable", "inject5", "pag", "attend_and_excite", "dense_diffusion")
    methods = tuple(MethodConfig(name, options.get(name, {})) for name in names)
    (result,) = sample_batch(tiny.model(), [tiny.row(methods=methods, steps=2)])
    assert result.status == "ok"


def test_a_guidance_of_edits_alone_whose_noise_levels_two_steps_never_reach() -> None:
    (steered,) = sample_batch(tiny.model(), [tiny.row(methods=(MethodConfig("stable", {"attempts": 1}),), steps=2)])
    (plain,) = sample_batch(tiny.model(), [tiny.row(steps=2)])
    assert steered.latents is not None and plain.latents is not None
    assert torch.allclose(steered.latents, plain.latents, atol=1e-4)
    assert steered.status == "ok: stable did nothing (it changed no attention)"


@pytest.mark.filterwarnings("ignore:Method")
def test_a_window_without_a_step() -> None:
    method = MethodConfig("inject5", {"start": 0.9, "stop": 0.91, "unit": "timestep"})
    (result,) = sample_batch(tiny.model(), [tiny.row(methods=(method,))])
    assert result.status == "ok: inject5 did nothing (no step is in its window)"


class _Looks(Injection):
    """An edit that counts how often it is asked, and changes all rows at once or none."""

    name = "looks"

    def __init__(self, change: float) -> None:
        self.change, self.window = change, Window()

    def edits(self, targets: Targets) -> Sequence[Edit]:
        outer = self

        class Adds(Edit):
            sites = SiteSelector(kind="cross")
            stages: frozenset[Stage] = frozenset({"scores"})

            def scores(self, scores: Tensor, site: Site, context: PassContext) -> Tensor:
                return scores + outer.change

        return [Adds()]


def test_rows_are_compared_until_a_change_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []
    equal = torch.equal
    monkeypatch.setattr("attnguide.engine.effects.torch.equal", lambda *both: compared.append(1) or equal(*both))
    rows = [tiny.row(str(index), methods=(MethodConfig("looks"),)) for index in range(2)]
    assert _statuses(run(rows, (), [_Looks(1.0)])) == ["ok", "ok"] and len(compared) == 2
    compared.clear()
    assert _statuses(run(rows, (), [_Looks(0.0)])) == ["ok: looks did nothing (it changed no attention)"] * 2
    assert len(compared) > 2


@pytest.mark.parametrize("wrapper", [_Watched, _EditForRows])
def test_what_wraps_an_edit_hands_on_every_question(wrapper: type[Edit]) -> None:
    asked = {name for name, found in vars(Edit).items() if callable(found) and not name.startswith("_")}
    assert asked <= vars(wrapper).keys()


@pytest.mark.parametrize("name", ["stable", "forward_layout", "inject5"])
def test_a_watched_edit_leaves_the_other_half_to_the_fused_kernel(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    formed: list[int] = []
    explicit = attend._square_probs

    def watched(views: Any, call: Any, rows: range) -> Tensor:
        formed.append(len(call.query))
        return explicit(views, call, rows)

    monkeypatch.setattr(attend, "_square_probs", watched)
    methods = (MethodConfig(name, {"attempts": 1, "inject_until": 0.1} if name == "stable" else {"start": 0.0}),)
    sample_batch(tiny.model(), [tiny.row(str(index), methods=methods, steps=2) for index in range(3)])
    assert set(formed) == {3}


def test_two_methods_are_told_apart() -> None:
    (result,) = run([tiny.row(regions=WHOLE, methods=(MethodConfig("looks"),))], [MaskGuidance()], [_Looks(0.0)])
    assert result.status == f"ok: mask_guidance {ZERO}; looks did nothing (it changed no attention)"
