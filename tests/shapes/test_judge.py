from __future__ import annotations

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from attnguide.shapes.judge import judge
from attnguide.shapes.matching import match
from attnguide.shapes.palette import match_color, to_oklab
from attnguide.shapes.renderer import object_masks, render
from attnguide.shapes.scene import BACKGROUNDS, COLORS, SHAPES, Scene, SceneObject, random_scene
from attnguide.shapes.segmentation import segment
from scripts.eval_judge import right_objects


def _pixels(seed: int) -> np.ndarray:
    return np.asarray(render(random_scene(seed))).astype(float)


def _bytes(pixels: np.ndarray) -> np.ndarray:
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31), held_out=st.booleans())
def test_what_is_drawn_is_found(seed: int, held_out: bool) -> None:
    scene = random_scene(seed, held_out=held_out)
    verdict = judge(render(scene))
    assert right_objects(scene, verdict) == len(scene.objects) == len(verdict.detections)
    assert verdict.background == scene.background
    assert verdict.explained > 0.99


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_colour_and_shape_on_every_background(shape: str, background: str) -> None:
    places = [(x, y) for y in (0.15, 0.5, 0.85) for x in (0.15, 0.5, 0.85)]
    objects = [SceneObject(shape, color, x, y, 0.13) for color, (x, y) in zip(COLORS, places, strict=False)]
    verdict = judge(render(Scene(tuple(objects[:6]), background)))
    assert sorted(verdict.names) == sorted(obj.name for obj in objects[:6])
    verdict = judge(render(Scene(tuple(objects[6:]), background)))
    assert sorted(verdict.names) == sorted(obj.name for obj in objects[6:])


def test_a_detection_has_the_place_and_size_of_its_object() -> None:
    scene = Scene((SceneObject("square", "blue", 0.3, 0.6, 0.15),))
    (detection,) = judge(render(scene)).detections
    mask = object_masks(scene)[0]
    assert detection.center == pytest.approx((0.3, 0.6), abs=0.01)
    assert detection.area == pytest.approx(mask.mean(), rel=0.05)
    assert (detection.mask == mask).mean() > 0.997
    half = 0.76 * 0.15
    assert detection.box == pytest.approx((0.3 - half, 0.6 - half, 0.3 + half, 0.6 + half), abs=0.012)
    assert 0.8 < detection.confidence <= 1


@pytest.mark.parametrize("std", [0.7, 1.2])
def test_a_slight_blur_changes_nothing(std: float) -> None:
    for seed in range(12):
        scene = random_scene(seed)
        blurred = _bytes(ndimage.gaussian_filter(_pixels(seed), (std, std, 0)))
        assert right_objects(scene, judge(blurred)) == len(scene.objects)


def test_a_slight_tint_and_other_sizes_change_nothing() -> None:
    for seed in range(8):
        scene = random_scene(seed)
        assert right_objects(scene, judge(_bytes(_pixels(seed) * [1.03, 0.96, 0.98] + [-5, 4, 0]))) == len(scene.objects)
        assert Counter(judge(render(scene, side=256)).names) == Counter(obj.name for obj in scene.objects)


def test_pictures_need_not_be_square() -> None:
    pixels = np.asarray(render(Scene((SceneObject("star", "red", 0.5, 0.5, 0.2),))))
    wide = np.concatenate([pixels, np.full_like(pixels, 250)], axis=1)
    (detection,) = judge(wide).detections
    assert detection.center == pytest.approx((0.25, 0.5), abs=0.02)
    assert detection.mask.shape == (128, 256)


def test_confidence_falls_with_the_drawing() -> None:
    scene = Scene((SceneObject("star", "red", 0.5, 0.5, 0.15),))
    clean, blurred = render(scene), _bytes(ndimage.gaussian_filter(np.asarray(render(scene)).astype(float), (1.2, 1.2, 0)))
    assert judge(clean).detections[0].confidence > judge(blurred).detections[0].confidence


def _field(rng: np.random.Generator, std: float) -> np.ndarray:
    field = ndimage.gaussian_filter(rng.normal(size=(128, 128, 3)), (std, std, 0))
    return 128 + 60 * field / field.std((0, 1))


RUINS = {
    "white noise": lambda rng, i: rng.integers(0, 256, (128, 128, 3)),
    "fine mush": lambda rng, i: _field(rng, 3),
    "coarse mush": lambda rng, i: _field(rng, 12),
    "gradient": lambda rng, i: (
        np.linspace(rng.integers(0, 256, 3), rng.integers(0, 256, 3), 128)[:, None] * np.ones((1, 128, 1))
    ),
    "blurred scene": lambda rng, i: ndimage.gaussian_filter(_pixels(i), (6, 6, 0)),
    "scene under noise": lambda rng, i: _pixels(i) + rng.normal(0, 60, (128, 128, 3)),
    "mean of scenes": lambda rng, i: np.mean([_pixels(6 * i + j) for j in range(6)], axis=0),
}


