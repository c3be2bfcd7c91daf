"""Draws regions and heat maps over pictures. Needs Pillow and numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from attnguide.prompt.regions import rasterise
from attnguide.text.html import Color as Color
from attnguide.text.html import region_color as region_color
from attnguide.text.html import region_colors
from attnguide.types import Region

_ANCHORS = np.array(
    [(0, 0, 4), (40, 11, 84), (101, 21, 110), (159, 42, 99), (212, 72, 66), (245, 125, 21), (250, 193, 39), (252, 255, 164)],
    dtype=float,
)
"""Colour map of rising lightness, from black over violet and orange to pale yellow."""

_PAPER = (255, 255, 255)


def heat_colors(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Colours of numbers in [0, 1], uint8 ``... 3``; numbers outside are clipped."""
    at = np.clip(np.nan_to_num(np.asarray(values, dtype=float)), 0, 1) * (len(_ANCHORS) - 1)
    low = np.minimum(at.astype(int), len(_ANCHORS) - 2)
    share = (at - low)[..., None]
    mixed: NDArray[np.uint8] = np.rint(_ANCHORS[low] * (1 - share) + _ANCHORS[low + 1] * share).astype(np.uint8)
    return mixed


def heat_map(image: Image.Image, values: NDArray[np.floating], *, alpha: float = 0.65, top: float | None = None) -> Image.Image:
    """Lay a map over a picture, resized smoothly to its size.

    Args:
        image: The picture.
        values: Map ``height width``, at least 0.
        alpha: Opacity of the map, in [0, 1].
        top: Value of the brightest colour; the map's maximum when ``None``.

    Raises:
        ValueError: If ``values`` is not two-dimensional.
    """
    values = np.asarray(values, dtype=np.float32)
    if values.ndim != 2:
        raise ValueError(f"values must have axes height width; got the shape {values.shape}.")
    limit = float(values.max()) if top is None else top
    scaled = Image.fromarray(np.clip(values / max(limit, 1e-12), 0, 1)).resize(image.size, Image.Resampling.BICUBIC)
    return Image.blend(image.convert("RGB"), Image.fromarray(heat_colors(np.asarray(scaled))), alpha)


def draw_regions(image: Image.Image, regions: Sequence[Region], *, labels: bool = True) -> Image.Image:
    """Draw every region's place on a copy of a picture, and each phrase once, at its first place.

    Boxes, polygons and masks are outlined, a blob is an ellipse of one standard deviation. Regions
    without a place are left out.
    """
    drawn = image.convert("RGB")
    pen = ImageDraw.Draw(drawn)
    line = max(2, round(min(drawn.size) / 128))
    colors = region_colors([region.phrase for region in regions])
    corners: dict[str, tuple[tuple[float, float], Color]] = {}
    for color, region in zip(colors, regions, strict=True):
        corner = _draw_place(drawn, pen, region, color, line)
        if corner is not None:
            corners.setdefault(region.phrase, (corner, color))
    for phrase, (corner, color) in corners.items() if labels else ():
        _draw_label(drawn, pen, phrase, corner, color)
    return drawn


def _draw_place(
    image: Image.Image, pen: ImageDraw.ImageDraw, region: Region, color: Color, line: int
) -> tuple[float, float] | None:
    """Draw one place with a white edge, visible on an object of the same colour; returns the corner for its label, if any."""
    width, height = image.width - 1, image.height - 1
    if region.box is not None or region.blob is not None:
        x0, y0, x1, y1 = region.box if region.box is not None else _around(region)
        corners = (x0 * width, y0 * height, x1 * width, y1 * height)
        draw = pen.rectangle if region.box is not None else pen.ellipse
        draw((corners[0] - 1, corners[1] - 1, corners[2] + 1, corners[3] + 1), outline=_PAPER, width=line + 2)
        draw(corners, outline=color, width=line)
        return corners[0], corners[1]
    if region.polygon is not None:
        points = [(x * width, y * height) for x, y in region.polygon]
        for ink, thick in ((_PAPER, line + 2), (color, line)):
            pen.line([*points, points[0]], fill=ink, width=thick, joint="curve")
        return min(x for x, _ in points), min(y for _, y in points)
    if region.mask is not None:
        mask = rasterise(region, image.height, image.width).numpy() >= 0.5
        for ink, thick in ((_PAPER, line + 1), (color, line)):
            edge = _outline(mask, thick)
            image.paste(ink, mask=Image.fromarray(edge.astype(np.uint8) * 255))
        rows, columns = np.nonzero(edge)
        return (float(columns.min()), float(rows.min())) if len(rows) else None
    return None


def _around(region: Region) -> tuple[float, float, float, float]:
    x, y, blur_x, blur_y = region.blob or (0.5, 0.5, 0.5, 0.5)
    return x - blur_x, y - blur_y, x + blur_x, y + blur_y


def _outline(mask: NDArray[np.bool_], line: int) -> NDArray[np.bool_]:
    """Cells of the mask within ``line`` cells of its edge."""
    inner = np.pad(mask, 1)
    for _ in range(line):
        inner[1:-1, 1:-1] &= inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
    return mask & ~inner[1:-1, 1:-1]


def _draw_label(image: Image.Image, pen: ImageDraw.ImageDraw, text: str, corner: tuple[float, float], color: Color) -> None:
    font = _font(max(9, round(min(image.size) / 16)))
    left, top, right, bottom = font.getbbox(text)
    x = max(0, min(corner[0], image.width - (right - left) - 4))
    y = max(0, min(corner[1], image.height - (bottom - top) - 4))
    pen.rectangle((x, y, x + right - left + 3, y + bottom - top + 3), fill=color)
    pen.text((x + 2 - left, y + 2 - top), text, font=font, fill=_PAPER)


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
