"""The option ``quirks``: a method follows its paper, or repeats the slips of the published code."""

from __future__ import annotations

from typing import Literal, get_args

Quirks = Literal["none", "reference"]


def repeats_slips(quirks: str) -> bool:
    """True for ``"reference"``, False for ``"none"``.

    Raises:
        ValueError: If ``quirks`` is neither.
    """
    if quirks not in get_args(Quirks):
        raise ValueError(f"quirks must be one of {', '.join(get_args(Quirks))}; got {quirks!r}.")
    return quirks == "reference"