@pytest.mark.parametrize("kind", RUINS)
def test_noise_and_mush_hold_nothing(kind: str) -> None:
    rng = np.random.default_rng(0)
    for index in range(12):
        verdict = judge(_bytes(RUINS[kind](rng, index)))
        assert verdict.detections == () and verdict.explained == 0


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_a_blank_picture_holds_nothing(background: str) -> None:
    verdict = judge(render(Scene((), background)))
    assert verdict.background == background
    assert verdict.detections == () and not verdict.foreground.any() and verdict.explained == 0


def test_a_loud_background_is_none() -> None:
    verdict = judge(np.full((128, 128, 3), (255, 0, 255), dtype=np.uint8))
    assert verdict.background is None and verdict.foreground.all()


def test_a_blob_lowers_what_is_explained() -> None:
    pixels = np.asarray(render(Scene((SceneObject("square", "blue", 0.25, 0.3, 0.15),)))).copy()
    pixels[70:120, 40:60] = COLORS["red"]
    verdict = judge(pixels)
    square = (2 * 0.76 * 0.15 * 128) ** 2
    assert verdict.names == ("blue square",)
    assert verdict.explained == pytest.approx(square / (square + 50 * 20), abs=0.06)


def test_two_colours_in_one_shape_are_not_that_object() -> None:
    scene = Scene((SceneObject("circle", "red", 0.5, 0.5, 0.2),))
    pixels = np.asarray(render(scene)).copy()
    lower = object_masks(scene)[0] & (np.arange(128)[:, None] > 64)
    pixels[lower] = COLORS["blue"]
    assert not {"red circle", "blue circle"} & set(judge(pixels).names)


def test_touching_objects_of_two_colours_are_both_found() -> None:
    scene = Scene(
        (
            SceneObject("square", "blue", 0.3, 0.5, 0.2),
            SceneObject("circle", "yellow", 0.3 + 0.76 * 0.2 + 0.88 * 0.15, 0.5, 0.15),
        )
    )
    assert judge(render(scene)).names == ("blue square", "yellow circle")


def test_merged_objects_of_one_colour_are_no_objects() -> None:
    scene = Scene((SceneObject("circle", "red", 0.4, 0.5, 0.15), SceneObject("circle", "red", 0.6, 0.5, 0.15)))
    assert judge(render(scene)).detections == ()


def test_faded_colours_are_not_named() -> None:
    scene = Scene((SceneObject("circle", "green", 0.5, 0.5, 0.2),))
    faded = _bytes(np.asarray(render(scene)) * 0.4 + 150)
    assert judge(faded).detections == ()


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_match_themselves_best(shape: str) -> None:
    for rotation in (-17.0, 0.0, 12.0):
        mask = object_masks(Scene((SceneObject(shape, "red", 0.5, 0.5, 0.14, rotation),)))[0]
        found = match(mask.astype(np.float32))
        assert found.shape == shape and found.overlap > 0.85 and found.margin > 0.05


def test_named_colours_match_themselves() -> None:
    for name, rgb in COLORS.items():
        found = match_color(to_oklab(np.array(rgb, dtype=np.uint8)))
        assert found.name == name
        assert found.distance == pytest.approx(0, abs=1e-3) and found.strength == pytest.approx(1) and found.margin > 0.1


def test_oklab_of_white_gray_and_red() -> None:
    lab = to_oklab(np.array([[255, 255, 255], [128, 128, 128], [255, 0, 0]], dtype=np.uint8))
    np.testing.assert_allclose(lab, [[1, 0, 0], [0.5999, 0, 0], [0.6280, 0.2249, 0.1258]], atol=1e-3)


def test_soft_masks_cover_the_object() -> None:
    scene = Scene((SceneObject("heart", "pink", 0.5, 0.5, 0.2),))
    (piece,) = segment(np.asarray(render(scene))).pieces
    assert piece.alpha.sum() == pytest.approx(object_masks(scene)[0].sum(), rel=0.02)
    assert piece.purity == 1 and piece.leak == 0


@pytest.mark.parametrize(
    "picture", [np.zeros((128, 128), np.uint8), np.zeros((128, 128, 3), np.float32), np.zeros((8, 128, 3), np.uint8)]
)
def test_other_arrays_are_refused(picture: np.ndarray) -> None:
    with pytest.raises(ValueError, match="picture must"):
        judge(picture)


def test_the_judge_needs_no_torch() -> None:
    code = "import sys, attnguide.shapes.judge, attnguide.shapes.expectation; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
