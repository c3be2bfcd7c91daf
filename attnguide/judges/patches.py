"""The judge of colours and places in the shapes world: patches of one colour, whatever their shape."""

from __future__ import annotations

from collections.abc import Iterable

from PIL import Image

from attnguide.judges.base import Asked, Detection, Seen
from attnguide.judges.shapes import ShapesJudge
from attnguide.shapes.judge import judge
from attnguide.shapes.scene import SHAPES


class PatchesJudge(ShapesJudge):
    """Finds objects of the shapes world by their colour alone; gives ``None`` for prompts that are no captions of it.

    A patch of a colour that was asked for is an object of that colour, however badly its shape is drawn; among several
    shapes of one colour that were asked for it is the one that it overlaps most. So it says whether a method places colours,
    where :class:`~attnguide.judges.shapes.ShapesJudge` also asks for a model that draws well. It tells nothing of binding.
    Pictures with a side below 16 pixels are not judged.
    """

    name = "patches"

    def _see(self, picture: Image.Image, asked: Asked) -> Seen:
        return seen_patches(picture, asked)


def seen_patches(picture: Image.Image, asked: Asked) -> Seen:
    """Patches of a picture, each taken for the asked object of its colour, as :class:`~attnguide.judges.base.Seen`.

    Args:
        picture: RGB; sides of at least 16 pixels.
        asked: What it was asked to show; a colour of which no shape was asked for keeps its likeliest shape.

    Raises:
        ValueError: If a side is below 16 pixels.
    """
    verdict = judge(picture, shapes_by_color((one.attribute, one.noun) for one in asked.objects))
    detections = tuple(Detection(one.name, one.box, one.confidence, one.mask, one.center) for one in verdict.detections)
    return Seen(detections, background=verdict.background, knows_background=True, explained=verdict.explained)


def shapes_by_color(objects: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Colour -> shapes of this world, of pairs of a colour and a noun."""
    found: dict[str, list[str]] = {}
    for color, noun in objects:
        if noun in SHAPES:
            found.setdefault(color, []).append(noun)
    return found
