"""Checks shared by the fields of regions, rows and sources, and their limits."""

from __future__ import annotations

from typing import Any

from attnguide.text.parsing import as_real, as_whole, check_unicode, shown

MOST_LETTERS = 10_000
"""Most characters of a prompt or a phrase; text encoders read a few hundred tokens."""

MOST_SEED = 2**63 - 1
"""Largest seed that every random number generator in use takes."""

MOST_STEPS = 10_000

MOST_CFG_SCALE = 1000.0
"""Largest CFG scale; pictures are all contrast from about 30 on."""

MOST_SIDE = 8192
"""Longest side of a picture in pixels."""

MOST_CELLS = 2**26
"""Most cells of a mask, and most pixels of a picture that is read."""

MOST_CORNERS = 10_000
"""Most corners of a polygon."""

FOREIGN_NAMES: dict[str, str] = {
    "guidance_scale": "cfg_scale",
    "num_inference_steps": "steps",
    "inference_steps": "steps",
    "negative": "negative_prompt",
    "sampler": "scheduler",
    "generator": "seed",
}
"""Name of a setting in other packages -> its name here."""


def is_finite(value: float) -> bool:
    """Whether a number is neither infinite nor NaN."""
    return value == value and abs(value) != float("inf")


def is_list(value: Any) -> bool:
    """Whether a value is a list, tuple, range, or an array with one axis."""
    return isinstance(value, list | tuple | range) or getattr(value, "ndim", 0) == 1


def check_text(name: str, value: Any) -> None:
    """Check that a value is text of valid Unicode, without NUL and at most :data:`MOST_LETTERS` long.

    Raises:
        ValueError: With the field's name.
    """
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text; got {shown(value)}.")
    if len(value) > MOST_LETTERS:
        raise ValueError(f"{name} must have at most {MOST_LETTERS:,} characters; got {len(value):,}.")
    check_unicode(value, name)
    if "\0" in value:
        raise ValueError(f"{name} must be text without NUL characters; got {shown(value)}.")


def set_whole(owner: Any, what: str, least: int, most: int, *, name: str = "", optional: bool = False) -> None:
    """Check that a field of ``owner`` is a whole number in [least, most], and set it as a Python ``int``.

    Raises:
        ValueError: Naming the field as ``what`` says.
    """
    given = getattr(owner, name or what)
    if given is None and optional:
        return
    number = as_whole(given)
    if number is None:
        raise ValueError(f"{what} must be a whole number; got {shown(given)}.")
    if not least <= number <= most:
        raise ValueError(
            f"{what} must be at {'least ' + str(least) if number < least else f'most {most}'}; got {shown(number)}."
        )
    object.__setattr__(owner, name or what, number)


def set_real(owner: Any, what: str, *, name: str = "", most: float | None = None) -> None:
    """Check that a field is a finite number, and set it as a Python ``float``.

    Args:
        owner: Object that has the field.
        what: Name of the field in errors.
        name: Attribute name of the field, if it is not ``what``.
        most: Largest number allowed, with 0 as the least; no bounds when ``None``.

    Raises:
        ValueError: Naming the field as ``what`` says.
    """
    given = getattr(owner, name or what)
    number = as_real(given)
    if number is None or not is_finite(number):
        raise ValueError(f"{what} must be a finite number; got {shown(given)}.")
    if most is not None and not 0 <= number <= most:
        raise ValueError(f"{what} must lie in [0, {most:g}]; got {shown(given)}.")
    object.__setattr__(owner, name or what, number)
