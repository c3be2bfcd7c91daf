"""Rasterising a region's place to a soft mask at any map size, and checks and descriptions of regions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from attnguide.prompt.masks import Cells, check_mask, mask_values, open_picture
from attnguide.prompt.tokens import find_phrase
from attnguide.prompt.words import find_words, occurrences
from attnguide.types import Blob, Box, MapSource, Region

if TYPE_CHECKING:  # torch loads where a tensor is made, so that bad places are reported without waiting for it
    from jaxtyping import Float
    from torch import Tensor


_STRIPS = 8
"""Horizontal strips per map cell when a polygon is filled."""


def rasterise(region: Region, height: int, width: int) -> Float[Tensor, "height width"]:
    """Draw a region's place as a soft mask: the mean of the place over each cell, in [0, 1].

    Boxes are exact: values times cell area sum to the box's area. Polygons are filled by the even-odd rule. A blob is the cell
    mean of a Gaussian whose peak is 1. Masks are stretched to the size, by area averaging where they shrink and bilinearly
    where they grow, each axis for itself.

    Args:
        region: A region with a place.
        height: Rows of the map.
        width: Columns of the map.

    Returns:
        float32 on the CPU.

    Raises:
        ValueError: If the region has no place, its source has not been recorded, a side is not positive, or the mask is
            unusable (see :func:`~attnguide.prompt.masks.load_mask`).
    """
    import torch

    return torch.from_numpy(_cells(region, height, width).astype(np.float32))


def check_region(region: Region, prompt: str | None = None) -> None:
    """Check a region before any model is loaded.

    Args:
        region: A region, with or without a place.
        prompt: If given, the phrase must occur in it (unless the region has ``token_indices``).

    Raises:
        ValueError: If the mask or the source's picture is unusable, the place has no area or leaves the picture, or the phrase
            does not occur.
    """
    if prompt is not None and region.token_indices is None:
        find_phrase(prompt, region.phrase, region.occurrence)
    if region.source is not None and region.mask is None:
        _check_source(region, region.source, prompt)
        return
    if region.polygon is not None:
        outside = [corner for corner in region.polygon if not all(0 <= value <= 1 for value in corner)]
        if outside:
            raise ValueError(f"Region {region.phrase!r}: polygon corners must lie in [0, 1]; got {outside[0]}.")
    if region.mask is not None:
        check_mask(region.phrase, region.mask)
    if region.has_place and not _cells(region, 64, 64).any():
        raise ValueError(f"Region {region.phrase!r} has no area ({describe_place(region)}).")


def prompt_words(prompt: str) -> tuple[Region, ...]:
    """Every word of a prompt as a region without a place, each in its own occurrence."""
    regions = []
    for span in find_words(prompt):
        word = prompt[slice(*span)]
        found = occurrences(prompt, word)
        if span in found:  # false behind a stray accent
            regions.append(Region(word, occurrence=found.index(span)))
    return tuple(regions)


def source_region(region: Region) -> Region:
    """The words whose map a region's source records, as a region of the source's prompt without a place.

    Raises:
        ValueError: If the region has no source.
    """
    if region.source is None:
        raise ValueError(f"Region {region.phrase!r} has no source.")
    if region.source.phrase is not None:
        return Region(region.source.phrase)
    # token_indices are positions in the row's own prompt.
    tokens = region.token_indices if region.source.prompt is None else None
    return Region(region.phrase, occurrence=region.occurrence, token_indices=tokens)


def absolute_region(region: Region, folder: Path | None = None) -> Region:
    """The region with absolute paths of its files, so that a saved configuration works from any folder.

    Args:
        region: The region.
        folder: Base of relative paths; the working directory when ``None``.
    """
    base = folder or Path()
    if isinstance(region.mask, Path):
        region = replace(region, mask=(base / region.mask).absolute())
    if region.source is not None and region.source.image is not None:
        region = replace(region, source=replace(region.source, image=(base / region.source.image).absolute()))
    return region


def _cells(region: Region, height: int, width: int) -> Cells:
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be at least 1; got {height}x{width}.")
    if region.box is not None:
        return _box_cells(region.box, height, width)
    if region.polygon is not None:
        return _polygon_cells(region.polygon, height, width)
    if region.blob is not None:
        return _blob_cells(region.blob, height, width)
    if region.mask is not None:
        mask = mask_values(region.phrase, region.mask)
        rows, columns = _resampling(mask.shape[0], height), _resampling(mask.shape[1], width)
        return np.clip(rows @ mask @ columns.T, 0, 1)
    if region.source is not None:
        raise ValueError(
            f"Region {region.phrase!r}: the map of its source {region.source.kind!r} has not been recorded; "
            "sample the row with sample_rows, or record it with record_sources."
        )
    raise ValueError(f"Region {region.phrase!r} has no place; give it a box, polygon, blob or mask.")


def _box_cells(box: Box, height: int, width: int) -> Cells:
    x0, y0, x1, y1 = box
    rows = _below(np.array([y0, y1]) * height, height)
    columns = _below(np.array([x0, x1]) * width, width)
    return np.outer(rows[1] - rows[0], columns[1] - columns[0])


def _below(cuts: NDArray[np.floating[Any]], count: int) -> Cells:
    """Share of each of ``count`` unit cells that lies below each cut, shape ``cuts cells``."""
    return np.clip(cuts[:, None] - np.arange(count), 0, 1)


def _polygon_cells(corners: Sequence[tuple[float, float]], height: int, width: int) -> Cells:
    """Sum exact horizontal extents over strips that are cut at every corner, which makes upright rectangles exact."""
    x0, y0 = np.array(corners, dtype=float).T * np.array([[width], [height]])
    x1, y1 = np.roll(x0, -1), np.roll(y0, -1)
    cuts = np.unique(np.concatenate([np.linspace(0, height, height * _STRIPS + 1), np.clip(y0, 0, height)]))
    middle = ((cuts[1:] + cuts[:-1]) / 2)[:, None]
    crosses = (y0 <= middle) != (y1 <= middle)
    slope = (x1 - x0) / np.where(y1 == y0, 1, y1 - y0)
    crossings = np.sort(np.where(crosses, x0 + (middle - y0) * slope, np.inf), axis=1)[:, : crosses.sum(axis=1).max()]
    filled = np.zeros((len(middle), width))
    for index, cut in enumerate(crossings.T):  # inside between the first and second crossing, third and fourth, ...
        filled += np.where(np.isfinite(cut)[:, None], _below(cut, width), 0) * (1 if index % 2 else -1)
    cells = np.zeros((height, width))
    np.add.at(cells, np.floor(middle[:, 0]).astype(int), filled * np.diff(cuts)[:, None])
    return np.clip(cells, 0, 1)


def _blob_cells(blob: Blob, height: int, width: int) -> Cells:
    x, y, blur_x, blur_y = blob
    return np.outer(_gaussian_means(y, blur_y, height), _gaussian_means(x, blur_x, width))


def _gaussian_means(centre: float, blur: float, count: int) -> Cells:
    integral = np.array([math.erf((edge / count - centre) / (blur * math.sqrt(2))) for edge in range(count + 1)])
    return np.diff(integral) * blur * math.sqrt(math.pi / 2) * count


def _resampling(size: int, count: int) -> Cells:
    """Resampling matrix ``count size`` from ``size`` values of an axis to ``count``; each row sums to 1."""
    if count <= size:
        return np.diff(_below(np.arange(count + 1) * (size / count), size), axis=0) * (count / size)
    at = np.clip((np.arange(count) + 0.5) * size / count - 0.5, 0, size - 1)
    return np.clip(1 - np.abs(at[:, None] - np.arange(size)), 0, 1)


def _check_source(region: Region, source: MapSource, prompt: str | None) -> None:
    words, text = source_region(region), source.prompt if source.prompt is not None else prompt
    try:
        if text is not None and words.token_indices is None:
            find_phrase(text, words.phrase, words.occurrence)
        if source.image is not None:
            open_picture(source.image)
    except ValueError as error:
        raise ValueError(f"Region {region.phrase!r}: source: {error}") from error


def place_name(region: Region) -> str:
    """Name of the field that holds a region's place: ``box``, ``polygon``, ``blob``, ``mask`` or ``source``."""
    return next(name for name in ("box", "polygon", "blob", "mask", "source") if getattr(region, name) is not None)


def describe_place(region: Region) -> str:
    """A region's place in a few words, for error messages."""
    if region.box is not None or region.blob is not None:
        return f"{place_name(region)} ({', '.join(map(_digits, region.box or region.blob or ()))})"
    if region.polygon is not None:
        corners = " ".join(f"({_digits(x)}, {_digits(y)})" for x, y in region.polygon[:4])
        return f"polygon {corners}{' ...' if region.polygon[4:] else ''}"
    if isinstance(region.mask, str | Path):
        return f"mask '{region.mask}'"
    return f"mask of shape {tuple(getattr(region.mask, 'shape', ()))}"


def _digits(value: float) -> str:
    """Two decimals, or as many as keep the edges of a narrow place apart."""
    return f"{value:.2f}" if abs(value - round(value, 2)) < 1e-9 else f"{value:.5g}"
