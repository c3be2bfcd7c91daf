"""The judge's scores over many pictures, as torchmetrics."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from attnguide.metrics import functional
from attnguide.metrics.functional import Tally
from attnguide.shapes.expectation import Expectation
from attnguide.shapes.judge import Verdict


class ShapesMetric(Metric):
    """Share of right things among those asked for, over all pictures, in [0, 1], 1 is best; NaN where nothing was asked.

    Subclasses say what is asked of one picture.

    Example:
        >>> from attnguide.shapes.expectation import expectation_from_prompt
        >>> from attnguide.shapes.judge import judge
        >>> from attnguide.shapes.renderer import render
        >>> from attnguide.shapes.scene import Scene, SceneObject
        >>> verdict = judge(render(Scene((SceneObject("circle", "red", 0.3, 0.5, 0.15),))))
        >>> metric = Presence()
        >>> metric.update([verdict], [expectation_from_prompt("a red circle and a blue star")])
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
    def tally(self, verdict: Verdict, expectation: Expectation) -> Tally:
        """Right and asked things of one picture."""

    def update(self, verdicts: Sequence[Verdict], expectations: Sequence[Expectation]) -> None:
        """Add a batch of pictures.

        Args:
            verdicts: What the pictures show.
            expectations: What was asked for, one per verdict.

        Raises:
            ValueError: If the lengths differ.
        """
        if len(verdicts) != len(expectations):
            raise ValueError(f"verdicts and expectations must be equally many; got {len(verdicts)} and {len(expectations)}.")
        for verdict, expectation in zip(verdicts, expectations, strict=True):
            tally = self.tally(verdict, expectation)
            self.right += tally.right
            self.asked += tally.asked

    def compute(self) -> Tensor:
        return self.right / self.asked


class Presence(ShapesMetric):
    """Share of asked objects that were found with the right shape and colour."""

    def tally(self, verdict: Verdict, expectation: Expectation) -> Tally:
        return functional.presence(verdict, expectation)


class AllPresent(ShapesMetric):
    """Share of pictures that show every asked object."""

    def tally(self, verdict: Verdict, expectation: Expectation) -> Tally:
        return functional.all_present(verdict, expectation)


class AttributeBinding(ShapesMetric):
    """Share of right colours among the asked instances whose shape was found."""

    def tally(self, verdict: Verdict, expectation: Expectation) -> Tally:
        return functional.attribute_binding(verdict, expectation)


class ExactCount(ShapesMetric):
    """Share of pictures that show every asked object exactly as often as asked."""

    def tally(self, verdict: Verdict, expectation: Expectation) -> Tally:
        return functional.exact_count(verdict, expectation)


class RegionHit(ShapesMetric):
    """Share of boxes that hold an object of the asked name.

    Args:
        iou_threshold: How well the object's bounds must fit the box, in (0, 1]; ``None`` asks only for its centre inside.
        **kwargs: For ``torchmetrics.Metric``.

    Raises:
        ValueError: If the threshold is out of range.
    """

    def __init__(self, iou_threshold: float | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if iou_threshold is not None and not 0 < iou_threshold <= 1:
            raise ValueError(f"iou_threshold must lie in (0, 1] or be None; got {iou_threshold}.")
        self.iou_threshold = iou_threshold

    def tally(self, verdict: Verdict, expectation: Expectation) -> Tally:
        return functional.region_hit(verdict, expectation, self.iou_threshold)


class RelationAccuracy(ShapesMetric):
    """Share of pictures that show the asked relation, among those asked for one."""

    def tally(self, verdict: Verdict, expectation: Expectation) -> Tally:
        return functional.relation(verdict, expectation)


class BackgroundAccuracy(ShapesMetric):
    """Share of pictures with the asked background, among those asked for one: what steering objects must not cost."""

    def tally(self, verdict: Verdict, expectation: Expectation) -> Tally:
        return functional.background(verdict, expectation)


class ExplainedForeground(ShapesMetric):
    """Mean share of the foreground that lies in recognised objects: the guard against winning by ruining pictures."""

    def tally(self, verdict: Verdict, expectation: Expectation) -> Tally:
        return functional.explained(verdict, expectation)


def shapes_metrics() -> MetricCollection:
    """All scores of :func:`attnguide.metrics.functional.score` under the same names."""
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
        },
        # Groups are found by comparing states, and different questions can tally alike on a first batch.
        compute_groups=False,
    )
