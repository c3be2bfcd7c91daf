"""The Oklab colour space, and the nearest named colour of the shapes world."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from attnguide.shapes.scene import BACKGROUNDS, COLORS

_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ],
    dtype=np.float32,
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ],
    dtype=np.float32,
)


@lru_cache(maxsize=1)
def _linear_light() -> np.ndarray:
    values = np.arange(256) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4).astype(np.float32)


def to_oklab(pixels: np.ndarray) -> np.ndarray:
    """Oklab coordinates of sRGB bytes (https://bottosson.github.io/posts/oklab/); Euclidean distance there follows the eye.

    Args:
        pixels: uint8, last axis RGB.

    Returns:
        float32 of the same shape: lightness in [0, 1], then two opponent axes in about [-0.3, 0.3].
    """
    cones = _linear_light()[pixels] @ _TO_CONES.T
    return np.cbrt(cones) @ _TO_LAB.T


@lru_cache(maxsize=1)
def object_palette() -> tuple[tuple[str, ...], np.ndarray]:
    """Names and Oklab coordinates (``colors 3``) of the object colours."""
    return tuple(COLORS), to_oklab(np.array(list(COLORS.values()), dtype=np.uint8))


@lru_cache(maxsize=1)
def background_palette() -> tuple[tuple[str, ...], np.ndarray]:
    """Names and Oklab coordinates (``backgrounds 3``) of the plain backgrounds."""
    return tuple(BACKGROUNDS), to_oklab(np.array(list(BACKGROUNDS.values()), dtype=np.uint8))


def distances(lab: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Oklab distance of every pixel to every palette colour: ``... 3`` and ``colors 3`` to ``... colors``."""
    squared = (lab**2).sum(-1, keepdims=True) + (palette**2).sum(-1) - 2 * lab @ palette.T
    return np.sqrt(np.maximum(squared, 0.0))


@dataclass(frozen=True)
class ColorMatch:
    """The named colour nearest to a seen colour, and how well it fits.

    Attributes:
        name: The nearest key of ``COLORS``.
        distance: Oklab distance to it.
        margin: Distance to the second nearest colour minus ``distance``.
        strength: Chroma relative to the named colour's; below 1 if faded, as in an average of pictures.
    """

    name: str
    distance: float
    margin: float
    strength: float


def match_color(lab: np.ndarray) -> ColorMatch:
    """Name one colour, given in Oklab (``3``)."""
    names, palette = object_palette()
    away = distances(lab, palette)
    first, second = away.argsort()[:2]
    strength = np.hypot(lab[1], lab[2]) / np.hypot(palette[first, 1], palette[first, 2])
    return ColorMatch(names[first], float(away[first]), float(away[second] - away[first]), float(strength))
