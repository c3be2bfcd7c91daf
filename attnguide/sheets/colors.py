"""One colour a method, the same in sheets, curves, reports and notebooks. Importing this needs no torch."""

from __future__ import annotations

import colorsys
import zlib

from attnguide.methods import METHODS
from attnguide.text.html import Color

_PLAIN: Color = (96, 96, 96)
_FIRST, _GOLDEN = 0.391, 0.381966
"""First hue, and hue step between consecutive methods as a share of the circle, so that those of one family lie far apart."""

_SHADES: tuple[tuple[float, float], ...] = ((0.8, 0.75), (0.9, 0.90), (0.7, 0.50), (1.0, 0.50), (0.5, 0.90), (0.6, 0.75))
"""Saturation and value in turn, so that methods 8, 13 or 21 apart, whose hues are close, differ in shade.

Found by a search for the largest least distance of any two methods, with methods that are often compared farther apart."""


def method_color(method: str) -> Color:
    """The colour of a row's method, of a name in :data:`~attnguide.methods.METHODS` or of any other text.

    Args:
        method: Column ``method`` of ``records.csv``; names joined by ``+`` count as one. Grey for ``plain`` and empty text.

    Example:
        >>> method_color("plain"), method_color("inject5") == method_color("inject5")
        ((96, 96, 96), True)
    """
    if method in ("", "plain"):
        return _PLAIN
    names = list(METHODS)
    index = names.index(method) if method in METHODS else len(names) + zlib.crc32(method.encode()) % 997
    saturation, value = _SHADES[index % len(_SHADES)]
    red, green, blue = colorsys.hsv_to_rgb((_FIRST + index * _GOLDEN) % 1, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def css(color: Color) -> str:
    """A colour as ``#rrggbb``, for CSS and matplotlib."""
    return "#{:02x}{:02x}{:02x}".format(*color)
