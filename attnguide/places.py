"""A phrase of the prompt and the place it should take."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from attnguide.text.fields import (
    MOST_CELLS,
    MOST_CFG_SCALE,
    MOST_CORNERS,
    MOST_SEED,
    MOST_STEPS,
    check_text,
    is_finite,
    is_list,
    set_real,
    set_whole,
)
from attnguide.text.parsing import as_real, as_whole, shown, unpacked

if TYPE_CHECKING:
    from torch import Tensor

Box = tuple[float, float, float, float]
"""``(x0, y0, x1, y1)`` as fractions of width and height, from the top left."""

Blob = tuple[float, float, float, float]
"""``(x, y, blur_x, blur_y)``: centre and standard deviations of a Gaussian, as fractions of width and height."""


SourceKind = Literal["seed", "prompt", "invert", "noise"]

SOURCE_KINDS: tuple[SourceKind, ...] = ("seed", "prompt", "invert", "noise")
"""Pictures that a map can be taken from.

The same prompt under another seed; another prompt; a picture of the user's by DDIM inversion, or by noising it step by step.
"""


@dataclass(frozen=True)
class MapSource:
    """A region's place taken from a word's attention map in another picture.

    The word's cross-attention, averaged over heads, over the sites whose maps guidance reads and over a part of the schedule,
    is stretched to [0, 1] and is the region's mask.

    Attributes:
        kind: One of :data:`SOURCE_KINDS`.
        seed: Seed of the other picture's noise; the row's seed when ``None``, required for ``kind="seed"``.
        prompt: Prompt of the other picture; the row's prompt when ``None``, required for ``kind="prompt"``.
        phrase: Words of that prompt whose map is taken; the region's phrase when ``None``.
        image: Path of the picture that is inverted or noised; stretched to the row's size.
        start: Progress from which maps are averaged, in [0, 1).
        stop: Progress up to which maps are averaged, in (0, 1].
        threshold: Cells of at least this share of the map's range become 1, all others 0; a soft map when ``None``.
        cfg_scale: Classifier-free guidance weight of an inversion and its reconstruction; at 1 or below the unconditional half
            is not computed.
        iterations: Fixed-point iterations per step of an inversion.

    Raises:
        ValueError: If something the kind needs is missing, something it has no use for is given, or a number is out of range.
    """

    kind: SourceKind
    seed: int | None = None
    prompt: str | None = None
    phrase: str | None = None
    image: Path | None = None
    start: float = 0.0
    stop: float = 1.0
    threshold: float | None = None
    cfg_scale: float = 1.0
    iterations: int = 0

    def __post_init__(self) -> None:
        if self.kind not in SOURCE_KINDS:
            raise ValueError(f"source must be one of {', '.join(SOURCE_KINDS)}; got {shown(self.kind)}.")
        for name in ("prompt", "phrase"):
            if getattr(self, name) is not None:
                check_text(f"source {name}", getattr(self, name))
        if isinstance(self.image, str):
            object.__setattr__(self, "image", Path(self.image))
        if self.image is not None and not isinstance(self.image, Path):
            raise ValueError(f"source image must be the path of a picture; got {shown(self.image)}.")
        self._check_needs()
        set_whole(self, "source seed", 0, MOST_SEED, name="seed", optional=True)
        set_whole(self, "source iterations", 0, MOST_STEPS, name="iterations")
        for name in ("start", "stop"):
            set_real(self, f"source {name}", name=name)
        set_real(self, "source cfg_scale", name="cfg_scale", most=MOST_CFG_SCALE)
        if not 0 <= self.start < self.stop <= 1:
            raise ValueError(f"source start and stop must be a range within [0, 1]; got {self.start:g} to {self.stop:g}.")
        if self.threshold is not None:
            set_real(self, "source threshold", name="threshold")
            if not 0 < self.threshold <= 1:
                raise ValueError(f"source threshold must lie in (0, 1]; got {self.threshold:g}.")

    def _check_needs(self) -> None:
        needed = self.kind if self.kind in ("seed", "prompt") else "image"
        if getattr(self, needed) is None:
            raise ValueError(f"source {self.kind!r} needs {'an' if needed == 'image' else 'a'} {needed}; got none.")
        if self.image is not None and needed != "image":
            raise ValueError(f"source {self.kind!r} has no use for an image; got '{self.image}'.")


class PlaceError(ValueError):
    """A region's box has no area; the row that it belongs to is otherwise well formed."""


