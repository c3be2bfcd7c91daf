"""The judge of colours and places in the shapes world: patches of one colour, whatever their shape."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from attnguide.judges.base import Asked, Detection, Judge, Seen, check_equally_many
from attnguide.shapes.expectation import expectation_from_prompt
from attnguide.shapes.judge import SMALLEST_SIDE, judge


class PatchesJudge(Judge):
    """Finds objects of the shapes world by their colour alone; gives ``None`` for prompts that are no captions of it.

    A patch of a colour that was asked for is an object of that colour, however badly its shape is drawn; among several
    shapes of one colour that were asked for it is the one that it overlaps most. So it says whether a method places colours,
    where :class:`~attnguide.judges.shapes.ShapesJudge` also asks for a model that draws well. It tells nothing of binding.
    """

    name = "patches"
    finds_objects = True

    def look(self, pictures: Sequence[Image.Image], asked: Sequence[Asked]) -> list[Seen | None]:
        check_equally_many(pictures, asked)
        return [
            seen_patches(picture, one) if min(picture.size) >= SMALLEST_SIDE and expectation_from_prompt(one.prompt) else None
            for picture, one in zip(pictures, asked, strict=True)
        ]


def seen_patches(picture: Image.Image, asked: Asked) -> Seen:
    """Patches of a picture, each taken for the asked object of its colour, as :class:`~attnguide.judges.base.Seen`."""
    likeliest: dict[str, list[str]] = {}
    for one in asked.objects:
        likeliest.setdefault(one.attribute, []).append(one.noun)
    verdict = judge(picture, likeliest)
    detections = tuple(Detection(one.name, one.box, one.confidence, one.mask, one.center) for one in verdict.detections)
    return Seen(detections, background=verdict.background, knows_background=True, explained=verdict.explained)
