"""Rows under different injections in one batch."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from attnguide.attention.edits import Edit
from attnguide.attention.sites import Site, SiteSelector
from attnguide.batching import build_methods, mixes
from attnguide.engine.observer import Observer
from attnguide.injection.base import Injection, LatentsEdit, Source, WindowEdit
from attnguide.injection.by_row import ForRows
from attnguide.methods import METHODS, build_method
from attnguide.prompt.targets import Targets
from attnguide.sampling.sampler import Sampler
from attnguide.sampling.table import sample_batch
from attnguide.schedules import Window
from attnguide.types import Branch, MethodConfig, PassContext, Sample, Step
from tests import tiny
from tests.closeness import assert_close
from tests.injection import common

ARMS: list[tuple[str, Mapping[str, Any]]] = [
    ("inject1", {"start": 0.0}),
    ("inject3", {"start": 0.5, "scale": 10.0}),
    ("inject8", {"start": 0.0, "stop": 0.5, "scale": 20.0}),
    ("inject8", {"start": 0.0, "stop": 0.5, "scale": 5.0}),
    ("map_injection", {"kind": "self", "levels": [1], "start": 0.0, "mass": "renormalize"}),
    ("forward_layout", {"scale": 0.8, "stop": 1.0}),
    ("inject1", {"start": 0.0, "scale": 1.0}),
    ("inject5", {"start": 0.0, "scale": 2.0, "branch": "both", "mass": "preserve"}),
]


def _rows() -> list[Sample]:
    """A plain row, and eight under six injections that differ in stage, sites, window and strength."""
    rows = [*common.four_rows("inject1"), *common.four_rows("inject1"), common.four_rows("inject1")[0]]
    methods = [(), *((MethodConfig(name, options),) for name, options in ARMS)]
    return [replace(row, id=str(i), seed=i, steps=4, methods=methods[i]) for i, row in enumerate(rows)]


def test_rows_of_many_methods_equal_the_rows_alone() -> None:
    rows = _rows()
    together = sample_batch(tiny.model(), rows)
    plain = common.latents_of([replace(row, methods=()) for row in rows])
    size = float(plain.abs().max())
    for row, result, other in zip(rows, together, plain, strict=True):
        (alone,) = sample_batch(tiny.model(), [row])
        assert result.latents is not None and alone.latents is not None
        assert_close(result.latents, alone.latents)
        assert (float((result.latents - other).abs().max()) > 1e-3 * size) == bool(row.methods)
        assert result.cost.unet_forwards == alone.cost.unet_forwards and result.sample is row


def test_several_injections_of_a_row() -> None:
    both = (MethodConfig("inject1", {"start": 0.0}), MethodConfig("map_injection", {"kind": "self", "start": 0.0}))
    plain, one, other = common.four_rows("inject3", [{"start": 0.0}])[:3]
    rows = [replace(plain, methods=()), replace(one, methods=both), other]
    for row, latents in zip(rows, common.latents_of(rows), strict=True):
        assert_close(latents, common.latents_of([row])[0])


def test_half_precision() -> None:
    from attnguide.models.unet import StableDiffusion

    model = StableDiffusion(tiny.pipeline().to(torch.bfloat16), "half")
    assert [result.status for result in sample_batch(model, _rows())] == ["ok"] * len(_rows())


# ------------------------------------------------------------------------------------------------------- what one is shown


class _Seen(Edit):
    """Writes down what it is shown, and sets the conditional elements to their row's number."""

    sites = SiteSelector(kind="cross")
    stages = frozenset({"probs"})

    def __init__(self, targets: Targets) -> None:
        self.targets = targets
        self.contexts: list[PassContext] = []

    def active(self, context: PassContext) -> bool:
        self.contexts.append(context)
        return context.step.index > 0

    def probs(self, probs: Tensor, site: Site, context: PassContext) -> Tensor:
        self.contexts.append(context)
        assert len(probs) == len(context.rows)
        changed = probs.clone()
        for position in context.positions("cond"):
            changed[position] = context.rows[position]
        return changed

    def scores(self, scores: Tensor, site: Site, context: PassContext) -> Tensor:
        return self.probs(scores, site, context)

    def output(self, output: Tensor, site: Site, context: PassContext) -> Tensor:
        return self.probs(output, site, context)

    def qkv(self, query: Tensor, key: Tensor, value: Tensor, site: Site, context: PassContext) -> tuple[Tensor, Tensor, Tensor]:
        return query + 1, key + 2, value + len(context.rows)


