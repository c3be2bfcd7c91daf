from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from attnguide.judges.base import Asked, AskedObject, Detection, Seen
from attnguide.judges.boxes import box_iou
from attnguide.judges.shapes import asked_from_layout, asked_shapes, seen_shapes
from attnguide.metrics.functional import (
    DETAILS,
    QUESTIONS,
    all_present,
    attribute_binding,
    background,
    exact_count,
    explained,
    inside_share,
    presence,
    region_hit,
    region_overlap,
    relation,
    score,
)
from attnguide.shapes.expectation import Expectation
from attnguide.shapes.layouts import layout_scene, load_layouts
from attnguide.shapes.renderer import render
from attnguide.types import Box


def found(*items: tuple[str, float, float], explained: float = 1.0, side: float = 0.2) -> Seen:
    """Detections ``(name, x, y)`` with boxes of one side."""
    detections = []
    for name, x, y in items:
        color, shape = name.split()
        box = (x - side / 2, y - side / 2, x + side / 2, y + side / 2)
        detections.append(Detection(name, box, 0.9, noun=shape, attribute=color))
    return Seen(tuple(detections), background="white", knows_background=True, explained=explained)


def wanted(*objects: tuple[str, str], **settings: Any) -> Asked:
    """What the shapes world asks for."""
    return asked_shapes(Expectation(objects, **settings))


RED, BLUE = ("red", "circle"), ("blue", "square")
BOTH = wanted(RED, BLUE)


def test_presence_counts_names() -> None:
    assert presence(found(("red circle", 0.5, 0.5), ("green star", 0.2, 0.2)), BOTH) == (1, 2)
    assert presence(found(("red circle", 0.5, 0.5), ("red circle", 0.2, 0.2)), BOTH) == (1, 2)
    assert presence(found(), BOTH) == (0, 2)


def test_all_present_needs_every_name() -> None:
    assert all_present(found(("red circle", 0.5, 0.5)), BOTH) == (0, 1)
    assert all_present(found(("blue square", 0.5, 0.5), ("red circle", 0.2, 0.2), ("red star", 0.8, 0.8)), BOTH) == (1, 1)


@pytest.mark.parametrize(
    ("seen", "asked", "tally"),
    [
        (found(("blue circle", 0.5, 0.5), ("red square", 0.2, 0.2)), BOTH, (0, 2)),
        (found(("red circle", 0.5, 0.5)), BOTH, (1, 1)),
        (found(("red star", 0.5, 0.5)), BOTH, (0, 0)),
        (found(("red circle", 0.5, 0.5), ("green circle", 0.2, 0.2)), BOTH, (1, 1)),
        (found(("red circle", 0.5, 0.5)), wanted(RED, ("blue", "circle")), (1, 1)),
        (found(("red circle", 0.5, 0.5), ("red circle", 0.2, 0.2)), wanted(RED, ("blue", "circle")), (1, 2)),
        (
            found(("green star", 0.1, 0.1), ("green star", 0.5, 0.1), ("red star", 0.9, 0.1)),
            wanted(("green", "star"), counts=(3,)),
            (2, 3),
        ),
    ],
)
def test_binding_compares_colours_within_a_shape(seen: Seen, asked: Asked, tally: tuple[int, int]) -> None:
    assert attribute_binding(seen, asked) == tally


def test_counts_are_exact_for_the_asked_names() -> None:
    three = wanted(RED, counts=(3,))
    circles = [("red circle", x, 0.5) for x in (0.1, 0.4, 0.7, 0.9)]
    assert exact_count(found(*circles[:3]), three) == (1, 1)
    assert exact_count(found(*circles[:3], ("blue star", 0.1, 0.1)), three) == (1, 1)
    assert exact_count(found(*circles), three) == (0, 1)
    assert exact_count(found(*circles[:2]), three) == (0, 1)


def test_region_hit_asks_for_centres_of_the_right_name() -> None:
    left, right = (0.0, 0.3, 0.4, 0.7), (0.6, 0.3, 1.0, 0.7)
    asked = wanted(RED, BLUE, boxes=((left,), (right,)))
    assert region_hit(found(("red circle", 0.2, 0.5), ("blue square", 0.8, 0.5)), asked) == (2, 2)
    assert region_hit(found(("blue square", 0.2, 0.5), ("red circle", 0.8, 0.5)), asked) == (0, 2)
    assert region_hit(found(("red circle", 0.5, 0.5)), asked) == (0, 2)
    assert region_hit(found(("red circle", 0.2, 0.5)), BOTH) == (0, 0)


def test_one_object_does_not_serve_two_boxes() -> None:
    asked = wanted(RED, counts=(2,), boxes=(((0.0, 0.0, 0.6, 0.6), (0.4, 0.4, 1.0, 1.0)),))
    assert region_hit(found(("red circle", 0.5, 0.5)), asked) == (1, 2)
    # The circle in both boxes must be given to the second, or the other finds no place.
    assert region_hit(found(("red circle", 0.5, 0.5), ("red circle", 0.2, 0.2)), asked) == (2, 2)