@dataclass(frozen=True, eq=False)
class Region:
    """A phrase of the prompt and its place, given in exactly one form or not at all.

    A region without a place only names a phrase, for guidance that needs no mask (attend-and-excite).

    Attributes:
        phrase: Words of the prompt, as they stand there.
        box: Rectangle ``(x0, y0, x1, y1)`` as fractions of width and height.
        polygon: Corners ``(x, y)`` as fractions of width and height, at least three.
        blob: Gaussian ``(x, y, blur_x, blur_y)`` as fractions; its peak is 1.
        mask: Array ``height width`` of any size, in [0, 1] or ``uint8``; a Pillow picture; or the path of a picture or ``.npy``
            array. A picture's alpha channel (else its luminance) is the mask: white is inside, black outside.
        source: Another picture whose attention map is the place; ``mask`` holds that map once it has been recorded.
        occurrence: Which occurrence of the phrase in the prompt is meant, from 0; when ``None``, the first that no other
            region's phrase covers (``dog`` beside ``hot dog``).
        token_indices: Positions in the tokenized prompt (start token = 0), instead of looking the phrase up.
        weight: Factor on injected maps and on this region's loss, at least 0; at 0 no guidance asks for updates for it either.
        prompt: Prompt of the region, for methods that give each region a text (regional prompts); the phrase when ``None``.
            Other methods do not read it.
        negative_prompt: Negative prompt of the region, for the same methods; the row's negative prompt when ``None``.

    Raises:
        PlaceError: If the box has no area.
        ValueError: If more than one place is given, or a number is out of range.
    """

    phrase: str
    box: Box | None = None
    polygon: tuple[tuple[float, float], ...] | None = None
    blob: Blob | None = None
    mask: Tensor | Path | None = None
    source: MapSource | None = None
    occurrence: int | None = None
    token_indices: tuple[int, ...] | None = None
    weight: float = 1.0
    prompt: str | None = None
    negative_prompt: str | None = None

    def __post_init__(self) -> None:
        check_text("Region's phrase", self.phrase)
        for name in ("prompt", "negative_prompt"):
            if getattr(self, name) is not None:
                check_text(f"Region {self.phrase!r}: {name}", getattr(self, name))
        places = [name for name in ("box", "polygon", "blob", "mask", "source") if getattr(self, name) is not None]
        if len(places) > 1 and places != ["mask", "source"]:
            raise ValueError(f"Region {self.phrase!r} takes one place; got {' and '.join(places)}.")
        if not self.phrase.strip() and self.token_indices is None:
            raise ValueError("Region needs a phrase or token_indices; got neither.")
        self._set_words()
        if self.box is not None:
            object.__setattr__(self, "box", self._numbers("box", self.box, 4, "four numbers x0,y0,x1,y1"))
            _check_box(self.phrase, self.box)
        if self.blob is not None:
            self._set_blob()
        if self.polygon is not None:
            self._set_polygon()
        if self.mask is not None:
            self._set_mask()
        if self.source is not None and not isinstance(self.source, MapSource):
            raise ValueError(f"Region {self.phrase!r}: source must be a MapSource; got {shown(self.source)}.")

    def _set_words(self) -> None:
        occurrence = as_whole(self.occurrence)
        if self.occurrence is not None and (occurrence is None or occurrence < 0):
            raise ValueError(f"Region {self.phrase!r}: occurrence counts from 0; got {shown(self.occurrence)}.")
        object.__setattr__(self, "occurrence", occurrence)
        if (weight := as_real(self.weight)) is None or not is_finite(weight) or weight < 0:
            what = "finite" if weight is None or not is_finite(weight) else "at least 0"
            raise ValueError(f"Region {self.phrase!r}: weight must be {what}; got {shown(self.weight)}.")
        object.__setattr__(self, "weight", weight)
        if self.token_indices is not None:
            found = tuple(map(as_whole, self.token_indices)) if is_list(self.token_indices) else (None,)
            if any(index is None or index < 0 for index in found):
                raise ValueError(
                    f"Region {self.phrase!r}: token_indices must be positions of at least 0; got {shown(self.token_indices)}."
                )
            object.__setattr__(self, "token_indices", found)

    def _numbers(self, name: str, value: Any, length: int, what: str) -> tuple[float, ...]:
        """``length`` real numbers as Python floats, from numbers of Python, numpy or torch or from an array."""
        value = unpacked(value) if getattr(value, "ndim", 0) == 1 else value
        found = tuple(map(as_real, value)) if is_list(value) else ()
        if len(found) != length or None in found:
            raise ValueError(f"Region {self.phrase!r}: {name} must be {what}; got {shown(value)}.")
        return tuple(number for number in found if number is not None)

    def _set_blob(self) -> None:
        blob = self._numbers("blob", self.blob, 4, "four numbers x,y,blur_x,blur_y")
        if not (min(blob[2:]) > 0 and all(map(is_finite, blob)) and all(0 <= v <= 1 for v in blob[:2])):
            raise ValueError(f"Region {self.phrase!r}: blob must be x,y,blur_x,blur_y with a centre in [0, 1]; got {blob}.")
        object.__setattr__(self, "blob", blob)

    def _set_polygon(self) -> None:
        corners: Any = self.polygon
        corners = unpacked(corners)
        if not is_list(corners):
            raise ValueError(f"Region {self.phrase!r}: polygon must be a list of corners x,y; got {shown(corners)}.")
        if not 3 <= len(corners) <= MOST_CORNERS:
            least = "at least 3" if len(corners) < 3 else f"at most {MOST_CORNERS}"
            raise ValueError(f"Region {self.phrase!r}: polygon needs {least} corners; got {len(corners)}.")
        found = tuple(self._numbers("polygon corner", corner, 2, "two numbers x,y") for corner in corners)
        for corner in found:
            if not all(map(is_finite, corner)):
                raise ValueError(f"Region {self.phrase!r}: polygon corners must be finite; got {corner}.")
        object.__setattr__(self, "polygon", found)

    def _set_mask(self) -> None:
        if isinstance(self.mask, str):
            object.__setattr__(self, "mask", Path(self.mask))
        shape = getattr(self.mask, "shape", getattr(self.mask, "size", None))  # an array, or a picture of Pillow's
        if isinstance(self.mask, Path):
            return
        if not isinstance(shape, tuple):
            raise ValueError(f"Region {self.phrase!r}: mask must be a path, a picture or an array; got {shown(self.mask)}.")
        if math.prod(shape) > MOST_CELLS:
            raise ValueError(f"Region {self.phrase!r}: mask must have at most {MOST_CELLS:,} cells; got {tuple(shape)}.")

    @property
    def has_place(self) -> bool:
        """Whether a box, polygon, blob, mask or source is given."""
        return any(place is not None for place in (self.box, self.polygon, self.blob, self.mask, self.source))


def _check_box(phrase: str, box: Box) -> None:
    x0, y0, x1, y1 = box
    if 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1:
        return
    inside = all(0 <= value <= 1 for value in box)
    raise (PlaceError if inside else ValueError)(
        f"Region {phrase!r}: box must be x0,y0,x1,y1 with 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1; "
        f"got {x0:g},{y0:g},{x1:g},{y1:g}{', which has no area' if inside else ''}."
    )
