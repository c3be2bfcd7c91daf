"""A row whose numbers break is given up alone, with step and method in its record."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from attnguide.attention.edits import Edit, Stage
from attnguide.attention.maps import AttentionMaps
from attnguide.attention.sites import Site, SiteSelector
from attnguide.guidance.base import Guidance, LossOutput
from attnguide.guidance.mask_guidance import MaskGuidance
from attnguide.guidance.update import Refinement, Update
from attnguide.injection.base import Injection
from attnguide.prompt.targets import Targets
from attnguide.types import MethodConfig, PassContext, Step
from tests import tiny
from tests.closeness import assert_close
from tests.engine.watch import Watch, latents, run

ROWS = [tiny.row(str(index), seed=3 + index) for index in range(3)]
BAD = 1


class _Breaks(Guidance):
    """A plain loss that breaks for the row of one prompt at one step."""

    name = "breaks"

    def __init__(self, what: str | None, at: int = 2, update: Update | None = None) -> None:
        super().__init__(update=update or Update())
        self.what, self.at = what, at

    def loss(self, maps: AttentionMaps, targets: Targets, step: Step) -> LossOutput:
        found = 1 - maps.average(16, 16)[..., 2].flatten(1).mean(1)
        bad = torch.tensor([len(regions) == 1 for regions in targets.regions]) & (step.index == self.at)
        if self.what in ("nan", "inf"):
            found = found + torch.where(bad, float(self.what), 0.0)
        elif self.what == "gradient":  # the root's slope at 0
            found = torch.stack([one + (one - one.detach()).sqrt() if b else one for one, b in zip(found, bad, strict=True)])
        return LossOutput(found, found.detach())


def _rows() -> list[Any]:
    """The second row is the bad one; it has one region instead of two."""
    return [
        tiny.row(str(index), seed=3 + index, regions=(tiny.CAT, tiny.BALL)[: 1 if index == BAD else 2]) for index in range(3)
    ]


@pytest.mark.parametrize(("what", "word"), [("nan", "loss"), ("inf", "loss"), ("gradient", "gradient")])
def test_a_broken_loss_or_gradient(what: str, word: str) -> None:
    watch, healthy = Watch(), Watch()
    results = run(_rows(), [_Breaks(what)], (), watch)
    expected = run(_rows(), [_Breaks(None)], (), healthy)
    reason = f"{word} of breaks is not finite at step 2"
    assert [result.status for result in results] == ["ok", reason, "ok"]
    assert results[BAD].image is None and results[BAD].latents is None
    assert watch.stopped == [(BAD, reason)]
    # Given up in the step it broke: judged there, moved no more, judged no more.
    assert watch.of_row(BAD) == [(0, 0, True), (1, 0, True), (2, 0, False)]
    for row in (0, 2):
        assert watch.of_row(row) == healthy.of_row(row)
        assert_close(latents(results[row]), latents(expected[row]))


def test_the_other_rows_equal_a_run_without_the_broken_one() -> None:
    rows = _rows()
    results = run(rows, [_Breaks("nan", at=1), MaskGuidance(iterations=2, stop=1.0)])
    expected = run([rows[0], rows[2]], [_Breaks(None), MaskGuidance(iterations=2, stop=1.0)])
    for result, other in zip((results[0], results[2]), expected, strict=True):
        assert_close(latents(result), latents(other))


def test_a_row_that_breaks_while_it_is_refined() -> None:
    update = Update(iterations=1, refinements=(Refinement(0.0, 3),))
    watch = Watch()
    results = run(_rows(), [_Breaks("nan", at=0, update=update)], (), watch)
    assert results[BAD].status == "loss of breaks is not finite at step 0"
    assert watch.of_row(BAD) == [(0, 0, False)]
    assert [event.rows for event in watch.events[:4]] == [(0, 1, 2), (0, 2), (0, 2), (0, 2)]


class _BreaksAttention(Injection):
    """From one step on, attention of one row is NaN in the conditional half."""

    name = "broken_injection"

    def __init__(self, row: int = BAD, at: int = 1) -> None:
        self.row, self.at = row, at

    def edits(self, targets: Targets) -> Sequence[Edit]:
        outer = self

        class Breaks(Edit):
            sites = SiteSelector(kind="cross")
            stages: frozenset[Stage] = frozenset({"probs"})

            def probs(self, probs: Tensor, site: Site, context: PassContext) -> Tensor:
                bad = [
                    row == outer.row and branch == "cond" and context.step.index == outer.at
                    for row, branch in zip(context.rows, context.branches, strict=True)
                ]
                return torch.where(torch.tensor(bad).view(-1, 1, 1, 1), float("nan"), probs)

        return [Breaks()]


@pytest.mark.parametrize("scheduler", ["ddim", "dpmpp_2m", "unipc", "heun", "lms", "euler_ancestral"])
def test_broken_latents(scheduler: str) -> None:
    """The other rows do not change by one bit, whatever the scheduler remembers."""
    methods = (MethodConfig("inject5"), MethodConfig("mask_guidance"))
    rows = [tiny.row(str(index), seed=3 + index, methods=methods, scheduler=scheduler) for index in range(3)]
    watch = Watch()
    results = run(rows, (), [_BreaksAttention()], watch)
    healthy = run(rows, (), [_BreaksAttention(row=9)])
    reason = "latents are not finite after step 1 of inject5+mask_guidance"
    assert [result.status for result in results] == ["ok", reason, "ok"]
    assert watch.stopped == [(BAD, reason)]
    assert all(torch.isfinite(after).all() for after in watch.after)
    for row in (0, 2):
        assert torch.equal(latents(results[row]), latents(healthy[row]))


def test_broken_latents_are_guided_no_more() -> None:
    watch = Watch()
    results = run(ROWS, [MaskGuidance(stop=1.0)], [_BreaksAttention()], watch)
    assert [event.rows for event in watch.events] == [(0, 1, 2), (0, 1, 2), (0, 2), (0, 2)]
    assert results[BAD].status == "latents are not finite after step 1" and results[0].status == "ok"


def test_when_no_row_is_left_the_run_ends() -> None:
    watch = Watch()
    results = run([tiny.row()], (), [_BreaksAttention(row=0)], watch)
    assert len(watch.after) == 2
    assert results[0].image is None and results[0].status == "latents are not finite after step 1"
    assert results[0].cost.unet_forwards == 4


def test_when_the_last_row_s_loss_breaks_later_guidances_rest() -> None:
    watch = Watch()
    rows = [tiny.row(regions=(tiny.CAT,))]
    results = run(rows, [_Breaks("nan", at=0), MaskGuidance()], (), watch)
    assert [event.method for event in watch.events] == ["breaks"]
    assert len(watch.after) <= 1 and results[0].status == "loss of breaks is not finite at step 0"


def test_a_move_too_large_for_the_numbers_stops_the_row() -> None:
    results = run(ROWS[:2], [MaskGuidance(step_size=1e38, scale=[1.0, 1e30], stop=1.0)])
    assert all("not finite" in result.status for result in results)
