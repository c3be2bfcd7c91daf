"""Recognises the shape of a mask by its overlap with rotated and slightly stretched templates of every shape."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage

from attnguide.shapes.renderer import object_masks
from attnguide.shapes.scene import SHAPES, Scene, SceneObject

GRID = 44
"""Side of the grid on which masks are compared."""
REACH = 1.2
"""Half the grid's extent, in units of the square root of the mask's area."""
TURNS: dict[str, range] = {
    "circle": range(0, 1),
    "square": range(-45, 45, 5),
    "triangle": range(-45, 46, 5),
    "star": range(-35, 36, 5),
    "cross": range(-45, 45, 5),
    "diamond": range(-45, 46, 5),
    "ring": range(0, 1),
    "heart": range(-45, 46, 5),
}
"""Rotations in degrees that are tried, up to each shape's own symmetry."""
STRETCHES = (0.92, 1.0, 1.09)
"""Ratios of width to height that are tried."""
ROUNDING = 0.12
"""Blur, in units of the radius, of a second form of each shape, as small objects come out of an autoencoder."""


@dataclass(frozen=True)
class Match:
    """The best shape for a mask.

    Attributes:
        shape: Its name.
        overlap: Intersection over union with it, in [0, 1].
        margin: Overlap minus that of the second best shape, in [0, 1].
    """

    shape: str
    overlap: float
    margin: float


def normalize(alpha: np.ndarray, stretch: float = 1.0) -> np.ndarray:
    """Bring a mask to a common place and size: centroid in the middle, area fixed.

    Args:
        alpha: Coverage in [0, 1], ``height width``; must not be empty.
        stretch: Ratio of width to height by which the mask is stretched, at constant area.

    Returns:
        float32 of 0 and 1, ``GRID * GRID``.
    """
    area = float(alpha.sum())
    rows, columns = np.arange(alpha.shape[0]), np.arange(alpha.shape[1])
    y, x = (alpha.sum(1) @ rows) / area, (alpha.sum(0) @ columns) / area
    steps = np.linspace(-REACH, REACH, GRID) * np.sqrt(area)
    grid = np.meshgrid(y + steps * np.sqrt(stretch), x + steps / np.sqrt(stretch), indexing="ij")
    sampled = ndimage.map_coordinates(alpha, np.stack(grid), order=1, mode="constant")
    return (sampled.ravel() > 0.5).astype(np.float32)


@lru_cache(maxsize=1)
def _templates() -> tuple[np.ndarray, np.ndarray]:
    """All templates, ``templates GRID*GRID``, and the index of each one's shape."""
    masks, shapes = [], []
    for index, shape in enumerate(SHAPES):
        for turn in TURNS[shape]:
            obj = SceneObject(shape, "red", 0.5, 0.5, 0.45, float(turn))
            mask = object_masks(Scene((obj,)), side=192)[0].astype(np.float32)
            rounded = ndimage.gaussian_filter(mask, ROUNDING * 0.45 * 192)
            masks += [normalize(form, stretch) for form in (mask, rounded) for stretch in STRETCHES]
            shapes += [index] * 2 * len(STRETCHES)
    return np.stack(masks), np.array(shapes)


def match(alpha: np.ndarray, among: Collection[str] = SHAPES) -> Match:
    """The shape of the world that overlaps most with a mask.

    Args:
        alpha: Coverage in [0, 1], ``height width``; must not be empty.
        among: Shapes to choose from; the margin of an only one is its overlap.
    """
    templates, shapes = _templates()
    mask = normalize(alpha.astype(np.float32))
    common = templates @ mask
    overlaps = common / (templates.sum(1) + mask.sum() - common)
    best = np.zeros(len(SHAPES))
    np.maximum.at(best, shapes, overlaps)
    best[[shape not in among for shape in SHAPES]] = 0.0
    order = best.argsort()
    return Match(SHAPES[order[-1]], float(best[order[-1]]), float(best[order[-1]] - best[order[-2]]))
