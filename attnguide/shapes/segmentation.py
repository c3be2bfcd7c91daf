"""Segments a picture into plain background and foreground, and the foreground into soft masks of pieces of one colour."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from attnguide.shapes.palette import ColorMatch, background_palette, distances, match_color, object_palette, to_oklab

BACKGROUND_TOLERANCE = 0.06
"""Oklab distance within which a pixel belongs to the background."""
BACKGROUND_SHIFT = 0.08
"""Oklab distance that the whole background may be off its palette colour; white and beige are 0.10 apart."""
BACKGROUND_SHARE = 0.3
"""Least share of the picture that a plain background covers."""
BORDER_SHARE = 0.5
"""Least share of the picture's border that a plain background covers."""
FLATNESS = 48
"""Most that a channel varies (of 255) over the 3x3 neighbourhood of a pixel inside an object."""
EVENNESS = 0.05
"""Largest spread of colour (Oklab, root mean square) within a patch that counts as one colour."""
CORE_PIXELS = 10
"""Fewest flat pixels of an object, in a picture of 128x128."""
CORE_SHARE = 0.15
"""A flat patch smaller than this share of the largest one in the same blob is a fleck, not an object of its own."""
RIM = 4
"""Distance in pixels that an object's soft mask reaches beyond its half-covered edge."""


@dataclass(frozen=True)
class Background:
    """The plain background of a picture.

    Attributes:
        name: A key of ``BACKGROUNDS``.
        rgb: Its colour as found, in [0, 255].
        lab: The same in Oklab.
    """

    name: str
    rgb: np.ndarray
    lab: np.ndarray


@dataclass(frozen=True)
class Piece:
    """One connected piece of one colour.

    Attributes:
        color: Name of the colour of its flat pixels (their median), and how well it fits.
        purity: Share of the piece's inner pixels that are closer to this colour than to any other, in [0, 1].
        leak: Share of its rim where it passes smoothly into another colour of the foreground, as objects never do.
        alpha: Coverage of each pixel in [0, 1], ``height width`` of the window.
        window: Rows and columns of the picture that ``alpha`` spans.
    """

    color: ColorMatch
    purity: float
    leak: float
    alpha: np.ndarray
    window: tuple[slice, slice]


@dataclass(frozen=True)
class Segmentation:
    """Result of :func:`segment`.

    Attributes:
        background: The plain background; ``None`` if the picture has none.
        foreground: Pixels off the background, bool ``height width``; every pixel where there is no background.
        pieces: Candidates for objects.
    """

    background: Background | None
    foreground: np.ndarray
    pieces: tuple[Piece, ...]


def find_background(pixels: np.ndarray, lab: np.ndarray) -> Background | None:
    """The plain colour that covers most of the border and enough of the picture, if there is one.

    Args:
        pixels: uint8 ``height width 3``.
        lab: The same in Oklab.
    """
    names, palette = background_palette()
    border = np.concatenate([lab[0], lab[-1], lab[:, 0], lab[:, -1]])
    middle = np.median(border, axis=0)
    to_plain = distances(middle, palette)
    near = np.linalg.norm(lab - middle, axis=-1) < BACKGROUND_TOLERANCE
    on_border = np.concatenate([near[0], near[-1], near[:, 0], near[:, -1]]).mean()
    if to_plain.min() > BACKGROUND_SHIFT or near.mean() < BACKGROUND_SHARE or on_border < BORDER_SHARE:
        return None
    return Background(names[int(to_plain.argmin())], pixels[near].mean(0), lab[near].mean(0))


def _flat(pixels: np.ndarray) -> np.ndarray:
    """Pixels whose neighbourhood hardly varies: mixed edge pixels and noise are not flat."""
    high, low = ndimage.maximum_filter(pixels, (3, 3, 1)), ndimage.minimum_filter(pixels, (3, 3, 1))
    return (high - low).max(-1) < FLATNESS


def _agree(nearest: np.ndarray, lab: np.ndarray, flat: np.ndarray) -> np.ndarray:
    """Give each flat patch of even colour the one palette colour nearest to its mean.

    A colour about halfway between two of the palette would otherwise fall apart into both.
    """
    patches, count = ndimage.label(flat)
    if not count:
        return nearest
    inside = patches[flat]
    sizes = np.bincount(inside, minlength=count + 1)[1:, None]
    values = lab[flat]
    first, second = (
        np.stack([np.bincount(inside, power[:, axis], count + 1)[1:] for axis in range(3)], axis=1) / sizes
        for power in (values, values**2)
    )
    even = (second - first**2).clip(0).sum(1) < EVENNESS**2
    colors = distances(first.astype(np.float32), object_palette()[1]).argmin(-1)
    agreed = nearest.copy()
    agreed[flat] = np.where(even[inside - 1], colors[inside - 1], nearest[flat])
    return agreed