class _Sees(Injection):
    def edits(self, targets: Targets) -> Sequence[Edit]:
        return [_Seen(targets)]


def _edit(rows: Sequence[int], targets: Targets | None = None) -> tuple[Edit, _Seen]:
    targets = targets or common.targets_of(common.four_rows("inject1"))
    edit: Any = ForRows(_Sees(), rows).edits(targets)[0]
    return edit, edit.edit


def test_targets_are_those_of_its_rows_alone() -> None:
    targets = common.targets_of(common.four_rows("inject1"))
    seen = _edit([3, 1], targets)[1].targets
    assert seen.rows == (0, 1) and seen.count == 1 and targets.count == 2
    assert seen.regions == (targets.regions[3], targets.regions[1])
    assert torch.equal(seen.masks(4, 6), targets.masks(4, 6)[[3, 1], :1])


@pytest.mark.parametrize("stage", ["probs", "scores", "output"])
def test_only_its_rows_are_changed(stage: str) -> None:
    edit, _ = _edit([3, 1])
    values = torch.full((8, 2, 24, 5), -1.0)
    changed = getattr(edit, stage)(values, common.CROSS, common.context_of(4))
    assert changed[:, 0, 0, 0].tolist() == [-1.0] * 5 + [1.0, -1.0, 0.0]
    assert bool((values == -1).all())


def test_queries_keys_and_values() -> None:
    edit, _ = _edit([2])
    zeros = [torch.zeros(8, 2, 24, 3) for _ in range(3)]
    found = edit.qkv(zeros[0], zeros[1], zeros[2], common.CROSS, common.context_of(4))
    assert [part[:, 0, 0, 0].tolist() for part in found] == [[0, 0, n, 0, 0, 0, n, 0] for n in (1.0, 2.0, 2.0)]


def test_passes_are_shown_without_the_other_rows() -> None:
    edit, seen = _edit([3, 1])
    first, later = (common.context_of(4, step=Step.at_sigma(index, 10, 900.0, 3.0)) for index in (0, 1))
    assert not edit.active(first) and edit.active(later)
    edit.probs(torch.zeros(8, 2, 24, 5), common.CROSS, later)
    one, other, again = seen.contexts
    assert one.rows == other.rows == (1, 0, 1, 0) and one.branches == ("uncond", "uncond", "cond", "cond")
    assert one.step is first.step and other.step is later.step
    assert other is again and other is not one  # by which edits tell passes apart


def test_a_pass_without_its_rows_is_none_of_its_business() -> None:
    edit, seen = _edit([3, 1])
    assert not edit.active(replace(common.context_of(4), rows=(0, 2), branches=("cond", "cond"))) and not seen.contexts


class _Moves(Edit):
    sites, stages = SiteSelector(kind="cross"), frozenset[Any]()


class _MovesLatents(_Moves, LatentsEdit):
    def after_step(self, latents: Tensor, source: Tensor | None, step: Step) -> Tensor:
        return latents + len(latents) + (0 if source is None else source)


class _MovesThem(Injection):
    def edits(self, targets: Targets) -> Sequence[Edit]:
        return [_Moves(), _MovesLatents()]


def test_latents_of_its_rows_alone() -> None:
    edits = ForRows(_MovesThem(), [0, 2]).edits(common.targets_of(common.four_rows("inject1")))
    assert [isinstance(edit, LatentsEdit) for edit in edits] == [False, True]
    moving: Any = edits[1]
    assert moving.after_step(torch.zeros(4, 1, 1, 1), None, common.STEP).flatten().tolist() == [2, 0, 2, 0]
    source = torch.arange(4.0).view(4, 1, 1, 1)
    assert moving.after_step(torch.zeros(4, 1, 1, 1), source, common.STEP).flatten().tolist() == [2, 0, 4, 0]


# ------------------------------------------------------------------------------------------------------------- who can mix


def test_injections_that_only_edit_mix() -> None:
    found = {name for name, info in METHODS.items() if info.family == "injection" and build_method(name, {}).mixes}  # type: ignore[union-attr]
    assert found == {*(f"inject{number}" for number in range(1, 9)), "map_injection", "forward_layout", "taca"}
    assert _Sees().mixes


class _AddsAPass(_Sees):
    def branches(self, step: Step) -> tuple[Branch, ...]:
        return ("perturbed",)


class _ReadsASource(_Sees):
    source = Source("a dog")


class _ChangesNoise(_Sees):
    def initial_noise(self, noise: Tensor, targets: Targets) -> Tensor:
        return noise


