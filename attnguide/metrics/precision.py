"""COCO's average precision of detections over IoU thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from attnguide.judges.base import Asked, Seen
from attnguide.judges.boxes import box_iou
from attnguide.metrics.objects import check_pairs
from attnguide.types import Box

THRESHOLDS: tuple[float, ...] = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""IoU thresholds of COCO: 0.5, 0.55, ..., 0.95."""

_RECALLS = np.linspace(0, 1, 101)


def hits(boxes: Sequence[Box], found: Sequence[Box], scores: Sequence[float], thresholds: Sequence[float]) -> np.ndarray:
    """True positives among the detections of one label: by descending score, each takes the free box with the highest IoU.

    Args:
        boxes: Asked boxes.
        found: Boxes of the detections.
        scores: Scores of the detections.
        thresholds: IoU thresholds.

    Returns:
        Bool, ``detections thresholds``.
    """
    if len(boxes) == len(found) == 1:  # most pictures of most labels
        return np.array([box_iou(found[0], boxes[0]) >= np.array(thresholds)])
    overlap = [[box_iou(one, box) for box in boxes] for one in found]
    order = sorted(range(len(found)), key=lambda i: -scores[i])
    right = np.zeros((len(found), len(thresholds)), dtype=bool)
    for column, threshold in enumerate(thresholds):
        free = set(range(len(boxes)))
        for index in order:
            best = max(free, key=overlap[index].__getitem__, default=None)
            if best is not None and overlap[index][best] >= threshold:
                right[index, column] = True
                free.remove(best)
    return right


def average_precision(scores: np.ndarray, right: np.ndarray, asked: float) -> float:
    """Area under the precision-recall curve: mean of the monotone precision at 101 recalls; NaN if no box was asked for.

    Args:
        scores: Scores of the detections of all pictures.
        right: Bool, true for detections that are true positives.
        asked: Number of asked boxes.
    """
    if not asked:
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    true = np.cumsum(right[order])
    precision = true / np.arange(1, len(order) + 1)
    recall = true / asked
    best = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(recall, _RECALLS - 1e-12, side="left")
    return float(np.append(best, 0.0)[at].mean())


class AveragePrecision(Metric):
    """Average precision of asked boxes, mean over IoU thresholds: ``AP@[.5:.95]``, 1 is best.

    NaN if no box was asked for.

    Detections of all pictures and labels are ranked together by score, since labels are phrases of which each picture has its
    own; a detection is right if it overlaps a free box of its label in its picture. Labels without a box are left out.

    Args:
        thresholds: IoU thresholds, in (0, 1].
        **kwargs: Arguments of ``torchmetrics.Metric``.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    scores: list[Tensor]
    right: list[Tensor]
    asked: Tensor

    def __init__(self, thresholds: Sequence[float] = THRESHOLDS, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not thresholds or not all(0 < threshold <= 1 for threshold in thresholds):
            raise ValueError(f"thresholds must lie in (0, 1], at least one; got {tuple(thresholds)}.")
        self.thresholds = tuple(thresholds)
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("right", [], dist_reduce_fx="cat")
        self.add_state("asked", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, seen: Sequence[Seen], asked: Sequence[Asked]) -> None:
        """Add a batch of pictures.

        Args:
            seen: What the pictures show.
            asked: What was asked for, one per picture.

        Raises:
            ValueError: If the lengths differ.
        """
        check_pairs(seen, asked)
        scores: list[float] = []
        right: list[np.ndarray] = []
        boxes = 0
        for shown, wanted in zip(seen, asked, strict=True):
            for one in wanted.objects:
                found = [d for d in shown.detections or () if d.label == one.label] if one.boxes else []
                boxes += len(one.boxes)
                if found:
                    own = [detection.score for detection in found]
                    scores += own
                    right.append(hits(one.boxes, [detection.box for detection in found], own, self.thresholds))
        self.asked += boxes
        # Append even without detections, so that every process has a tensor to gather.
        found_right = np.concatenate([np.zeros((0, len(self.thresholds)), dtype=bool), *right])
        self.scores.append(torch.tensor(scores, dtype=torch.float32, device=self.device))
        self.right.append(torch.from_numpy(found_right.astype(np.float32)).to(self.device))

    def compute(self) -> Tensor:
        if not len(self.scores):  # a tensor, once it was gathered
            return torch.tensor(float("nan"))
        scores, right = dim_zero_cat(self.scores).cpu().numpy(), dim_zero_cat(self.right).cpu().numpy()
        found = [average_precision(scores, right[:, column] > 0, float(self.asked)) for column in range(right.shape[1])]
        return torch.tensor(found).mean()
