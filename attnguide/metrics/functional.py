"""How well one picture shows what was asked for: counts of right and asked things, from the judge's verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from attnguide.shapes.expectation import Expectation
from attnguide.shapes.judge import Detection, Verdict
from attnguide.shapes.scene import relation_holds
from attnguide.types import Box


class Tally(NamedTuple):
    """How many of the things that were asked for are right.

    Attributes:
        right: At most ``asked``.
        asked: 0 where the question does not apply to the picture.
    """

    right: float
    asked: float


def box_iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, in [0, 1]."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0.0) * max(height, 0.0)
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - common
    return common / union if union > 0 else 0.0


def presence(verdict: Verdict, expectation: Expectation) -> Tally:
    """Objects that were found with the right shape and colour, of those asked for; a group counts as one object."""
    return Tally(sum(name in verdict.names for name in expectation.names), len(expectation.names))


def all_present(verdict: Verdict, expectation: Expectation) -> Tally:
    """Whether every asked object was found."""
    return Tally(float(set(expectation.names) <= set(verdict.names)), 1)


def attribute_binding(verdict: Verdict, expectation: Expectation) -> Tally:
    """Instances with the right colour, of those whose shape was found.

    Shape by shape: of the asked and the found instances, the smaller number can be compared at all; those are right whose
    colour is asked for as often.
    """
    asked: dict[str, Counter[str]] = {}
    for (color, shape), count in zip(expectation.objects, expectation.counts, strict=True):
        asked.setdefault(shape, Counter())[color] += count
    right = comparable = 0
    for shape, colors in asked.items():
        found = Counter(detection.color for detection in verdict.detections if detection.shape == shape)
        right += (colors & found).total()
        comparable += min(colors.total(), found.total())
    return Tally(right, comparable)


def exact_count(verdict: Verdict, expectation: Expectation) -> Tally:
    """Whether every asked object was found exactly as often as asked; other objects do not matter."""
    found = Counter(verdict.names)
    right = all(found[name] == count for name, count in zip(expectation.names, expectation.counts, strict=True))
    return Tally(float(right), 1)


def count_found(verdict: Verdict, expectation: Expectation) -> int:
    """How many objects of the asked names were found; other objects do not matter."""
    return sum(name in expectation.names for name in verdict.names)


def _matched(boxes: Sequence[Box], detections: Sequence[Detection], fits: Callable[[Box, Detection], bool]) -> int:
    """Most boxes that can be given a fitting detection of their own."""
    if not boxes or not detections:
        return 0
    table = np.array([[fits(box, detection) for detection in detections] for box in boxes])
    rows, columns = linear_sum_assignment(table, maximize=True)
    return int(table[rows, columns].sum())


def _center_inside(box: Box, detection: Detection) -> bool:
    x, y = detection.center
    return box[0] <= x <= box[2] and box[1] <= y <= box[3]


def region_hit(verdict: Verdict, expectation: Expectation, iou_threshold: float | None = None) -> Tally:
    """Boxes that hold an object of the asked name; no object serves two boxes.

    Args:
        verdict: What the picture shows.
        expectation: What was asked for, with boxes.
        iou_threshold: How well the object's bounds must fit the box, in (0, 1]; ``None`` asks only for its centre inside.

    Raises:
        ValueError: If the threshold is out of range.
    """
    if iou_threshold is not None and not 0 < iou_threshold <= 1:
        raise ValueError(f"iou_threshold must lie in (0, 1] or be None; got {iou_threshold}.")

    def fits(box: Box, detection: Detection) -> bool:
        return _center_inside(box, detection) if iou_threshold is None else box_iou(box, detection.box) >= iou_threshold

    right = 0
    for name, boxes in zip(expectation.names, expectation.boxes, strict=False):
        right += _matched(boxes, [detection for detection in verdict.detections if detection.name == name], fits)
    return Tally(right, sum(map(len, expectation.boxes)))


def relation(verdict: Verdict, expectation: Expectation) -> Tally:
    """Whether the first object stands in the asked relation to the second; wrong where either is missing.

    Where a name was found more than once, its surest detection counts.
    """
    if expectation.relation is None:
        return Tally(0, 0)
    ends = []
    for name in expectation.names:
        named = [detection for detection in verdict.detections if detection.name == name]
        if not named:
            return Tally(0, 1)
        ends.append(max(named, key=lambda detection: detection.confidence).center)
    return Tally(float(relation_holds(ends[0], ends[1], expectation.relation)), 1)


def background(verdict: Verdict, expectation: Expectation) -> Tally:
    """Whether the background is the one that was asked for; wrong where there is no plain one."""
    if expectation.background is None:
        return Tally(0, 0)
    return Tally(float(verdict.background == expectation.background), 1)


def explained(verdict: Verdict, expectation: Expectation | None = None) -> Tally:
    """Share of the foreground that lies in recognised objects, whichever they are: low where a picture is ruined."""
    return Tally(verdict.explained, 1)


QUESTIONS: dict[str, Callable[[Verdict, Expectation], Tally]] = {
    "presence": presence,
    "all_present": all_present,
    "binding": attribute_binding,
    "count": exact_count,
    "region_hit": region_hit,
    "region_iou": lambda verdict, expectation: region_hit(verdict, expectation, iou_threshold=0.5),
    "relation": relation,
    "background": background,
    "explained": explained,
}
"""What :func:`score` asks of a picture."""


def score(verdict: Verdict, expectation: Expectation) -> dict[str, float]:
    """All scores of one picture, each in [0, 1], 1 is best; a score that does not apply to it is absent.

    Example:
        >>> from attnguide.shapes.expectation import expectation_from_prompt
        >>> from attnguide.shapes.judge import judge
        >>> from attnguide.shapes.renderer import render
        >>> from attnguide.shapes.scene import Scene, SceneObject
        >>> picture = render(Scene((SceneObject("circle", "red", 0.3, 0.5, 0.15),)))
        >>> scores = score(judge(picture), expectation_from_prompt("a red circle to the left of a blue star"))
        >>> scores["presence"], scores["all_present"], scores["relation"], "region_hit" in scores
        (0.5, 0.0, 0.0, False)
    """
    tallies = {name: question(verdict, expectation) for name, question in QUESTIONS.items()}
    return {name: tally.right / tally.asked for name, tally in tallies.items() if tally.asked}
