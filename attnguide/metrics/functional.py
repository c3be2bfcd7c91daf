"""Scores of one picture: right things among asked things, from any judge's detections."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from attnguide.judges.base import Asked, Detection, Seen
from attnguide.judges.boxes import box_area, box_iou, common_area
from attnguide.shapes.scene import relation_holds
from attnguide.types import Box


class Tally(NamedTuple):
    """Number of right things among those asked for.

    Attributes:
        right: Right things; at most ``asked``.
        asked: Things asked for; 0 if the question does not apply to the picture.
    """

    right: float
    asked: float


def presence(seen: Seen, asked: Asked) -> Tally:
    """Asked labels that were detected at least once, of all asked labels; counts do not matter."""
    return Tally(sum(label in seen.labels for label in asked.labels), len(asked.labels))


def all_present(seen: Seen, asked: Asked) -> Tally:
    """Whether every asked object was found."""
    return Tally(float(set(asked.labels) <= set(seen.labels)), 1)


def attribute_binding(seen: Seen, asked: Asked) -> Tally:
    """Instances with the right attribute, of those whose noun was found; objects without noun and attribute do not count.

    For each noun, the smaller of the numbers of asked and found instances is comparable; right is the overlap of the multisets
    of asked and found attributes.
    """
    wanted: dict[str, Counter[str]] = {}
    for one in asked.objects:
        if one.noun and one.attribute:
            wanted.setdefault(one.noun, Counter())[one.attribute] += one.count
    right = comparable = 0
    for noun, attributes in wanted.items():
        found = Counter(d.attribute for d in seen.detections or () if d.noun == noun)
        right += (attributes & found).total()
        comparable += min(attributes.total(), found.total())
    return Tally(right, comparable)


def exact_count(seen: Seen, asked: Asked) -> Tally:
    """Whether every asked object was found exactly as often as asked; other objects do not matter."""
    found = Counter(seen.labels)
    return Tally(float(all(found[one.label] == one.count for one in asked.objects)), 1)


def count_found(seen: Seen, asked: Asked) -> int:
    """Number of detections with an asked label; other objects do not matter."""
    return sum(label in asked.labels for label in seen.labels)


def matched_pairs(worth: np.ndarray) -> list[tuple[int, int]]:
    """One-to-one pairs of boxes and detections with the largest total worth (linear assignment).

    Args:
        worth: Worth of each pair, ``boxes detections``, at least 0.
    """
    if not worth.size:
        return []
    rows, columns = linear_sum_assignment(worth, maximize=True)
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


def _of_label(seen: Seen, label: str) -> list[Detection]:
    return [detection for detection in seen.detections or () if detection.label == label]


def _center_inside(box: Box, detection: Detection) -> bool:
    x, y = detection.center
    return box[0] <= x <= box[2] and box[1] <= y <= box[3]


def region_hit(seen: Seen, asked: Asked, iou_threshold: float | None = None) -> Tally:
    """Boxes matched by a detection of their label, of all asked boxes; a detection matches at most one box.

    Args:
        seen: What the picture shows.
        asked: What was asked for, with boxes.
        iou_threshold: How well the object's bounds must fit the box, in (0, 1]; ``None`` asks only for its centre inside.

    Raises:
        ValueError: If the threshold is out of range.
    """
    check_iou_threshold(iou_threshold)

    def fits(box: Box, detection: Detection) -> bool:
        return _center_inside(box, detection) if iou_threshold is None else box_iou(box, detection.box) >= iou_threshold

    right = 0.0
    for one in asked.objects:
        worth = np.array([[float(fits(box, found)) for found in _of_label(seen, one.label)] for box in one.boxes])
        right += sum(worth[pair] for pair in matched_pairs(worth))
    return Tally(int(right), _boxes(asked))


def check_iou_threshold(iou_threshold: float | None) -> None:
    """Check an IoU threshold: a number in (0, 1], or ``None``.

    Raises:
        ValueError: If it is out of range.
    """
    if iou_threshold is not None and not 0 < iou_threshold <= 1:
        raise ValueError(f"iou_threshold must lie in (0, 1] or be None; got {iou_threshold}.")


def _boxes(asked: Asked) -> int:
    return sum(len(one.boxes) for one in asked.objects)


def region_overlap(seen: Seen, asked: Asked) -> Tally:
    """Sum over boxes of the IoU with the detection of their label that is assigned to them, of the number of boxes."""
    total = 0.0
    for one in asked.objects:
        worth = np.array([[box_iou(box, found.box) for found in _of_label(seen, one.label)] for box in one.boxes])
        total += sum(worth[pair] for pair in matched_pairs(worth))
    return Tally(float(total), _boxes(asked))


def inside_share(seen: Seen, asked: Asked) -> Tally:
    """Sum over detections of the largest share of their box inside one asked box of their label, of the number of detections.

    Detections of labels without boxes do not count; without detections the score does not apply.
    """
    shares = [
        max(common_area(found.box, box) for box in one.boxes) / area
        for one in asked.objects
        for found in _of_label(seen, one.label)
        if one.boxes and (area := box_area(found.box)) > 0
    ]
    return Tally(sum(shares), len(shares))


def relation(seen: Seen, asked: Asked) -> Tally:
    """Relations that hold between centres of detections, of those asked for; false if an object is missing.

    If a label has several detections, the one with the highest score counts.
    """
    right = 0
    for first, named, second in asked.relations:
        ends = [_of_label(seen, asked.labels[index]) for index in (first, second)]
        if all(ends):
            a, b = (max(found, key=lambda detection: detection.score).center for found in ends)
            right += relation_holds(a, b, named)
    return Tally(right, len(asked.relations))


def background(seen: Seen, asked: Asked) -> Tally:
    """Whether the background is the asked one; false if the picture has no plain background."""
    if asked.background is None or not seen.knows_background:
        return Tally(0, 0)
    return Tally(float(seen.background == asked.background), 1)


def explained(seen: Seen, asked: Asked | None = None) -> Tally:
    """Share of the foreground that lies in recognised objects, asked for or not; low for ruined pictures."""
    return Tally(0, 0) if seen.explained is None else Tally(seen.explained, 1)


Question = Callable[[Seen, Asked], Tally]

QUESTIONS: dict[str, Question] = {
    "presence": presence,
    "all_present": all_present,
    "binding": attribute_binding,
    "count": exact_count,
    "region_hit": region_hit,
    "region_iou": lambda seen, asked: region_hit(seen, asked, iou_threshold=0.5),
    "relation": relation,
    "background": background,
    "explained": explained,
}
"""Name -> scores that :func:`score` computes by default."""

DETAILS: dict[str, Question] = {"iou": region_overlap, "object_inside": inside_share}
"""Name -> scores of how well objects fit their boxes, which :func:`score` computes on request."""


def score(seen: Seen, asked: Asked, questions: Sequence[str] = tuple(QUESTIONS)) -> dict[str, float]:
    """All scores of one picture, each in [0, 1], 1 is best; a score that does not apply to it is absent.

    Args:
        seen: What the picture shows.
        asked: What was asked for.
        questions: Names in :data:`QUESTIONS` and :data:`DETAILS`.

    Example:
        >>> from attnguide.judges.shapes import asked_from_caption, seen_shapes
        >>> from attnguide.shapes.renderer import render
        >>> from attnguide.shapes.scene import Scene, SceneObject
        >>> picture = render(Scene((SceneObject("circle", "red", 0.3, 0.5, 0.15),)))
        >>> scores = score(seen_shapes(picture), asked_from_caption("a red circle to the left of a blue star"))
        >>> scores["presence"], scores["all_present"], scores["relation"], "region_hit" in scores
        (0.5, 0.0, 0.0, False)
    """
    known = {**QUESTIONS, **DETAILS}
    tallies = {name: known[name](seen, asked) for name in questions}
    return {name: tally.right / tally.asked for name, tally in tallies.items() if tally.asked}
