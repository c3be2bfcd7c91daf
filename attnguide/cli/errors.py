"""What the user can mend."""

from __future__ import annotations


class UsageError(ValueError):
    """A mistake in what the user asked for; told in one line, exit status 2."""


def one_line(error: BaseException | str) -> str:
    """The message on a single line."""
    return " ".join(str(error).split()) or type(error).__name__