def _cores(labels: np.ndarray, flat: np.ndarray, foreground: np.ndarray) -> tuple[np.ndarray, int]:
    """Number the flat one-coloured patches that are large enough to be objects, from 1; 0 elsewhere."""
    cores, count = np.zeros(labels.shape, dtype=np.int32), 0
    for color in np.unique(labels[flat]):
        found, number = ndimage.label(flat & (labels == color))
        cores[found > 0] = found[found > 0] + count
        count += number
    if not count:
        return cores, 0
    blobs, _ = ndimage.label(foreground)
    sizes = np.bincount(cores.ravel(), minlength=count + 1)
    blob_of = np.zeros(count + 1, dtype=np.int64)
    blob_of[cores.ravel()] = blobs.ravel()
    largest = np.zeros(blobs.max() + 1, dtype=np.int64)
    np.maximum.at(largest, blob_of[1:], sizes[1:])
    least = max(CORE_PIXELS * labels.size / 128**2, 1)
    keep = (sizes >= least) & (sizes >= CORE_SHARE * largest[blob_of])
    keep[0] = False
    renumber = np.where(keep, np.cumsum(keep), 0).astype(np.int32)
    return renumber[cores], int(keep.sum())


def _coverage(pixels: np.ndarray, background: np.ndarray, colors: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Position of each pixel on the line from the background's colour (0) to its owner's colour (1), clipped to [0, 1]."""
    way = colors - background
    way = way / np.maximum((way**2).sum(-1, keepdims=True), 1.0)
    alpha = np.einsum("hwc,hwc->hw", pixels - background, way[owner])
    return np.clip(alpha, 0.0, 1.0)


@dataclass(frozen=True)
class _Layers:
    """Per-pixel findings that every piece is cut from, each ``height width``."""

    nearest: np.ndarray
    flat: np.ndarray
    alpha: np.ndarray
    owner_color: np.ndarray

    def crop(self, window: tuple[slice, slice]) -> _Layers:
        return _Layers(self.nearest[window], self.flat[window], self.alpha[window], self.owner_color[window])


def _window(box: tuple[slice, slice], size: tuple[int, int]) -> tuple[slice, slice]:
    rows, columns = (
        slice(max(part.start - RIM, 0), min(part.stop + RIM, length)) for part, length in zip(box, size, strict=True)
    )
    return rows, columns


def _piece(inside: np.ndarray, layers: _Layers, color: int, lab: np.ndarray, window: tuple[slice, slice]) -> Piece:
    inner = ndimage.binary_erosion(inside)
    purity = float((layers.nearest[inner] == color).mean()) if inner.any() else 0.0
    own = layers.owner_color == color
    touching = ndimage.binary_dilation(inside) & ~own & layers.flat
    leak = float(touching.sum()) / max(int((inside & ~inner).sum()), 1)
    soft = np.where(own & ndimage.binary_dilation(inside, iterations=RIM), layers.alpha, 0.0)
    return Piece(match_color(lab), purity, leak, soft, window)


def _pieces(pixels: np.ndarray, lab: np.ndarray, background: Background, foreground: np.ndarray) -> list[Piece]:
    names, palette = object_palette()
    nearest = distances(lab, np.concatenate([palette, background.lab[None]])).argmin(-1)
    flat = _flat(pixels) & foreground & (nearest < len(names))
    nearest = _agree(nearest, lab, flat)
    cores, count = _cores(nearest, flat, foreground)
    if not count:
        return []
    # A mixed edge pixel looks like a colour of its own (red on white is pink): it follows the nearest core instead.
    where = ndimage.distance_transform_edt(cores == 0, return_distances=False, return_indices=True)
    owner = cores[tuple(where)] - 1
    colors = np.stack([np.median(pixels[cores == core], axis=0) for core in range(1, count + 1)])
    color_labs = to_oklab(colors.astype(np.uint8))
    color_of = distances(color_labs, palette).argmin(-1)
    alpha = _coverage(pixels.astype(np.float32), background.rgb, colors, owner)
    layers = _Layers(nearest, flat, alpha, color_of[owner])
    pieces = []
    for color in np.unique(color_of):
        found, _ = ndimage.label((alpha > 0.5) & (layers.owner_color == color))
        boxes = ndimage.find_objects(found)
        for number in np.unique(found[cores > 0]):
            if number:
                window = _window(boxes[number - 1], found.shape)
                inside = found[window] == number
                held = np.unique(cores[window][inside & (cores[window] > 0)]) - 1
                pieces.append(_piece(inside, layers.crop(window), int(color), color_labs[held].mean(0), window))
    return pieces


def segment(pixels: np.ndarray) -> Segmentation:
    """Split a picture into its plain background and pieces of one colour.

    Args:
        pixels: uint8 ``height width 3``.
    """
    lab = to_oklab(pixels)
    background = find_background(pixels, lab)
    if background is None:
        return Segmentation(None, np.ones(pixels.shape[:2], dtype=bool), ())
    foreground = np.linalg.norm(lab - background.lab, axis=-1) > BACKGROUND_TOLERANCE
    return Segmentation(background, foreground, tuple(_pieces(pixels, lab, background, foreground)))
