"""Small pieces of HTML for notebooks: pictures with boxes, grids, tables. Importing this needs neither torch nor Pillow."""

from __future__ import annotations

import base64
import colorsys
import io
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

Color = tuple[int, int, int]
Named = tuple[str, tuple[float, float, float, float]]
"""A phrase and its box as fractions from the top left."""

_NAMED: dict[str, Color] = {
    "red": (212, 28, 48),
    "orange": (226, 112, 0),
    "yellow": (196, 160, 0),
    "green": (24, 148, 60),
    "blue": (36, 88, 216),
    "purple": (124, 52, 190),
    "pink": (224, 80, 150),
    "brown": (134, 84, 40),
    "black": (24, 24, 24),
    "white": (120, 120, 120),
    "grey": (96, 96, 96),
    "gray": (96, 96, 96),
}
"""Colour word -> colour, dark enough to be read on white."""

_SMALLEST, _LARGEST = 192, 384
"""Least and largest side in pixels at which a picture is shown."""


def region_color(index: int) -> Color:
    """Default colour of a row's region number ``index``; consecutive hues lie far apart."""
    red, green, blue = colorsys.hsv_to_rgb((0.98 + index * 0.381966) % 1, 0.85, 0.85)
    return round(red * 255), round(green * 255), round(blue * 255)


def region_colors(phrases: Sequence[str]) -> list[Color]:
    """Colours of a row's regions, one per phrase: the colour that the phrase names if it is free, else a default hue.

    Example:
        >>> region_colors(["red circle", "dog", "a red square", "dog"])
        [(212, 28, 48), (33, 217, 64), (118, 33, 217), (33, 217, 64)]
    """
    colors: dict[str, Color] = {}
    for index, phrase in enumerate(dict.fromkeys(phrases)):
        named = [_NAMED[word] for word in phrase.lower().split() if word in _NAMED]
        colors[phrase] = next((color for color in named if color not in colors.values()), region_color(index))
    return [colors[phrase] for phrase in phrases]


def png_bytes(image: Image.Image) -> bytes:
    """A picture encoded as PNG."""
    raw = io.BytesIO()
    image.save(raw, "PNG")
    return raw.getvalue()


def figure(image: Image.Image | None, caption: str, boxes: Sequence[Named] = ()) -> str:
    """HTML of a picture over its caption, with boxes in their regions' colours; a grey field if ``image`` is ``None``."""
    if image is None:
        field = f'<div style="width:{_SMALLEST}px;height:{_SMALLEST}px;background:#eee"></div>'
        return _captioned(field, _SMALLEST, caption)
    scale = max(_SMALLEST / max(image.size), min(1.0, _LARGEST / max(image.size)))
    width, height = round(image.width * scale), round(image.height * scale)
    data = base64.b64encode(png_bytes(image)).decode()
    shown = f'<img src="data:image/png;base64,{data}" width="{width}" height="{height}" alt="{escape(caption)}">'
    colors = region_colors([phrase for phrase, _ in boxes])
    drawn = "".join(_box(color, phrase, box) for color, (phrase, box) in zip(colors, boxes, strict=True))
    return _captioned(f'<div style="position:relative;width:{width}px;height:{height}px">{shown}{drawn}</div>', width, caption)


def _captioned(field: str, width: int, caption: str) -> str:
    text = f'<figcaption style="max-width:{width}px;font-size:small">{escape(caption)}</figcaption>'
    return f'<figure style="display:inline-block;margin:4px;vertical-align:top">{field}{text}</figure>'


def _box(ink: Color, phrase: str, box: tuple[float, float, float, float]) -> str:
    x0, y0, x1, y1 = (100 * edge for edge in box)
    color = css_color(ink)
    place = f"left:{x0:.2f}%;top:{y0:.2f}%;width:{x1 - x0:.2f}%;height:{y1 - y0:.2f}%"
    style = f"position:absolute;box-sizing:border-box;border:2px solid {color};{place}"
    label = f'<span style="background:{color};color:white;font-size:x-small;padding:0 2px">{escape(phrase)}</span>'
    return f'<div style="{style}" title="{escape(phrase)}">{label}</div>'


def css_color(color: Color) -> str:
    """A colour as ``rgb(r,g,b)``, for CSS."""
    return "rgb({},{},{})".format(*color)


def table(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """HTML of a table of texts."""
    heads = "".join(f'<th style="text-align:left">{escape(name)}</th>' for name in head)
    cells = ("".join(f'<td style="text-align:left">{escape(str(cell))}</td>' for cell in line) for line in lines)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(f'<tr>{line}</tr>' for line in cells)}</tbody></table>"
