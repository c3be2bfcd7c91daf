"""Patches of colour as objects, on drawn pictures."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from attnguide.judges.names import open_judge
from attnguide.judges.patches import PatchesJudge, seen_patches
from attnguide.judges.shapes import asked_from_caption, seen_shapes
from attnguide.metrics.functional import score
from attnguide.shapes.judge import judge
from attnguide.shapes.renderer import render
from attnguide.shapes.scene import COLORS, Scene, SceneObject


def _badly_drawn(*shapes: tuple[str, tuple[int, int, int, int]]) -> Image.Image:
    """A white picture of L-shaped patches in boxes of pixels, which no shape of the world is."""
    picture = Image.new("RGB", (512, 512), (250, 250, 250))
    draw = ImageDraw.Draw(picture)
    for color, (x0, y0, x1, y1) in shapes:
        draw.rectangle((4 * x0, 4 * y0, 4 * (x0 + x1) // 2, 4 * y1), COLORS[color])
        draw.rectangle((4 * x0, 4 * (y0 + y1) // 2, 4 * x1, 4 * y1), COLORS[color])
    return picture.resize((128, 128), Image.Resampling.LANCZOS)


def test_a_badly_drawn_object_is_where_its_color_is() -> None:
    caption = "a red circle and a blue star"
    asked = asked_from_caption(caption)
    assert asked is not None
    picture = _badly_drawn(("red", (10, 20, 50, 60)), ("blue", (70, 60, 110, 100)))
    (seen,) = open_judge("patches").look([picture], [asked])
    assert seen is not None and seen.labels == ("red circle", "blue star") and seen.background == "white"
    assert seen_shapes(picture).labels == ()
    red, blue = seen.detections or ()
    assert red.center == pytest.approx((30 / 128, 44 / 128), abs=0.05) and blue.center[0] > 0.5
    assert seen.explained == pytest.approx(1.0, abs=0.05)
    found = score(seen, asked)
    assert found["presence"] == 1.0 and "binding" not in found


def test_of_several_shapes_of_one_color_a_patch_is_the_likelier() -> None:
    objects = SceneObject("ring", "red", 0.25, 0.5, 0.15), SceneObject("star", "red", 0.75, 0.5, 0.15)
    picture = render(Scene(objects))
    caption = asked_from_caption("a red star and a red ring")
    assert caption is not None and seen_patches(picture, caption).labels == ("red ring", "red star")
    other = asked_from_caption("a red circle and a red square")
    assert other is not None and set(seen_patches(picture, other).labels) <= {"red circle", "red square"}


def test_a_color_that_nobody_asked_for_keeps_its_own_shape() -> None:
    picture = render(Scene((SceneObject("heart", "green", 0.3, 0.5, 0.15),)))
    asked = asked_from_caption("a red circle")
    assert asked is not None and seen_patches(picture, asked).labels == ("green heart",)


def test_what_is_no_patch_of_a_color_is_still_none() -> None:
    asked = asked_from_caption("a red circle")
    assert asked is not None
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8))
    fleck = _badly_drawn(("red", (10, 20, 14, 24)))
    mixed = Image.new("RGB", (128, 128), (250, 250, 250))
    mixed.paste((170, 110, 60), (20, 20, 60, 60))  # between the world's colours
    for picture in (noise, fleck, mixed):
        assert seen_patches(picture, asked).labels == ()


def test_texts_and_sizes_that_are_not_of_the_world_are_not_judged() -> None:
    other, shapes = asked_from_caption("a cat"), asked_from_caption("a red circle")
    assert other is None and shapes is not None
    pictures = [Image.new("RGB", (128, 128)), Image.new("RGB", (8, 8))]
    cat = type(shapes)("a cat on a mat")
    assert PatchesJudge().look(pictures, [cat, shapes]) == [None, None]


def test_a_well_drawn_picture_is_seen_alike_by_both() -> None:
    objects = SceneObject("cross", "pink", 0.3, 0.3, 0.15), SceneObject("diamond", "brown", 0.7, 0.6, 0.15)
    picture = render(Scene(objects, "black"))
    asked = asked_from_caption("a pink cross and a brown diamond")
    assert asked is not None and seen_patches(picture, asked).labels == judge(picture).names
