"""How a file writes boxes, and boxes as fractions of the picture. Importing this needs no torch."""

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
"""How far a box may leave the picture, in fractions, as rounding and annotators' hands let it; it is cut there."""


@dataclass(frozen=True)
class BoxFormat:
    """How a file writes boxes.

    Attributes:
        order: ``xyxy``: two corners ``x0, y0, x1, y1``; ``xywh``: the upper left corner, width and height.
        unit: ``fractions`` of width and height, ``pixels``, ``permille`` of width and height; ``auto``: fractions where no
            number is above 1, else pixels.
        size: ``(height, width)`` in pixels of the picture that pixels are of; ``None`` where it is not known.
    """

    order: Order = "xyxy"
    unit: Unit = "auto"
    size: tuple[int, int] | None = None

    def of_size(self, height: int, width: int) -> BoxFormat:
        """The same for pictures of a known size, unless one was given."""
        return self if self.size is not None else replace(self, size=(height, width))

    def fractions(self, key: str, numbers: Any) -> tuple[float, float, float, float]:
        """A box as ``(x0, y0, x1, y1)`` in fractions.

        Args:
            key: Where it stands, for messages.
            numbers: Four of them, or text with four, divided by commas.

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
        """What heights and widths are divided by."""
        if self.unit == "permille":
            return 1000.0, 1000.0
        # A picture's size says that the numbers are pixels, as --box-size did before there were other units.
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
    """A format from its name: ``xywh``, ``permille``, or both with a hyphen; what is not said is the default's.

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
    """The box, cut at the picture's edge where it leaves it by little."""
    x0, y0, x1, y1 = (min(max(edge, 0.0), 1.0) if -_OVERSHOOT <= edge <= 1 + _OVERSHOOT else edge for edge in box)
    return x0, y0, x1, y1
