"""Renders scenes as pictures, anti-aliased by supersampling, and as exact masks of their objects."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from attnguide.shapes.scene import BACKGROUNDS, COLORS, Scene, SceneObject

SIDE = 128
"""Default picture side in pixels."""

_SUPERSAMPLING = 4

Points = list[tuple[float, float]]


def _regular(count: int, radius: float, start: float = -90.0) -> Points:
    angles = [math.radians(start + 360 * i / count) for i in range(count)]
    return [(radius * math.cos(a), radius * math.sin(a)) for a in angles]


def _ellipse(radius: float) -> Points:
    return _regular(64, radius)


def _star() -> Points:
    outer, inner = _regular(5, 1.0), _regular(5, 0.42, -54.0)
    return [point for pair in zip(outer, inner, strict=True) for point in pair]


def _cross() -> Points:
    a, b = 0.30, 0.92
    return [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]


def _heart() -> Points:
    turns = [2 * math.pi * i / 64 for i in range(64)]
    xs = [16 * math.sin(t) ** 3 for t in turns]
    ys = [-(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) for t in turns]
    return [(x / 17.5, (y - 2.5) / 17.5) for x, y in zip(xs, ys, strict=True)]


_SQUARE = 0.76

OUTLINES: dict[str, Callable[[], Points]] = {
    "circle": lambda: _ellipse(0.88),
    "square": lambda: [(-_SQUARE, -_SQUARE), (_SQUARE, -_SQUARE), (_SQUARE, _SQUARE), (-_SQUARE, _SQUARE)],
    "triangle": lambda: [(0.0, -0.9), (0.95, 0.75), (-0.95, 0.75)],
    "star": _star,
    "cross": _cross,
    "diamond": lambda: [(0.0, -1.0), (0.62, 0.0), (0.0, 1.0), (-0.62, 0.0)],
    "ring": lambda: _ellipse(0.95),
    "heart": _heart,
}
"""Outline of each shape inside the unit circle, x to the right and y downwards."""

RING_HOLE = 0.5
"""Radius of a ring's hole in units of the ring's radius parameter."""


def _polygon(points: Points, obj: SceneObject, side: int) -> Points:
    turn = math.radians(obj.rotation)
    cos, sin, scale = math.cos(turn), math.sin(turn), obj.radius * side
    return [(obj.x * side + scale * (x * cos - y * sin), obj.y * side + scale * (x * sin + y * cos)) for x, y in points]


def _coverage(obj: SceneObject, side: int) -> Image.Image:
    fine = side * _SUPERSAMPLING
    canvas = Image.new("L", (fine, fine), 0)
    draw = ImageDraw.Draw(canvas)
    draw.polygon(_polygon(OUTLINES[obj.shape](), obj, fine), fill=255)
    if obj.shape == "ring":
        draw.polygon(_polygon(_ellipse(RING_HOLE), obj, fine), fill=0)
    return canvas.reduce(_SUPERSAMPLING)


def render(scene: Scene, side: int = SIDE) -> Image.Image:
    """Draw a scene as an RGB picture of ``side`` x ``side`` pixels.

    Example:
        >>> from attnguide.shapes.scene import Scene, SceneObject
        >>> picture = render(Scene((SceneObject("circle", "red", 0.5, 0.5, 0.2),)))
        >>> picture.size, picture.getpixel((64, 64))
        ((128, 128), (220, 30, 40))
    """
    picture = Image.new("RGB", (side, side), BACKGROUNDS[scene.background])
    for obj in scene.objects:
        picture.paste(COLORS[obj.color], mask=_coverage(obj, side))
    return picture


def object_masks(scene: Scene, side: int = SIDE) -> np.ndarray:
    """Visible pixels of each object, ``objects height width`` bool; where objects overlap the later one owns the pixel."""
    masks = np.stack([np.asarray(_coverage(obj, side)) >= 128 for obj in scene.objects]) if scene.objects else None
    if masks is None:
        return np.zeros((0, side, side), dtype=bool)
    for index in range(len(masks) - 1):
        masks[index] &= ~masks[index + 1 :].any(axis=0)
    return masks


def outlines(scene: Scene, side: int = SIDE) -> Image.Image:
    """Edges of all objects, one pixel wide and inside them, white on black: the control picture of this world's ControlNet."""
    drawn = np.zeros((side, side), dtype=bool)
    for mask in object_masks(scene, side):
        inner = mask.copy()
        for axis in (0, 1):
            inner &= np.roll(mask, 1, axis) & np.roll(mask, -1, axis)
        drawn |= mask & ~inner
    return Image.fromarray(drawn.astype(np.uint8) * 255).convert("RGB")
