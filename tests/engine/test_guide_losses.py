"""A guidance may want one loss in refinements, and another in the plain update that follows one."""

import torch

from attnguide.attention.maps import AttentionMaps
from attnguide.guidance.base import Guidance, LossOutput
from attnguide.guidance.update import Refinement, Update, refinements_at
from attnguide.prompt.targets import Targets
from attnguide.sampling.sampler import Sampler
from attnguide.schedules import constant
from attnguide.types import Step
from tests import tiny
from tests.guidance.cases import Watch


class _ThreeLosses(Guidance):
    """The same map's mean under three factors that tell which loss was taken; each row asks as its table says."""

    def __init__(self, asks: list[float], refined: bool = True) -> None:
        refinement = Refinement(0.5, 2, (0.0,))
        super().__init__(update=Update(constant(1.0), refinements=(refinement,)))
        self.asks, self.refined = asks, refined

    def loss(self, maps: AttentionMaps, targets: Targets, step: Step) -> LossOutput:
        mean = torch.stack([probs.square().mean((1, 2, 3)) for probs in maps.probs.values()]).mean(0)
        one = mean / mean.detach()
        indicator = torch.tensor([self.asks[row] for row in targets.rows])
        return LossOutput(one, indicator, refining=2 * one, refined=3 * one if self.refined else None)


def _losses(guidance: Guidance) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    watch = Watch()
    rows = [tiny.row(str(number), seed=number, steps=2) for number in range(2)]
    Sampler(tiny.model(), [guidance], observer=watch).run(rows)
    return [(event.rows, tuple(round(loss) for loss in event.losses)) for event in watch.events]


def test_each_row_descends_on_its_own_loss() -> None:
    assert _losses(_ThreeLosses([1.0, 0.0])) == [
        ((0, 1), (2, 2)),  # the refinement judges both rows, and moves the first
        ((0,), (2,)),
        ((0, 1), (3, 1)),  # the plain update of the same step
        ((0, 1), (1, 1)),  # the next step has no refinement
    ]


def test_without_a_loss_of_its_own_a_refined_row_takes_the_plain_one() -> None:
    assert _losses(_ThreeLosses([1.0, 0.0], refined=False))[2] == ((0, 1), (1, 1))


def test_tables_of_thresholds() -> None:
    made = refinements_at({"0.2": 0.5, 0: 0.1}, lambda value: -value, lambda point: 7 if point else 3)  # type: ignore[dict-item]
    assert made == (Refinement(-0.1, 3, (0.0,)), Refinement(-0.5, 7, (0.2,)))
