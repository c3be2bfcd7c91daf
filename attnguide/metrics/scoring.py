"""Numbers about pictures of the shapes world, where a prompt is a caption of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import ndimage

from attnguide.metrics.functional import count_found, score
from attnguide.prompt.regions import rasterise
from attnguide.shapes.expectation import expectation_from_prompt
from attnguide.shapes.judge import SMALLEST_SIDE, judge
from attnguide.types import Box, Region, SampleResult

_CELLS = 64
"""Side of the grid on which a map's bounds are found."""


def shapes_scores(result: SampleResult) -> dict[str, float]:
    """Scores of a finished row by the judge of the shapes world.

    None if its prompt is no caption of that world, or the picture too small to be judged. Beside the scores in [0, 1] stands
    ``count_found``, a number of objects.
    """
    expected = expectation_from_prompt(result.sample.prompt)
    if expected is None or result.image is None or min(result.image.size) < SMALLEST_SIDE:
        return {}
    boxes = tuple(_boxes(name, result.sample.regions) for name in expected.names)
    if any(boxes):
        expected = replace(expected, boxes=boxes)
    verdict = judge(result.image)
    return {**score(verdict, expected), "count_found": float(count_found(verdict, expected))}


def _boxes(name: str, regions: Sequence[Region]) -> tuple[Box, ...]:
    """Boxes of the regions that name an object: ``red circle`` is also ``a red circle`` and ``red circles``."""
    pattern = re.compile(rf"\b{name}(e?s)?\b", re.IGNORECASE)
    boxes = (_box(region) for region in regions if pattern.search(region.phrase))
    return tuple(box for box in boxes if box is not None)


def _box(region: Region) -> Box | None:
    """A region's box; for a map taken from another picture, the bounds of its largest connected part above one half."""
    if region.source is None or region.mask is None:
        return region.box
    parts, count = ndimage.label(rasterise(region, _CELLS, _CELLS).numpy() >= 0.5)
    if not count:
        return None
    largest = 1 + int(np.argmax(ndimage.sum_labels(parts > 0, parts, range(1, count + 1))))
    rows, columns = np.nonzero(parts == largest)
    edges = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    x0, y0, x1, y1 = (float(edge) / _CELLS for edge in edges)
    return x0, y0, x1, y1
