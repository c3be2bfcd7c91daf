from typing import Any

import pytest
import torch
from torch import Tensor

from attnguide.attention.maps import AttentionMaps
from attnguide.guidance.base import Attempt, Trials
from attnguide.guidance.restarts import lowest_peak, restarted
from attnguide.types import Region
from tests import tiny
from tests.guidance import cases

SITES = cases.cross_sites(("down", 2, 4, 6))
LEFT, RIGHT = Region("cat", box=(0, 0, 0.5, 1)), Region("cat", box=(0.5, 0, 1, 1))


class _Scripted(Trials):
    """Attempt number n of a row is full of n; what it reaches is told in advance."""

    def __init__(self, reached: dict[int, list[float]], can_restart: bool = True) -> None:
        self.reached, self.can_restart = reached, can_restart
        self.targets = cases.targets_of(*[{"prompt": tiny.PROMPT, "regions": (LEFT,)}] * 3)
        self.seen = dict.fromkeys(range(3), -1)
        self.calls: list[list[int]] = []
        self.adopted: list[list[int]] = []

    def maps(self, latents: Tensor, rows: Any) -> AttentionMaps:
        self.rows = list(rows)
        for row in rows:
            self.seen[row] += 1
        return AttentionMaps({})

    def restart(self, like: Tensor, rows: Any) -> Attempt | None:
        self.calls.append(list(rows))
        latents = torch.full_like(like, float(len(self.calls)))
        return Attempt(tuple(rows), latents, None) if self.can_restart else None  # type: ignore[arg-type]

    def adopt(self, attempt: Attempt, rows: Any) -> None:
        self.adopted.append(list(rows))

    def judge(self, maps: Any, targets: Any) -> Tensor:
        return torch.tensor([self.reached[row][self.seen[row]] for row in self.rows])


def _run(trials: _Scripted, rows: list[int], attempts: int = 3) -> list[float]:
    found = restarted(torch.zeros(3, 1, 2, 2), rows, trials, trials.judge, 0.8, attempts)
    return found[:, 0, 0, 0].tolist()


def test_each_row_goes_on_as_its_best_attempt() -> None:
    """Row 0 is held at once, row 1 by its second start, row 2 never: its first start was worst, its second best."""
    trials = _Scripted({0: [0.9], 1: [0.5, 0.8], 2: [0.1, 0.4, 0.3]})
    assert _run(trials, [0, 1, 2]) == [0.0, 1.0, 1.0]
    assert trials.calls == [[1, 2], [2]] and trials.adopted == [[1, 2], []]


def test_rows_that_were_not_asked_for_and_single_attempts_stay() -> None:
    trials = _Scripted({1: [0.9]})
    assert _run(trials, [1]) == [0.0, 0.0, 0.0] and not trials.calls
    assert _run(_Scripted({}), [0, 1, 2], attempts=1) == [0.0] * 3
    assert _run(_Scripted({0: [0.1]}, can_restart=False), [0]) == [0.0] * 3


def _peak(left: float, right: float, *regions: Region) -> float:
    """The cat's map: one cell of either half of the picture has so much, all others nothing."""
    probs = torch.zeros(1, 2, 4, 6, tiny.LENGTH)
    probs[:, :, 1, 1, 3], probs[:, :, 1, 4, 3] = left, right
    targets = cases.targets_of({"prompt": tiny.PROMPT, "regions": regions})
    return lowest_peak(AttentionMaps({SITES[0]: probs.flatten(2, 3)}), targets).item()


@pytest.mark.parametrize(
    ("left", "right", "regions", "expected"),
    [
        (0.4, 0.1, (LEFT,), 1.0),
        (0.1, 0.4, (LEFT,), 0.25),
        (0.4, 0.1, (LEFT, RIGHT), 0.25),  # one word, two places: both must have a peak
        (0.1, 0.4, (Region("cat", box=(0, 0, 0.5, 1), weight=0.0), RIGHT), 1.0),
        (0.1, 0.4, (RIGHT, Region("ball")), 1.0),
    ],
)
def test_peaks_by_hand(left: float, right: float, regions: tuple[Region, ...], expected: float) -> None:
    assert _peak(left, right, *regions) == pytest.approx(expected)
