from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchmetrics import MetricCollection

from attnguide.metrics import Presence, RegionHit, RelationAccuracy, shapes_metrics
from attnguide.metrics.functional import QUESTIONS
from attnguide.shapes.expectation import Expectation, expectation_from_layout, expectation_from_prompt
from attnguide.shapes.judge import Verdict, judge
from attnguide.shapes.layouts import layout_scene, load_layouts
from attnguide.shapes.renderer import render
from attnguide.shapes.scene import random_scene

EMPTY = Verdict((), "white", np.zeros((16, 16), dtype=bool), 0.0)


@pytest.fixture(scope="module")
def judged() -> tuple[list[Verdict], list[Expectation]]:
    """Rows of every category: half as asked, half with another scene in their place."""
    rows = load_layouts("development")[::4]
    asked = [expectation_from_layout(row) for row in rows]
    pairs = enumerate(zip(rows, asked, strict=True))
    scenes = [layout_scene(row, one.background or "white") if i % 2 else random_scene(i) for i, (row, one) in pairs]
    return [judge(render(scene)) for scene in scenes], asked


def _values(metrics: MetricCollection) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.compute().items()}


def test_metrics_are_tallies_over_all_pictures(judged: tuple[list[Verdict], list[Expectation]]) -> None:
    metrics = shapes_metrics()
    metrics.update(*judged)
    values = _values(metrics)
    assert set(values) == set(QUESTIONS)
    for name, question in QUESTIONS.items():
        tallies = [question(verdict, expectation) for verdict, expectation in zip(*judged, strict=True)]
        assert values[name] == pytest.approx(sum(t.right for t in tallies) / sum(t.asked for t in tallies), abs=1e-6)
        assert 0 < values[name] <= 1


def test_two_batches_are_one(judged: tuple[list[Verdict], list[Expectation]]) -> None:
    whole, parts = shapes_metrics(), shapes_metrics()
    verdicts, expectations = judged
    whole.update(verdicts, expectations)
    parts.update(verdicts[:5], expectations[:5])
    parts.update(verdicts[5:], expectations[5:])
    assert _values(parts) == pytest.approx(_values(whole))


def test_states_of_two_processes_add_up(judged: tuple[list[Verdict], list[Expectation]]) -> None:
    verdicts, expectations = judged
    whole, first, second = Presence(), Presence(), Presence()
    whole.update(verdicts, expectations)
    first.update(verdicts[:3], expectations[:3])
    second.update(verdicts[3:], expectations[3:])
    first.merge_state(second)
    torch.testing.assert_close(first.compute(), whole.compute())


def test_forward_gives_the_batch_and_keeps_the_total() -> None:
    metric = Presence()
    circle = expectation_from_prompt("a red circle")
    assert circle is not None
    shown = judge(render(random_scene(0)))
    own = Expectation((tuple(shown.names[0].split()),))  # type: ignore[arg-type]
    assert metric([shown], [own]) == 1
    assert metric([EMPTY], [circle]) == 0
    assert metric.compute() == 0.5
    metric.reset()
    assert metric.asked == 0


def test_nothing_asked_is_nan() -> None:
    metric = RelationAccuracy()
    metric.update([EMPTY], [Expectation((("red", "circle"),))])
    assert math.isnan(metric.compute())


def test_contract() -> None:
    for metric in shapes_metrics().values():
        assert metric.higher_is_better is True and metric.full_state_update is False
    with pytest.raises(ValueError, match="got 1 and 0"):
        Presence().update([EMPTY], [])
    with pytest.raises(ValueError, match="iou_threshold"):
        RegionHit(iou_threshold=0.0)
