"""Arithmetic of boxes ``(x0, y0, x1, y1)`` as fractions of width and height."""

from __future__ import annotations

from collections.abc import Sequence

from attnguide.types import Box


def box_area(box: Box) -> float:
    """Area, 0 for a box whose corners are swapped."""
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def common_area(a: Box, b: Box) -> float:
    """Area of the intersection of two boxes."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0


def box_iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, in [0, 1]."""
    common = common_area(a, b)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
    return common / union if union > 0 else 0.0


def clipped(box: Sequence[float]) -> Box:
    """The part of a box that lies inside the picture."""
    x0, y0, x1, y1 = (min(max(float(edge), 0.0), 1.0) for edge in box)
    return x0, y0, x1, y1


def suppressed(boxes: Sequence[Box], scores: Sequence[float], iou_threshold: float) -> list[int]:
    """Greedy non-maximum suppression: indices of the boxes that are kept, highest score first.

    Args:
        boxes: Boxes of detections that may be the same object.
        scores: Score of each box.
        iou_threshold: A box is dropped if its IoU with a kept box of higher score is above this.
    """
    kept: list[int] = []
    for index in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(box_iou(boxes[index], boxes[other]) <= iou_threshold for other in kept):
            kept.append(index)
    return kept