def test_region_iou_asks_for_the_bounds() -> None:
    asked = wanted(RED, boxes=(((0.0, 0.0, 0.4, 0.4),),))
    seen = found(("red circle", 0.2, 0.2), side=0.2)
    assert region_hit(seen, asked) == (1, 1)
    assert region_hit(seen, asked, iou_threshold=0.5) == (0, 1)
    assert region_hit(seen, asked, iou_threshold=0.25 - 1e-9) == (1, 1)
    with pytest.raises(ValueError, match=r"got 1\.5"):
        region_hit(seen, asked, iou_threshold=1.5)


@pytest.mark.parametrize(
    ("a", "b", "iou"),
    [
        ((0.0, 0.0, 0.5, 0.5), (0.0, 0.0, 0.5, 0.5), 1.0),
        ((0.0, 0.0, 0.5, 0.5), (0.25, 0.0, 0.75, 0.5), 1 / 3),
        ((0.0, 0.0, 0.5, 0.5), (0.5, 0.5, 1.0, 1.0), 0.0),
        ((0.1, 0.1, 0.1, 0.1), (0.1, 0.1, 0.1, 0.1), 0.0),
    ],
)
def test_box_iou(a: Box, b: Box, iou: float) -> None:
    assert box_iou(a, b) == pytest.approx(iou) == box_iou(b, a)


def test_relation_needs_both_objects_in_order() -> None:
    asked = wanted(RED, BLUE, relation="left of")
    assert relation(found(("red circle", 0.2, 0.5), ("blue square", 0.8, 0.5)), asked) == (1, 1)
    assert relation(found(("red circle", 0.8, 0.5), ("blue square", 0.2, 0.5)), asked) == (0, 1)
    assert relation(found(("red circle", 0.2, 0.5)), asked) == (0, 1)
    assert relation(found(("red circle", 0.2, 0.5)), BOTH) == (0, 0)


def test_background() -> None:
    """``found`` is on white."""
    asked = replace(BOTH, background="white")
    assert background(found(), asked) == (1, 1)
    assert background(found(), replace(BOTH, background="black")) == (0, 1)
    assert background(replace(found(), background=None), asked) == (0, 1)
    assert background(found(), BOTH) == (0, 0)


def test_explained_is_the_judges() -> None:
    assert explained(found(explained=0.25)) == (0.25, 1)


def test_overlap_and_inside_by_hand() -> None:
    asked = wanted(RED, BLUE, boxes=(((0.0, 0.0, 0.4, 0.4),), ()))
    near = found(("red circle", 0.35, 0.2), ("blue square", 0.9, 0.9))  # three quarters of its width inside
    assert region_overlap(near, asked) == (pytest.approx(0.03 / 0.17), 1)
    assert inside_share(near, asked) == (pytest.approx(0.75), 1)
    assert region_overlap(found(), asked) == (0, 1) and inside_share(found(), asked) == (0, 0)


def test_only_labels_with_attributes_can_be_bound() -> None:
    assert attribute_binding(found(("red circle", 0.5, 0.5)), Asked("", (AskedObject("red circle"),))) == (0, 0)


def test_a_judge_that_knows_no_backgrounds_is_not_asked_for_them() -> None:
    assert background(Seen(()), replace(BOTH, background="white")) == (0, 0)
    assert explained(Seen(())) == (0, 0)


def test_relations_are_counted_one_by_one() -> None:
    asked = replace(BOTH, relations=((0, "left of", 1), (0, "above", 1)))
    assert relation(found(("red circle", 0.2, 0.5), ("blue square", 0.8, 0.2)), asked) == (1, 2)


def test_score_leaves_out_what_does_not_apply() -> None:
    scores = score(found(("green star", 0.5, 0.5), explained=0.5), BOTH)
    assert scores == {"presence": 0.0, "all_present": 0.0, "count": 0.0, "explained": 0.5}


def test_a_fulfilled_layout_scores_one_everywhere() -> None:
    seen = set()
    for row in load_layouts("development"):
        asked = asked_from_layout(row)
        scores = score(seen_shapes(render(layout_scene(row, asked.background or "white"))), asked)
        explained = scores.pop("explained")
        assert explained > 0.98 and set(scores.values()) == {1.0}, row
        seen |= {*scores, "explained"}
    assert seen == set(QUESTIONS)


def test_details_are_asked_for_by_name() -> None:
    asked = wanted(RED, boxes=(((0.1, 0.1, 0.3, 0.3),),))
    scores = score(found(("red circle", 0.2, 0.2)), asked, tuple(DETAILS))
    assert scores == {"iou": pytest.approx(1.0), "object_inside": pytest.approx(1.0)}
