"""Pictures that a row is given beside its words: one to begin from, a mask of what is drawn anew, and control pictures."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal

from attnguide.text.fields import check_text, set_real
from attnguide.text.parsing import real_number, shown

Kind = Literal["img2img", "inpaint", "controlnet", "controlnet_img2img", "controlnet_inpaint"]
"""Pipeline kinds for rows with input pictures; the diffusers class depends on the model's family."""

INPUTS: tuple[str, ...] = ("init_image", "strength", "inpaint_mask", "control")
"""Fields of a row that name input pictures and their use."""

STRENGTHS: dict[str, float] = {"img2img": 0.8, "inpaint": 1.0}
"""Default strengths: img2img changes most of its picture, inpainting draws the mask's inside entirely anew."""

_TYPE = re.compile(r"[A-Za-z0-9_-]{1,60}")


@dataclass(frozen=True)
class Control:
    """A picture that a ControlNet reads.

    Attributes:
        type: Type of control, such as ``canny`` or ``depth``; chooses the ControlNet of the run.
        image: Path of the control picture (edges, depths, poses), already in the form that the ControlNet was trained on.
        scale: Factor on the ControlNet's residuals.

    Raises:
        ValueError: If a field is of the wrong kind.
    """

    type: str
    image: str
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.type, str) or not _TYPE.fullmatch(self.type):
            raise ValueError(f"control type must be letters, digits, '_' and '-'; got {shown(self.type)}.")
        _set_path(self, "image", "control image")
        set_real(self, "control scale", name="scale")

    def to_dict(self) -> dict[str, Any]:
        """A dict of plain values, which :func:`read_control` reads back."""
        plain: dict[str, Any] = {"type": self.type, "image": self.image}
        return plain if self.scale == 1 else {**plain, "scale": self.scale}


def read_control(value: Any) -> Control:
    """A control picture from ``TYPE=IMAGE[:SCALE]``, a mapping with ``type``, ``image`` and ``scale``, or itself.

    Raises:
        ValueError: If it is none of these.
    """
    if isinstance(value, Control):
        return value
    if isinstance(value, Mapping) and {"type", "image"} <= set(value) <= {"type", "image", "scale"}:
        return Control(**value)
    kind, equals, rest = value.partition("=") if isinstance(value, str) else ("", "", "")
    if not equals or not rest:
        raise ValueError(f"control must be TYPE=IMAGE[:SCALE], or a mapping with type, image and scale; got {shown(value)}.")
    image, colon, number = rest.rpartition(":")
    scale = real_number(number) if colon and image else None
    if scale is None and PurePath(image).suffix and not PurePath(number).suffix and "/" not in number:
        raise ValueError(f"control must be TYPE=IMAGE[:SCALE] with a number as scale; got {shown(value)}.")
    return Control(kind.strip(), rest) if scale is None else Control(kind.strip(), image, scale)


def set_inputs(row: Any) -> None:
    """Check a row's fields of :data:`INPUTS`, and keep paths as text and the strength as Python's number.

    Raises:
        ValueError: Beginning with the field.
    """
    for name in ("init_image", "inpaint_mask"):
        if getattr(row, name) is not None:
            _set_path(row, name, name)
    if row.strength is not None:
        set_real(row, "strength")
        if not 0 < row.strength <= 1:
            raise ValueError(f"strength must be above 0 and at most 1; got {shown(row.strength)}.")
    for name in ("strength", "inpaint_mask"):
        if getattr(row, name) is not None and row.init_image is None:
            raise ValueError(f"{name} needs an init_image, which it changes; got {shown(getattr(row, name))} and none.")
    given = row.control
    if not isinstance(given, list | tuple) or not all(isinstance(item, Control) for item in given):
        raise ValueError(f"control must be a tuple of Controls; got {shown(given)}.")
    types = [control.type for control in given]
    if len(set(types)) < len(types):
        raise ValueError(f"control must name every type once; got {', '.join(types)}.")
    object.__setattr__(row, "control", tuple(given))


def kind_of(row: Any) -> Kind | None:
    """Pipeline kind of a row with input pictures; ``None`` for text to image."""
    base = "inpaint" if row.inpaint_mask is not None else "img2img" if row.init_image is not None else ""
    found = "_".join(filter(None, ["controlnet" if row.control else "", base]))
    return found or None  # type: ignore[return-value]


def strength_of(row: Any) -> float | None:
    """The share of the schedule that a row with an init image runs through; ``None`` for a row without one."""
    if row.init_image is None:
        return None
    return STRENGTHS["img2img" if row.inpaint_mask is None else "inpaint"] if row.strength is None else float(row.strength)


def inputs_key(row: Any) -> tuple[Any, ...]:
    """Input pictures and their settings as a key: rows that differ in it give different pictures."""
    return (row.init_image, strength_of(row), row.inpaint_mask, row.control)


def _set_path(owner: Any, name: str, what: str) -> None:
    given = getattr(owner, name)
    if isinstance(given, os.PathLike):
        given = os.fspath(given)
    check_text(what, given)
    if not given.strip():
        raise ValueError(f"{what} must be the path of a picture; got {shown(given)}.")
    object.__setattr__(owner, name, given)
