"""The error of steering a user's pipeline."""

from __future__ import annotations


class SteerError(ValueError):
    """A pipeline or a method cannot be steered, or the pipeline did something that cannot be followed."""
