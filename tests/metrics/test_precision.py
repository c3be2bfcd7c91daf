"""Average precision by hand and against its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attnguide.judges.base import Asked, AskedObject, Detection, Seen
from attnguide.metrics.precision import THRESHOLDS, AveragePrecision, average_precision, hits

LEFT, RIGHT = (0.0, 0.0, 0.4, 1.0), (0.6, 0.0, 1.0, 1.0)


def dogs(*boxes: tuple[float, float, float, float]) -> Asked:
    return Asked("dogs", (AskedObject("dog", max(1, len(boxes)), boxes), AskedObject("cat")))


def test_surest_first_each_takes_a_free_box() -> None:
    shifted = (0.1, 0.0, 0.5, 1.0)  # IoU 0.6 with the left box
    right = hits([LEFT, RIGHT], [shifted, LEFT, LEFT], [0.5, 0.9, 0.8], (0.5, 0.7))
    assert right.tolist() == [[False, False], [True, True], [False, False]]
    assert hits([LEFT], [shifted], [0.5], (0.5, 0.7)).tolist() == [[True, False]]
    assert hits([], [LEFT], [0.5], (0.5,)).tolist() == [[False]] and hits([LEFT], [], [], (0.5,)).shape == (0, 1)


def test_area_by_hand() -> None:
    # Right, wrong, right of two asked: precision 1 up to recall 0.5, then 2/3.
    scores, right = np.array([0.9, 0.8, 0.7]), np.array([True, False, True])
    assert average_precision(scores, right, 2) == pytest.approx((51 * 1 + 50 * 2 / 3) / 101)
    assert average_precision(scores, right, 4) == pytest.approx((26 * 1 + 25 * 2 / 3) / 101)  # half is never found
    assert average_precision(np.zeros(0), np.zeros(0, dtype=bool), 2) == 0
    assert math.isnan(average_precision(scores, right, 0))


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=20), st.integers(1, 25))
def test_it_is_the_mean_of_the_best_precision_at_or_beyond_each_recall(found: list[tuple[float, bool]], more: int) -> None:
    found.sort(key=lambda one: -one[0])
    asked = sum(right for _, right in found) + more
    points = []
    for last in range(1, len(found) + 1):
        true = sum(right for _, right in found[:last])
        points.append((true / asked, true / last))
    at = [max((p for r, p in points if r >= recall / 100 - 1e-12), default=0.0) for recall in range(101)]
    scores, right = np.array([s for s, _ in found]), np.array([r for _, r in found], dtype=bool)
    assert average_precision(scores, right, asked) == pytest.approx(sum(at) / 101)


def test_metric_over_pictures_and_processes() -> None:
    asked = [dogs(LEFT, RIGHT), dogs(LEFT), dogs()]
    seen = [
        Seen((Detection("dog", LEFT, 0.9), Detection("cat", RIGHT, 0.95))),
        Seen((Detection("dog", RIGHT, 0.8), Detection("dog", LEFT, 0.3))),
        Seen((Detection("dog", LEFT, 1.0),)),  # a label without a box is left out
    ]
    whole, first, second = AveragePrecision(), AveragePrecision(), AveragePrecision()
    whole.update(seen, asked)
    # Right at 0.9, wrong at 0.8, right at 0.3, of three boxes, at every threshold alike.
    assert float(whole.compute()) == pytest.approx((34 * 1 + 33 * 2 / 3) / 101, abs=1e-6)
    first.update(seen[:1], asked[:1])
    second.update(seen[1:], asked[1:])
    first.merge_state(second)
    torch.testing.assert_close(first.compute(), whole.compute())


def test_nothing_found_and_nothing_asked() -> None:
    metric = AveragePrecision()
    metric.update([Seen(())], [dogs()])
    assert math.isnan(metric.compute())
    metric.reset()
    metric.update([Seen(())], [dogs(LEFT)])
    assert metric.compute() == 0
    assert metric.thresholds == THRESHOLDS == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


def test_wrong_numbers() -> None:
    with pytest.raises(ValueError, match="thresholds"):
        AveragePrecision((0.0,))
    with pytest.raises(ValueError, match="got 1 and 0"):
        AveragePrecision().update([Seen(())], [])
