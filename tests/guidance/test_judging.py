"""What a loss returns is checked, and named where it is wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attnguide.attention.maps import AttentionMaps
from attnguide.guidance.base import Guidance, LossOutput
from attnguide.guidance.update import Refinement, Update
from attnguide.prompt.targets import Targets
from attnguide.types import Step
from tests import tiny
from tests.engine.watch import Watch, latents, run


class _Returns(Guidance):
    """Gives out what a test makes of a sound loss."""

    name = "custom"

    def __init__(self, make: Any, update: Update | None = None) -> None:
        super().__init__(update=update or Update())
        self.make = make

    def loss(self, maps: AttentionMaps, targets: Targets, step: Step) -> LossOutput:
        found: LossOutput = self.make(1 - maps.average(16, 16)[..., 2].flatten(1).mean(1), targets)
        return found


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda x, t: LossOutput(x.mean(), x.detach()),
            ValueError,
            r"its loss must have one value per row, the shape \(2,\); got \(\)",
        ),
        (lambda x, t: LossOutput(x[:, None], x), ValueError, r"its loss must have .* got \(2, 1\)"),
        (lambda x, t: LossOutput(x, x.detach().mean()), ValueError, r"its indicator must have .* got \(\)"),
        (lambda x, t: LossOutput(x, x, refining=x[:1]), ValueError, r"its refining must have .* got \(1,\)"),
        (lambda x, t: LossOutput(x, 0.5), TypeError, "its indicator must be a tensor of one number per row; got float"),
        (lambda x, t: x, TypeError, r"loss\(\) must return a LossOutput; got Tensor"),
        (lambda x, t: LossOutput(x.detach(), x.detach()), ValueError, "its loss has no gradient"),
        (lambda x, t: LossOutput(x.detach().requires_grad_() * 1, x), ValueError, "its loss has no gradient"),
    ],
)
def test_a_loss_of_another_form_is_named(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"Method 'custom': {message}"):
        run([tiny.row(), tiny.row("1")], [_Returns(make)])


@pytest.mark.parametrize("update", [Update(), Update(iterations=0, refinements=(Refinement(0.1, 2),))])
def test_an_indicator_that_is_no_number_stops_its_row(update: Update) -> None:
    def make(loss: Any, targets: Targets) -> LossOutput:
        bad = torch.tensor([len(regions) == 1 for regions in targets.regions])
        return LossOutput(loss, torch.where(bad, torch.nan, loss.detach()))

    rows = [tiny.row("0"), tiny.row("1", regions=(tiny.CAT,))]
    watch = Watch()
    results = run(rows, [_Returns(make, update)], (), watch)
    assert [result.status for result in results] == ["ok", "indicator of custom is NaN at step 0"]
    assert watch.stopped == [(1, results[1].status)] and watch.of_row(1) == [(0, 0, False)]
    torch.testing.assert_close(latents(results[0]), latents(run(rows[:1], [_Returns(make, update)])[0]), rtol=0, atol=1e-4)


def test_an_indicator_may_be_infinite() -> None:
    (result,) = run([tiny.row()], [_Returns(lambda x, t: LossOutput(x, x.detach() + torch.inf))])
    assert result.status == "ok"
