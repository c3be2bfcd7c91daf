"""What goes wrong while a pipeline of the user's is followed."""

from __future__ import annotations


class SteerError(ValueError):
    """A pipeline did something that cannot be followed; the message says what."""
