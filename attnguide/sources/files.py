"""Maps as files: a picture to look at and paint on, and a ``.npy`` array. Either can be a region's mask again."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from attnguide.types import Region

TARGETS_FOLDER = "targets"
"""Folder of a run with the maps that its rows took from source pictures, ``<row id>/<phrase>.png``."""

_SIDE = 256
"""Smallest side of a map's picture in pixels, large enough to paint on."""


def map_names(regions: Sequence[Region]) -> list[str]:
    """The regions' phrases as file names without suffix, all different."""
    names: list[str] = []
    for region in regions:
        base = re.sub(r"[^\w-]+", "_", region.phrase).strip("_")[:60] or "tokens"
        taken = sum(name == base or name.startswith(f"{base}~") for name in names)
        names.append(f"{base}~{taken + 1}" if taken else base)
    return names


def map_picture(mask: ArrayLike) -> Image.Image:
    """A mask ``height width`` in [0, 1] as a grey picture, each cell a square of whole pixels.

    Used as a region's mask, the picture gives the same values, to within half a grey level, at the map's size and at halves of
    it.

    Raises:
        ValueError: If the mask has other axes or leaves [0, 1].
    """
    cells = np.asarray(mask, dtype=np.float64)
    if cells.ndim != 2 or not cells.size or not (cells.min() >= 0 and cells.max() <= 1):
        raise ValueError(f"mask must be height width in [0, 1]; got the shape {cells.shape}.")
    factor = -(-_SIDE // min(cells.shape))
    grey = np.round(cells * 255).astype(np.uint8)
    return Image.fromarray(grey.repeat(factor, 0).repeat(factor, 1))


def map_bytes(maps: ArrayLike) -> bytes:
    """Maps as the content of a ``.npy`` file, float32."""
    raw = io.BytesIO()
    np.save(raw, np.asarray(maps, dtype=np.float32))
    return raw.getvalue()


def target_path(folder: Path, row: str, regions: Sequence[Region], index: int) -> Path:
    """Path of the picture of a region's recorded map in a run folder.

    Args:
        folder: The run folder.
        row: Id of the row.
        regions: Regions of the row.
        index: Index of the region among them.
    """
    return folder / TARGETS_FOLDER / row / f"{map_names(regions)[index]}.png"
