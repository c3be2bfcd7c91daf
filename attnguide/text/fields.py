"""Checks that the fields of a region, a row and a source share, and how much they may hold."""

from __future__ import annotations

from typing import Any

from attnguide.text.parsing import as_real, as_whole, check_unicode, shown

MOST_LETTERS = 10_000
"""Of a prompt or a phrase; text encoders read a few hundred."""

MOST_SEED = 2**63 - 1
"""What every generator of random numbers takes."""

MOST_STEPS = 10_000

MOST_CFG_SCALE = 1000.0
"""Of a guidance weight, which is at least 0; from about 30 on pictures are all contrast."""

MOST_SIDE = 8192
"""Of a picture, in pixels."""

MOST_CELLS = 2**26
"""Of a mask, and pixels of a picture that is read."""

MOST_CORNERS = 10_000
"""Of a polygon."""

FOREIGN_NAMES: dict[str, str] = {
    "guidance_scale": "cfg_scale",
    "num_inference_steps": "steps",
    "inference_steps": "steps",
    "negative": "negative_prompt",
    "sampler": "scheduler",
    "generator": "seed",
}
"""What other packages call a setting, and its name here."""


def is_finite(value: float) -> bool:
    """Whether a number is neither infinite nor NaN."""
    return value == value and abs(value) != float("inf")


def is_list(value: Any) -> bool:
    """Whether a value holds others one after the other: a list, tuple, range, or an array of one axis."""
    return isinstance(value, list | tuple | range) or getattr(value, "ndim", 0) == 1


def check_text(name: str, value: Any) -> None:
    """Refuse what is no text, too long, or no valid Unicode.

    Raises:
        ValueError: Naming the field.
    """
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text; got {shown(value)}.")
    if len(value) > MOST_LETTERS:
        raise ValueError(f"{name} must have at most {MOST_LETTERS:,} characters; got {len(value):,}.")
    check_unicode(value, name)
    if "\0" in value:
        raise ValueError(f"{name} must be text without NUL characters; got {shown(value)}.")


def set_whole(owner: Any, what: str, least: int, most: int, *, name: str = "", optional: bool = False) -> None:
    """Check a field that holds a whole number, and keep it as Python's.

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
    """Check a field that holds a finite number, and keep it as Python's.

    Args:
        owner: Whose field it is.
        what: The field, for people.
        name: Of the field, where that is another.
        most: If given, the largest number allowed; the least is then 0.

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
