from typing import Any

import torch
from torch import Tensor

from attnguide.guidance.noise_search import NoiseJudgement, NoiseSearch


class _Scripted:
    """Trials that tell each row's scores in advance, and draw 10, 11, ... as fresh noise."""

    def __init__(self, scores: dict[int, list[float]]) -> None:
        self.scores, self.calls, self.drawn = scores, list[list[int]](), list[int]()

    def gradient(self, latents: Tensor, rows: Any, judge: Any) -> Tensor:
        self.calls.append(list(rows))
        self.told = [self.scores[row].pop(0) for row in rows]
        judge(None, None)
        return torch.ones_like(latents)

    def noise(self, row: int, like: Tensor) -> Tensor:
        self.drawn.append(row)
        return torch.full_like(like, 9.0 + len(self.drawn))


def _run(scores: dict[int, list[float]], rows: list[int], limit: float = 0.2, **options: Any) -> tuple[Tensor, _Scripted]:
    trials = _Scripted(scores)

    def judge(maps: Any, targets: Any) -> NoiseJudgement:
        return NoiseJudgement(torch.tensor(trials.told), trials.told, [score < limit for score in trials.told])

    settings = {"rounds": 2, "iterations": 1, "last_iterations": 2, "learning_rate": 0.01, "kl_limit": 1e-3, **options}
    return NoiseSearch(**settings).run(torch.zeros(3, 1, 2, 2), rows, trials, judge), trials  # type: ignore[arg-type]


def test_success_ends_a_row_and_the_rest_draw_anew() -> None:
    found, trials = _run({0: [0.1], 2: [0.9, 0.5, 0.4, 0.4]}, [0, 2])
    assert trials.calls == [[0, 2], [2], [2], [2]] and trials.drawn == [2]
    assert torch.equal(found[:2], torch.zeros(2, 1, 2, 2))  # success at once leaves noise as it was; row 1 was not asked for
    assert 9 < found[2].mean() < 10.0


def test_the_best_noise_is_tried_longer_not_the_last() -> None:
    found, _ = _run({1: [0.5, 0.9, 0.4, 0.4]}, [1])
    assert found[1].abs().max() < 1 and found[1].abs().max() > 0


def test_by_score_alone_an_earlier_failure_may_beat_success() -> None:
    """The second noise succeeds at 0.6 where 0.7 is the limit of success for it; the first failed with a score of 0.5."""
    trials = _Scripted({0: [0.5, 0.6, 0.4, 0.4]})
    told = iter([False, True, False, False])

    def judge(maps: Any, targets: Any) -> NoiseJudgement:
        return NoiseJudgement(torch.tensor(trials.told), trials.told, [next(told)])

    search = NoiseSearch(2, 1, 2, 0.01, 1e-3, by_score_alone=True)
    found = search.run(torch.zeros(1, 1, 2, 2), [0], trials, judge)  # type: ignore[arg-type]
    assert len(trials.calls) == 4 and found.abs().max() < 1


def test_no_rows_no_passes() -> None:
    found, trials = _run({}, [])
    assert not trials.calls and torch.equal(found, torch.zeros(3, 1, 2, 2))


def test_without_last_passes_the_best_noise_stays() -> None:
    found, trials = _run({1: [0.5, 0.9]}, [1], last_iterations=0, learning_rate=0.5)
    assert trials.calls == [[1], [1]] and 0 < found[1].abs().max() < 9
