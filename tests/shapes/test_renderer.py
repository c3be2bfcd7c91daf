from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from attnguide.shapes.renderer import OUTLINES, RING_HOLE, object_masks, outlines, render
from attnguide.shapes.scene import BACKGROUNDS, COLORS, SHAPES, Scene, SceneObject, random_scene


def _one(shape: str, rotation: float = 0.0, background: str = "white") -> Scene:
    return Scene((SceneObject(shape, "red", 0.5, 0.5, 0.3, rotation),), background)


def test_every_shape_has_an_outline_inside_the_unit_circle() -> None:
    assert set(OUTLINES) == set(SHAPES)
    for outline in OUTLINES.values():
        assert max(x * x + y * y for x, y in outline()) < 1.5**2


def test_a_scene_renders_to_the_same_bytes() -> None:
    assert render(random_scene(7)).tobytes() == render(random_scene(7)).tobytes()


@pytest.mark.parametrize("side", [64, 128, 200])
def test_the_picture_has_the_asked_side(side: int) -> None:
    assert render(_one("star"), side).size == (side, side)


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape != "ring"])
def test_colours_are_exact_inside_and_outside(shape: str, background: str) -> None:
    pixels = np.asarray(render(_one(shape, background=background)))
    assert tuple(pixels[64, 64]) == COLORS["red"]
    assert tuple(pixels[0, 0]) == BACKGROUNDS[background]


def test_edges_are_mixed_in_proportion() -> None:
    pixels = np.asarray(render(_one("circle"))).astype(int)
    red, white = np.array(COLORS["red"]), np.array(BACKGROUNDS["white"])
    mixed = (pixels != red).any(-1) & (pixels != white).any(-1)
    assert 20 < mixed.sum() < 400
    share = (pixels[mixed] - white) / (red - white)
    np.testing.assert_allclose(share.max(-1), share.min(-1), atol=0.02)


def test_circle_area_is_that_of_the_formula() -> None:
    mask = object_masks(_one("circle"))[0]
    assert mask.sum() == pytest.approx(np.pi * (0.88 * 0.3 * 128) ** 2, rel=0.01)


def test_a_ring_is_hollow() -> None:
    pixels = np.asarray(render(_one("ring")))
    assert tuple(pixels[64, 64]) == BACKGROUNDS["white"]
    mask = object_masks(_one("ring"))[0]
    hole = RING_HOLE * 0.3 * 128
    assert not mask[64, 64 + int(hole) - 2] and mask[64, 64 + int(hole) + 3]


def test_rotation_is_clockwise() -> None:
    upright, turned = (object_masks(_one("triangle", rotation))[0] for rotation in (0.0, 20.0))
    tips = [int(np.flatnonzero(mask[mask.any(1).argmax()]).mean()) for mask in (upright, turned)]
    assert tips[1] > tips[0] + 5


def test_the_later_object_owns_shared_pixels() -> None:
    scene = Scene((SceneObject("circle", "red", 0.45, 0.5, 0.2), SceneObject("circle", "blue", 0.55, 0.5, 0.2)))
    masks = object_masks(scene)
    assert not (masks[0] & masks[1]).any()
    assert masks[1].sum() > masks[0].sum()
    assert tuple(np.asarray(render(scene))[64, 64]) == COLORS["blue"]


def test_masks_follow_the_pixels() -> None:
    scene = random_scene(3, "several")
    pixels = np.asarray(render(scene))
    background = (pixels == BACKGROUNDS[scene.background]).all(-1)
    for obj, mask in zip(scene.objects, object_masks(scene), strict=True):
        assert not (mask & background).any()
        assert (pixels[mask] == COLORS[obj.color]).all(-1).mean() > 0.7


def test_an_empty_scene_is_its_background() -> None:
    assert object_masks(Scene(()), side=32).shape == (0, 32, 32)
    assert (np.asarray(render(Scene((), "beige"), side=32)) == BACKGROUNDS["beige"]).all()


def test_outlines_run_along_the_inside_of_objects() -> None:
    scene = Scene((SceneObject("circle", "red", 0.4, 0.4, 0.2), SceneObject("square", "blue", 0.7, 0.7, 0.15)))
    lines = np.asarray(outlines(scene))
    assert set(np.unique(lines)) == {0, 255} and (lines == lines[..., :1]).all()
    drawn, masks = lines[..., 0] > 0, object_masks(scene)
    for mask in masks:
        assert (drawn & mask).any() and not (drawn & ndimage.binary_erosion(mask, iterations=1)).any()
    assert not (drawn & ~masks.any(0)).any()
    assert not np.asarray(outlines(Scene(()))).any()
