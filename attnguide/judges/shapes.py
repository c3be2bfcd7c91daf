"""The judge of the shapes world: rules, no learning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from PIL import Image

from attnguide.judges.base import Asked, AskedObject, Detection, Judge, Seen, check_equally_many
from attnguide.shapes.expectation import Expectation, expectation_from_layout, expectation_from_prompt
from attnguide.shapes.judge import SMALLEST_SIDE, judge
from attnguide.shapes.layouts import Layout


class ShapesJudge(Judge):
    """Recognises coloured shapes by rules; gives ``None`` for prompts that are no captions of the shapes world.

    See :func:`attnguide.shapes.judge.judge`. Pictures with a side below 16 pixels are not judged.
    """

    name = "shapes"
    finds_objects = True

    def look(self, pictures: Sequence[Image.Image], asked: Sequence[Asked]) -> list[Seen | None]:
        check_equally_many(pictures, asked)
        return [
            self._see(picture, one) if min(picture.size) >= SMALLEST_SIDE and expectation_from_prompt(one.prompt) else None
            for picture, one in zip(pictures, asked, strict=True)
        ]

    def _see(self, picture: Image.Image, asked: Asked) -> Seen:
        return seen_shapes(picture)


def seen_shapes(picture: Image.Image) -> Seen:
    """The verdict of :func:`attnguide.shapes.judge.judge` on a picture, as :class:`~attnguide.judges.base.Seen`."""
    verdict = judge(picture)
    detections = tuple(
        Detection(one.name, one.box, one.confidence, one.mask, one.center, noun=one.shape, attribute=one.color)
        for one in verdict.detections
    )
    return Seen(detections, background=verdict.background, knows_background=True, explained=verdict.explained)


def asked_shapes(expected: Expectation, prompt: str = "") -> Asked:
    """An expectation of the shapes world as :class:`~attnguide.judges.base.Asked`, which any judge takes."""
    boxes = expected.boxes or ((),) * len(expected.objects)
    objects = tuple(
        AskedObject(name, count, own, noun=shape, attribute=color)
        for name, (color, shape), count, own in zip(expected.names, expected.objects, expected.counts, boxes, strict=True)
    )
    relations = () if expected.relation is None else ((0, expected.relation, 1),)
    return Asked(prompt, objects, relations, expected.background)


def asked_from_caption(prompt: str) -> Asked | None:
    """Objects, relation and background that a caption of the shapes world asks for; ``None`` for any other text."""
    expected = expectation_from_prompt(prompt)
    return None if expected is None else asked_shapes(expected, prompt)


def asked_from_layout(row: Layout) -> Asked:
    """Objects, boxes, relation and background that a row of a layout file of the shapes world asks for.

    Raises:
        ValueError: If an object of the row is not of this world.
    """
    return replace(asked_shapes(expectation_from_layout(row)), prompt=row.prompt)
