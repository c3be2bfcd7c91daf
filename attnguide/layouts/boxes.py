"""Box formats of files, and their conversion to fractions of the picture. Importing this needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from attnguide.text.parsing import as_real, real_number, shown

Order = Literal["xyxy", "xywh"]
Unit = Literal["auto", "fractions", "pixels", "permille"]

ORDERS: tuple[Order, ...] = ("xyxy", "xywh")
UNITS: tuple[Unit, ...] = ("fractions", "pixels", "permille")

_OVERSHOOT = 0.01
"""Most that a box may leave the picture, in fractions, by rounding or careless annotation; it is then clipped."""


@dataclass(frozen=True)
class BoxFormat:
    """Format in which a file writes boxes.

    Attributes:
        order: ``xyxy``: two corners ``x0, y0, x1, y1``; ``xywh``: the upper left corner, width and height.
        unit: ``fractions`` of width and height, ``pixels``, or ``permille`` of width and height; ``auto``: pixels if ``size``
            is given or a number is above 1, else fractions.
        size: ``(height, width)`` of the picture in pixels; ``None`` if it is not known.
    """

    order: Order = "xyxy"
    unit: Unit = "auto"
    size: tuple[int, int] | None = None

    def of_size(self, height: int, width: int) -> BoxFormat:
        """The format with this picture size, unless it has one already."""
        return self if self.size is not None else replace(self, size=(height, width))

    def fractions(self, key: str, numbers: Any) -> tuple[float, float, float, float]:
        """A box as ``(x0, y0, x1, y1)`` in fractions.

        Args:
            key: Name of the entry, for errors.
            numbers: Four numbers, or a text of four numbers divided by commas.

        Raises:
            ValueError: If these are not four numbers, or pixels of a picture whose size is not known.
        """
        found = _four(numbers)
        if found is None:
            raise ValueError(f"{key} must be four numbers {self._spelt()}; got {shown(numbers)}.")
        height, width = self._scale(key, found, numbers)
        a, b, c, d = found[0] / width, found[1] / height, found[2] / width, found[3] / height
        return _within((a, b, a + c, b + d) if self.order == "xywh" else (a, b, c, d))

    def _spelt(self) -> str:
        return "x,y,width,height" if self.order == "xywh" else "x0,y0,x1,y1"

    def _scale(self, key: str, found: Sequence[float], given: Any) -> tuple[float, float]:
        """Divisors of vertical and horizontal coordinates that give fractions."""
        if self.unit == "permille":
            return 1000.0, 1000.0
        # A given picture size implies pixels, as --box-size did before there were other units.
        in_pixels = self.unit == "pixels" or (self.unit == "auto" and (self.size is not None or max(found) > 1))
        if not in_pixels:
            return 1.0, 1.0
        if self.size is None:
            raise ValueError(
                f"{key} must be fractions of width and height, or the picture's size in pixels must be given (--box-size); "
                f"got {shown(given)}."
            )
        return float(self.size[0]), float(self.size[1])


def box_format(text: str, default: BoxFormat = BoxFormat()) -> BoxFormat:
    """A format from its name: an order, a unit, or both with a hyphen (``xywh-pixels``); the rest is the default's.

    Raises:
        ValueError: If a part is unknown.
    """
    order, unit = default.order, default.unit
    for part in text.split("-"):
        if part in ORDERS:
            order = part  # type: ignore[assignment]
        elif part in UNITS:
            unit = part  # type: ignore[assignment]
        else:
            raise ValueError(f"expected {' or '.join(ORDERS)}, {', '.join(UNITS)}, or both as xywh-pixels; got {shown(text)}")
    return replace(default, order=order, unit=unit)


def _four(numbers: Any) -> list[float] | None:
    parts = numbers.strip("()[] \t").split(",", 4) if isinstance(numbers, str) else numbers
    if not isinstance(parts, list | tuple) or len(parts) != 4:
        return None
    found = [real_number(part) if isinstance(part, str) else as_real(part) for part in parts]
    return None if None in found else [number for number in found if number is not None]


def _within(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """The box, clipped to the picture if it exceeds it by at most :data:`_OVERSHOOT`."""
    x0, y0, x1, y1 = (min(max(edge, 0.0), 1.0) if -_OVERSHOOT <= edge <= 1 + _OVERSHOOT else edge for edge in box)
    return x0, y0, x1, y1