@pytest.mark.parametrize("kind", [_AddsAPass, _ReadsASource, _ChangesNoise])
def test_others_do_not(kind: type[Injection]) -> None:
    assert not kind().mixes
    with pytest.raises(ValueError, match=r"must do nothing but make edits .* got 'injection'"):
        ForRows(kind(), [0])


def test_rows_are_named_once() -> None:
    with pytest.raises(ValueError, match=r"rows must differ; got \[1, 1\]"):
        ForRows(_Sees(), [1, 1])


@pytest.mark.parametrize(
    ("name", "expected"), [("inject3", True), ("mask_guidance", False), ("best_of_k", False), ("pag", False)]
)
def test_whose_rows_mix(name: str, expected: bool) -> None:
    assert mixes([tiny.row(methods=(MethodConfig(name),))] * 2) is expected
    both = [tiny.row("0", methods=(MethodConfig(name),)), tiny.row("1")]
    if expected:
        assert [type(injection) for injection in build_methods(both)[1]] == [ForRows]
    else:
        with pytest.raises(ValueError, match="Rows 0, 1 cannot share a batch"):
            build_methods(both)
    assert mixes([tiny.row()])


def test_one_strength_in_the_batch_makes_a_source() -> None:
    def rows(*scales: float) -> list[Sample]:
        options = [{"scale": scale, "source_prompt": "a dog"} for scale in scales]
        return [tiny.row(str(i), methods=(MethodConfig("masactrl", option),)) for i, option in enumerate(options)]

    assert mixes(rows(0.0, 0.0)) and not mixes(rows(0.0, 1.0))


def test_every_injection_is_given_its_rows() -> None:
    configs = [
        (),
        (MethodConfig("inject1", {"scale": 1.0}),),
        (MethodConfig("inject3", {"scale": 3.0}),),
        (MethodConfig("inject1", {"scale": 2.0}),),
    ]
    rows = [tiny.row(str(index), methods=methods) for index, methods in enumerate(configs)]
    guidances, injections = build_methods(rows)
    assert not guidances
    found: list[Any] = list(injections)
    assert {injection.name: injection.rows for injection in found} == {"inject1": (1, 3), "inject3": (2,)}
    assert [injection.injection.scale for injection in found] == [[1.0, 2.0], 3.0]
    assert all(injection.window == Window(0.8, 1.0, "timestep") for injection in found)


# ------------------------------------------------------------------------------------------------------------- in the loop


class _Breaks(WindowEdit):
    def probs(self, probs: Tensor, site: Site, context: PassContext) -> Tensor:
        return probs + self.gate(probs, context) * float("nan")


class _BreaksAttention(Injection):
    def edits(self, targets: Targets) -> Sequence[Edit]:
        return [_Breaks(SiteSelector(kind="cross"), ("probs",), Window(0.5, 1.0), 1.0, len(targets.regions))]


def test_a_broken_row_stops_alone_under_the_name_of_its_method() -> None:
    rows = [tiny.row("0"), tiny.row("1", seed=4, methods=(MethodConfig("inject3"),)), tiny.row("2", seed=5)]
    results = Sampler(tiny.model(), (), [ForRows(_BreaksAttention(), [1])]).run(rows)
    healthy = common.latents_of([rows[0], rows[2]])
    assert [result.status for result in results] == ["ok", "latents are not finite after step 2 of inject3", "ok"]
    for result, expected in zip((results[0], results[2]), healthy, strict=True):
        assert result.latents is not None
        assert_close(result.latents, expected)


class _Asked(Observer):
    """How often attention is spelt out, step by step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from attnguide.attention import attend

        self.steps: list[set[str]] = []
        spelt_out = attend._square_probs

        def watched(views: Any, *args: Any) -> Tensor:
            self.steps[-1].update(view.visitors.site.kind for view in views)
            return spelt_out(views, *args)

        monkeypatch.setattr(attend, "_square_probs", watched)

    def on_denoise_step_start(self, step: Step, latents: Tensor) -> None:
        self.steps.append(set())


def test_sites_that_nobody_edits_keep_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = _Asked(monkeypatch)
    first = {"start": 0.7, "stop": 1.0, "unit": "timestep"}
    last = {"kind": "self", "start": 0.0, "stop": 0.2, "unit": "timestep", "levels": [1]}
    rows = [tiny.row("0"), tiny.row("1", methods=(MethodConfig("inject1", first),))]
    sample_batch(tiny.model(), [*rows, tiny.row("2", methods=(MethodConfig("map_injection", last),))], watch)
    assert watch.steps == [{"cross"}, set(), set(), {"self"}]
