"""The judge of the shapes world: recognises the objects in a picture by fixed rules."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from attnguide.shapes.matching import Match, match
from attnguide.shapes.scene import SHAPES
from attnguide.shapes.segmentation import Piece, Segmentation, segment
from attnguide.types import Box

OVERLAP: dict[str, float] = {
    "circle": 0.92,
    "square": 0.9,
    "triangle": 0.89,
    "star": 0.83,
    "cross": 0.87,
    "diamond": 0.91,
    "ring": 0.74,
    "heart": 0.9,
}
"""Least IoU with each shape for a detection: above that of random blobs, below that of warped drawings of the shape."""
MARGIN = 0.04
"""Least lead in IoU of the best shape over the second."""
COLOR_DISTANCE = 0.12
"""Largest Oklab distance to the named colour; blue and purple, the closest pair, are 0.16 apart."""
COLOR_MARGIN = 0.02
"""Least lead in Oklab distance of the named colour over the second."""
COLOR_STRENGTH = 0.7
"""Least chroma relative to the named colour's; averages of several pictures are paler."""
PURITY = 0.8
"""Least share of an object's inner pixels that carry its colour."""
SOFTNESS = 1.3
"""Softest edge, in pixels of a picture of 128x128: a Gaussian blur of standard deviation s gives 0.56 s to 0.8 s."""
LEAK = 0.15
"""Largest share of the rim that passes smoothly into another colour."""
AREA = (0.006, 0.35)
"""Least and largest share of the picture that an object covers."""
SMALLEST_SIDE = 16
"""Least side of a picture in pixels; in smaller ones no shape can be recognised."""


@dataclass(frozen=True)
class Detection:
    """One recognised object.

    Attributes:
        shape: One of ``SHAPES``.
        color: A key of ``COLORS``.
        box: Bounds of the visible pixels ``(x0, y0, x1, y1)``, as fractions of width and height.
        mask: Its pixels, bool ``height width``.
        center: Centroid ``(x, y)`` as fractions of width and height.
        area: Share of the picture.
        confidence: Product of overlap with the shape, purity and closeness of the colour, in [0, 1].
    """

    shape: str
    color: str
    box: Box
    mask: np.ndarray
    center: tuple[float, float]
    area: float
    confidence: float

    @property
    def name(self) -> str:
        """Colour and shape: ``"red circle"``."""
        return f"{self.color} {self.shape}"


@dataclass(frozen=True)
class Verdict:
    """The judge's findings on one picture.

    Attributes:
        detections: Recognised objects, from left to right, then from top to bottom.
        background: Name of the plain background; ``None`` if there is none.
        foreground: Pixels off the background, bool ``height width``.
        explained: Share of the foreground that lies in recognised objects, in [0, 1]; 0 without foreground or objects.
    """

    detections: tuple[Detection, ...]
    background: str | None
    foreground: np.ndarray
    explained: float

    @property
    def names(self) -> tuple[str, ...]:
        """``"colour shape"`` of every detection."""
        return tuple(detection.name for detection in self.detections)


def _as_pixels(picture: Image.Image | np.ndarray) -> np.ndarray:
    pixels = np.asarray(picture.convert("RGB") if isinstance(picture, Image.Image) else picture)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise ValueError(f"picture must be uint8 of shape (height, width, 3); got {pixels.dtype} of shape {pixels.shape}.")
    if min(pixels.shape[:2]) < SMALLEST_SIDE:
        raise ValueError(
            f"picture must have sides of at least {SMALLEST_SIDE} pixels; got {pixels.shape[1]}x{pixels.shape[0]}."
        )
    return pixels


def _softness(alpha: np.ndarray) -> float:
    """Mean width of the edge between covered and uncovered pixels, in pixels."""
    inside = alpha > 0.5
    rim = int((inside & ~ndimage.binary_erosion(inside)).sum())
    return float((alpha * (1 - alpha)).sum()) / max(rim, 1)


def _has_color(piece: Piece, area: float) -> bool:
    """Whether a piece is of one of the world's colours, and no fleck."""
    color = piece.color
    if color.distance > COLOR_DISTANCE or color.margin < COLOR_MARGIN or color.strength < COLOR_STRENGTH:
        return False
    return piece.purity >= PURITY and AREA[0] <= area <= AREA[1]


def _has_shape(piece: Piece, found: Match, side: int) -> bool:
    """Whether a piece is drawn clearly, and as its best shape."""
    if piece.leak > LEAK or _softness(piece.alpha) * 128 / side > SOFTNESS:
        return False
    return found.overlap >= OVERLAP[found.shape] and found.margin >= MARGIN


def _recognize(piece: Piece, size: tuple[int, int], shapes: Collection[str] | None) -> Detection | None:
    height, width = size
    inside = piece.alpha > 0.5
    area = float(inside.sum()) / (height * width)
    if not _has_color(piece, area):
        return None
    found = match(piece.alpha, shapes or SHAPES)
    if shapes is None and not _has_shape(piece, found, min(size)):
        return None
    mask = np.zeros(size, dtype=bool)
    mask[piece.window] = inside
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    y, x = (float(value) for value in ndimage.center_of_mass(mask))
    return Detection(
        shape=found.shape,
        color=piece.color.name,
        box=(columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height),
        mask=mask,
        center=((x + 0.5) / width, (y + 0.5) / height),
        area=area,
        confidence=found.overlap * piece.purity * (1 - piece.color.distance / COLOR_DISTANCE / 2),
    )


def _explained(segmentation: Segmentation, detections: list[Detection]) -> float:
    total = int(segmentation.foreground.sum())
    if not total or not detections:
        return 0.0
    # Anti-aliased rims belong to their object.
    covered = ndimage.binary_dilation(np.logical_or.reduce([d.mask for d in detections]), iterations=2)
    return float((covered & segmentation.foreground).sum() / total)


def judge(picture: Image.Image | np.ndarray, likeliest: Mapping[str, Collection[str]] | None = None) -> Verdict:
    """Recognise the objects and the background of a picture.

    Nothing is learned: the background is the plain colour of the border; a pixel belongs to the nearest flat patch of one
    colour; a patch's shape is the one whose outline overlaps it most. A patch that fits no shape or colour well is not
    recognised, so that noise and blurred mixtures hold no objects.

    Args:
        picture: RGB, or uint8 ``height width 3``; sides of at least 16 pixels.
        likeliest: Colour -> shapes that a patch of it may be, all shapes for a colour that is not named: every patch of a
            colour is then an object, of whichever of them overlaps it most, however badly it is drawn. When ``None``, an
            object must be drawn well enough to be recognised.

    Raises:
        ValueError: If the picture has another type or shape, or a side below 16 pixels.

    Example:
        >>> from attnguide.shapes.renderer import render
        >>> from attnguide.shapes.scene import Scene, SceneObject
        >>> scene = Scene((SceneObject("circle", "red", 0.3, 0.5, 0.15), SceneObject("star", "blue", 0.7, 0.5, 0.15)))
        >>> verdict = judge(render(scene))
        >>> verdict.names, verdict.background
        (('red circle', 'blue star'), 'white')
    """
    pixels = _as_pixels(picture)
    segmentation = segment(pixels)
    size = pixels.shape[0], pixels.shape[1]
    found = []
    for piece in segmentation.pieces:
        shapes = None if likeliest is None else likeliest.get(piece.color.name, SHAPES)
        found.append(_recognize(piece, size, shapes))
    detections = sorted((d for d in found if d is not None), key=lambda d: d.center)
    background = segmentation.background.name if segmentation.background else None
    return Verdict(tuple(detections), background, segmentation.foreground, _explained(segmentation, detections))
