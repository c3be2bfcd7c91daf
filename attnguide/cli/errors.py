"""Exceptions that end a command, and their exit statuses and one-line messages."""

from __future__ import annotations

import errno

_LONGEST = 1000
"""Most characters of a message; longer ones quote the input, and lose their middle."""

_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOMEM)
"""Error numbers of a full disk, exhausted memory and the like, which are not the user's mistake."""


class UsageError(ValueError):
    """A mistake in the user's arguments or files; printed in one line, exit status 2."""


class RunError(Exception):
    """An error that stopped a run after its checks; printed in one line, exit status 1."""


def one_line(error: BaseException | str) -> str:
    """The message on a single line, without control characters; a long one loses its middle."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    half = _LONGEST // 2
    return text if len(text) <= _LONGEST else f"{text[:half]} ... {text[-half:]}"


def verdict(error: BaseException) -> tuple[int, str]:
    """Exit status and message of the exception that ended a command: 2 if the input is at fault, 1 otherwise."""
    if isinstance(error, UsageError | RunError):
        return (2 if isinstance(error, UsageError) else 1), one_line(error)
    return (2 if _is_of_the_input(error) else 1), reason(error)


def reason(error: BaseException) -> str:
    """One-line message for an exception of the system or a library, which was not worded for users."""
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return one_line(f"{place}{error.strerror}")
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        said = one_line(error)
        advice = "" if "what helps" in said else "; try a smaller --batch-size or size"
        return "out of memory" + (f": {said}" if said != "MemoryError" else "") + advice
    if isinstance(error, RecursionError):
        return "nested too deeply to be read"
    if isinstance(error, UnicodeError):
        return f"expected text in UTF-8; got something else ({one_line(error)})"
    if isinstance(error, OSError | ValueError | OverflowError):
        return one_line(error)
    return one_line(f"internal error: {type(error).__name__}: {error}".rstrip(": ")) + "; --debug shows where"


def _is_of_the_input(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno not in _MACHINE
    return isinstance(error, ValueError | OverflowError | RecursionError)
