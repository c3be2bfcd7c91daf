"""Numbers about pictures of the shapes world, where a prompt is a caption of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from attnguide.metrics.functional import count_found, score
from attnguide.shapes.expectation import expectation_from_prompt
from attnguide.shapes.judge import judge
from attnguide.types import Box, Region, SampleResult


def shapes_scores(result: SampleResult) -> dict[str, float]:
    """Scores of a finished row by the judge of the shapes world; none if its prompt is no caption of that world.

    Beside the scores in [0, 1] stands ``count_found``, a number of objects.
    """
    expected = expectation_from_prompt(result.sample.prompt)
    if expected is None or result.image is None:
        return {}
    boxes = tuple(_boxes(name, result.sample.regions) for name in expected.names)
    if any(boxes):
        expected = replace(expected, boxes=boxes)
    verdict = judge(result.image)
    return {**score(verdict, expected), "count_found": float(count_found(verdict, expected))}


def _boxes(name: str, regions: Sequence[Region]) -> tuple[Box, ...]:
    """Boxes of the regions that name an object: ``red circle`` is also ``a red circle`` and ``red circles``."""
    pattern = re.compile(rf"\b{name}(e?s)?\b", re.IGNORECASE)
    return tuple(region.box for region in regions if region.box is not None and pattern.search(region.phrase))
