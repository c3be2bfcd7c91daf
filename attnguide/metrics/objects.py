"""Scores over many pictures as torchmetrics classes, from any judge's detections."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from attnguide.judges.base import Asked, Seen
from attnguide.metrics import functional
from attnguide.metrics.functional import Tally


def check_pairs(seen: Sequence[Seen], asked: Sequence[Asked]) -> None:
    """Check that there is one ``asked`` per ``seen``.

    Raises:
        ValueError: If the lengths differ.
    """
    if len(seen) != len(asked):
        raise ValueError(f"seen and asked must be equally many; got {len(seen)} and {len(asked)}.")


class ObjectMetric(Metric):
    """Share of right things among those asked for, over all pictures, in [0, 1], 1 is best; NaN if nothing was asked.

    Subclasses define :meth:`tally`, the right and asked things of one picture.

    Example:
        >>> from attnguide.judges.shapes import asked_from_caption, seen_shapes
        >>> from attnguide.shapes.renderer import render
        >>> from attnguide.shapes.scene import Scene, SceneObject
        >>> seen = seen_shapes(render(Scene((SceneObject("circle", "red", 0.3, 0.5, 0.15),))))
        >>> metric = Presence()
        >>> metric.update([seen], [asked_from_caption("a red circle and a blue star")])
        >>> metric.compute()
        tensor(0.5000)
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    right: Tensor
    asked: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("right", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("asked", torch.tensor(0.0), dist_reduce_fx="sum")

    @abstractmethod
    def tally(self, seen: Seen, asked: Asked) -> Tally:
        """Right and asked things of one picture."""

    def update(self, seen: Sequence[Seen], asked: Sequence[Asked]) -> None:
        """Add a batch of pictures.

        Args:
            seen: What the pictures show.
            asked: What was asked for, one per picture.

        Raises:
            ValueError: If the lengths differ.
        """
        check_pairs(seen, asked)
        for shown, wanted in zip(seen, asked, strict=True):
            tally = self.tally(shown, wanted)
            self.right += tally.right
            self.asked += tally.asked

    def compute(self) -> Tensor:
        return self.right / self.asked


class Presence(ObjectMetric):
    """Share of asked objects that were found under their label."""

    def tally(self, seen: Seen, asked: Asked) -> Tally:
        return functional.presence(seen, asked)


class AllPresent(ObjectMetric):
    """Share of pictures that show every asked object."""

    def tally(self, seen: Seen, asked: Asked) -> Tally:
        return functional.all_present(seen, asked)


class AttributeBinding(ObjectMetric):
    """Share of right attributes (colours) among the asked instances whose noun was found."""

    def tally(self, seen: Seen, asked: Asked) -> Tally:
        return functional.attribute_binding(seen, asked)


class ExactCount(ObjectMetric):
    """Share of pictures that show every asked object exactly as often as asked."""

    def tally(self, seen: Seen, asked: Asked) -> Tally:
        return functional.exact_count(seen, asked)


class RegionHit(ObjectMetric):
    """Share of boxes that hold an object of the asked label.

    Args:
        iou_threshold: How well the object's bounds must fit the box, in (0, 1]; ``None`` asks only for its centre inside.
        **kwargs: For ``torchmetrics.Metric``.

    Raises:
        ValueError: If the threshold is out of range.
    """

    def __init__(self, iou_threshold: float | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        functional.check_iou_threshold(iou_threshold)
        self.iou_threshold = iou_threshold

    def tally(self, seen: Seen, asked: Asked) -> Tally:
        return functional.region_hit(seen, asked, self.iou_threshold)


class RegionOverlap(ObjectMetric):
    """Mean IoU of boxes with the detection of their label that is assigned to them; 0 for a box without one."""

    def tally(self, seen: Seen, asked: Asked) -> Tally:
        return functional.region_overlap(seen, asked)


class InsideShare(ObjectMetric):
    """Mean share of a found object's box that lies inside a box of its label."""

    def tally(self, seen: Seen, asked: Asked) -> Tally:
        return functional.inside_share(seen, asked)


class RelationAccuracy(ObjectMetric):
    """Share of asked relations that hold."""

    def tally(self, seen: Seen, asked: Asked) -> Tally:
        return functional.relation(seen, asked)


class BackgroundAccuracy(ObjectMetric):
    """Share of pictures with the asked background, among those asked for one."""

    def tally(self, seen: Seen, asked: Asked) -> Tally:
        return functional.background(seen, asked)


class ExplainedForeground(ObjectMetric):
    """Mean share of the foreground that lies in recognised objects; low for ruined pictures."""

    def tally(self, seen: Seen, asked: Asked) -> Tally:
        return functional.explained(seen, asked)


def object_metrics() -> MetricCollection:
    """Metrics for all of :data:`attnguide.metrics.functional.QUESTIONS` and ``DETAILS``, under the same names."""
    return MetricCollection(
        {
            "presence": Presence(),
            "all_present": AllPresent(),
            "binding": AttributeBinding(),
            "count": ExactCount(),
            "region_hit": RegionHit(),
            "region_iou": RegionHit(iou_threshold=0.5),
            "relation": RelationAccuracy(),
            "background": BackgroundAccuracy(),
            "explained": ExplainedForeground(),
            "iou": RegionOverlap(),
            "object_inside": InsideShare(),
        },
        # Groups are found by comparing states, and different questions can tally alike on a first batch.
        compute_groups=False,
    )
