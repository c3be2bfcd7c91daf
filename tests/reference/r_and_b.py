"""R&B (https://arxiv.org/abs/2310.08872), one phrase and one cell after the other."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tests.reference.words import blurred

Array = NDArray[np.float64]


def resized(amap: Array, height: int, width: int) -> Array:
    """Bilinear, with half-cell centres."""
    rows, columns = amap.shape
    out = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            v = min(max((y + 0.5) * rows / height - 0.5, 0), rows - 1)
            u = min(max((x + 0.5) * columns / width - 0.5, 0), columns - 1)
            top, left = int(v), int(u)
            bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
            above = amap[top, left] * (1 - (u - left)) + amap[top, right] * (u - left)
            below = amap[bottom, left] * (1 - (u - left)) + amap[bottom, right] * (u - left)
            out[y, x] = above * (1 - (v - top)) + below * (v - top)
    return out


def mean_resized(layers: Sequence[Array], height: int, width: int) -> Array:
    """Mean over layers of head means, resized; ``height width token``."""
    tokens = layers[0].shape[-1]
    total = np.zeros((height, width, tokens))
    for layer in layers:
        head_mean = sum(layer) / len(layer)
        for token in range(tokens):
            total[:, :, token] += resized(head_mean[:, :, token], height, width) / len(layers)
    return total


def region(amap: Array, mask: Array, threshold: float, exclusive: bool) -> tuple[float, float]:
    """Region and appearance terms, and the intersection over union."""
    cells = [(y, x) for y in range(amap.shape[0]) for x in range(amap.shape[1])]
    strong = [cell for cell in cells if amap[cell] > threshold]
    bottom, right = (max(cell[axis] for cell in strong) + (0 if exclusive else 1) for axis in (0, 1))
    top, left = (min(cell[axis] for cell in strong) for axis in (0, 1))
    box = {(y, x) for y in range(top, bottom) for x in range(left, right)}
    wanted = {cell for cell in cells if mask[cell] > 0}
    iou = len(box & wanted) / len(box | wanted)
    soft = {cell: 1 / (1 + math.exp(-20 * (amap[cell] - threshold))) for cell in cells}
    shape = 2 * (1 - (1 - iou) * len(box & wanted) / len(box)) if box else 2.0
    share = sum(soft[cell] for cell in wanted) / sum(soft.values())
    return shape + 2 * (1 - (1 - iou) * share * 0.5), iou


def edges(amap: Array, mask: Array, iou: float) -> float:
    """Boundary term."""
    inside = everywhere = 0.0
    for y in range(1, amap.shape[0] - 1):
        for x in range(1, amap.shape[1] - 1):
            across = sum(k * (amap[y + d, x - 1] - amap[y + d, x + 1]) for d, k in ((-1, 1), (0, 2), (1, 1)))
            along = sum(k * (amap[y - 1, x + d] - amap[y + 1, x + d]) for d, k in ((-1, 1), (0, 2), (1, 1)))
            strength = math.hypot(across, along)
            everywhere += strength
            inside += strength * mask[y, x]
    return 1 - (1 - iou) * inside / everywhere


def loss(
    every: Sequence[Array],
    upward: Sequence[Array],
    words: Sequence[Sequence[int]],
    masks: Sequence[Array],
    exclusive: bool,
    sharpness: float = 120.0,
) -> float:
    """Loss of one picture.

    Args:
        every: Probs per layer, each ``heads height width token``.
        upward: Those of them that give edges.
        words: Positions of each phrase.
        masks: 0 or 1, at the size everything is resized to; one a phrase.
        exclusive: As the code has it: rectangles without their last row and column, a wider blur, and no threshold where the
            mask is everything.
        sharpness: Of the maps that give edges; 0 takes them as they are.
    """
    height, width = masks[0].shape
    mean, rough = mean_resized(every, height, width), mean_resized(upward, height, width)
    sharp = np.exp(sharpness * (rough[:, :, 1:] - rough[:, :, 1:].max(-1, keepdims=True)))
    sharp = sharp / sharp.sum(-1, keepdims=True) if sharpness else rough[:, :, 1:]
    total = 0.0
    for positions, mask in zip(words, masks, strict=True):
        raw = sum(mean[:, :, position] for position in positions)
        amap = (raw - raw.min()) / (raw.max() - raw.min())
        outside = 1 - mask
        threshold = 0.4 * (amap * mask).sum() / mask.sum() + 0.6 * (amap * outside).sum() / max(outside.sum(), 1)
        if exclusive and not outside.any():
            threshold = 0.0
        value, iou = region(amap, mask, threshold, exclusive)
        if iou >= 0.85:
            continue
        total += value
        if len(words) > 1 and (raw * mask).max() < (raw * outside).max():
            edge = sum(sharp[:, :, position - 1] for position in positions)
            total += edges(blurred(edge / edge.max(), 3 * (math.sqrt(2) if exclusive else 1)), mask, iou)
    return total / len(words)
