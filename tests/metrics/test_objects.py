from __future__ import annotations

import math

import pytest
import torch
from torchmetrics import MetricCollection

from attnguide.judges.base import Asked, AskedObject, Seen
from attnguide.judges.shapes import asked_from_caption, asked_from_layout, seen_shapes
from attnguide.metrics import Presence, RegionHit, RelationAccuracy, object_metrics
from attnguide.metrics.functional import DETAILS, QUESTIONS
from attnguide.shapes.layouts import layout_scene, load_layouts
from attnguide.shapes.renderer import render
from attnguide.shapes.scene import random_scene

EMPTY = Seen((), background="white", knows_background=True, explained=0.0)


@pytest.fixture(scope="module")
def judged() -> tuple[list[Seen], list[Asked]]:
    """Rows of every category: half as asked, half with another scene in their place."""
    rows = load_layouts("development")[::4]
    asked = [asked_from_layout(row) for row in rows]
    pairs = enumerate(zip(rows, asked, strict=True))
    scenes = [layout_scene(row, one.background or "white") if i % 2 else random_scene(i) for i, (row, one) in pairs]
    return [seen_shapes(render(scene)) for scene in scenes], asked


def _values(metrics: MetricCollection) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.compute().items()}


def test_metrics_are_tallies_over_all_pictures(judged: tuple[list[Seen], list[Asked]]) -> None:
    metrics = object_metrics()
    metrics.update(*judged)
    values = _values(metrics)
    assert set(values) == {*QUESTIONS, *DETAILS}
    for name, question in {**QUESTIONS, **DETAILS}.items():
        tallies = [question(shown, wanted) for shown, wanted in zip(*judged, strict=True)]
        assert values[name] == pytest.approx(sum(t.right for t in tallies) / sum(t.asked for t in tallies), abs=1e-6)
        assert 0 < values[name] <= 1


def test_two_batches_are_one(judged: tuple[list[Seen], list[Asked]]) -> None:
    whole, parts = object_metrics(), object_metrics()
    seen, asked = judged
    whole.update(seen, asked)
    parts.update(seen[:5], asked[:5])
    parts.update(seen[5:], asked[5:])
    assert _values(parts) == pytest.approx(_values(whole))


def test_states_of_two_processes_add_up(judged: tuple[list[Seen], list[Asked]]) -> None:
    seen, asked = judged
    whole, first, second = Presence(), Presence(), Presence()
    whole.update(seen, asked)
    first.update(seen[:3], asked[:3])
    second.update(seen[3:], asked[3:])
    first.merge_state(second)
    torch.testing.assert_close(first.compute(), whole.compute())


def test_forward_gives_the_batch_and_keeps_the_total() -> None:
    metric = Presence()
    circle = asked_from_caption("a red circle")
    assert circle is not None
    shown = seen_shapes(render(random_scene(0)))
    own = Asked("", (AskedObject(shown.labels[0]),))
    assert metric([shown], [own]) == 1
    assert metric([EMPTY], [circle]) == 0
    assert metric.compute() == 0.5
    metric.reset()
    assert metric.asked == 0


def test_nothing_asked_is_nan() -> None:
    metric = RelationAccuracy()
    metric.update([EMPTY], [Asked("", (AskedObject("red circle"),))])
    assert math.isnan(metric.compute())


def test_contract() -> None:
    for metric in object_metrics().values():
        assert metric.higher_is_better is True and metric.full_state_update is False
    with pytest.raises(ValueError, match="got 1 and 0"):
        Presence().update([EMPTY], [])
    with pytest.raises(ValueError, match="iou_threshold"):
        RegionHit(iou_threshold=0.0)
