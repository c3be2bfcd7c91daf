"""Bounded parsing of files, JSON and numbers into plain values. Importing this needs no torch."""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NoReturn

MOST_BYTES = 64 * 2**20
"""Most bytes of a file that is read as text."""

MOST_DEPTH = 40
"""Most levels of nested lists and mappings."""

MOST_DIGITS = 40
"""Most digits of a whole number."""

WHOLE = re.compile(r"[-+]?[0-9]+")
REAL = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_LONGEST = 240
"""Most characters of a value in an error message."""

_SURROGATE = re.compile("[\ud800-\udfff]")


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlist, self.maxtuple, self.maxdict = 4, 8, 8, 6
        self.maxstring, self.maxlong, self.maxother = 120, 60, 120

    def repr_instance(self, x: Any, level: int) -> str:
        if hasattr(x, "dtype") and hasattr(x, "shape") and x.shape:
            return f"{type(x).__name__} of shape {tuple(x.shape)}"
        return " ".join(super().repr_instance(x, level).split())


_SHORT = _Short()


def shown(value: Any) -> str:
    """A value as error messages show it: its ``repr``, shortened if it is long or deeply nested."""
    text = _SHORT.repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def whole_number(text: str) -> int | None:
    """The whole number in a text (digits with an optional sign, spaces around them); ``None`` for any other text."""
    text = text.strip(" \t\r\n")
    return int(text) if WHOLE.fullmatch(text) and len(text) <= MOST_DIGITS else None


def real_number(text: str) -> float | None:
    """The decimal number in a text (``inf`` and ``nan`` included, spaces around it); ``None`` for any other text."""
    text = text.strip(" \t\r\n")
    if REAL.fullmatch(text) or re.fullmatch(r"[-+]?(inf|infinity|nan)", text, re.IGNORECASE):
        return float(text)
    return None


def as_whole(value: Any) -> int | None:
    """A whole number of Python, numpy or torch as a Python ``int``; ``None`` for anything else, truth values included."""
    if type(value) is int:
        return value
    value = _item(value)
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None


def as_real(value: Any) -> float | None:
    """A number of Python, numpy or torch as a Python ``float``; ``None`` for anything else, truth values included."""
    if type(value) is float:
        return value
    value = _item(value)
    try:
        return float(value) if isinstance(value, Real) and not isinstance(value, bool) else None
    except OverflowError:
        return float("inf")


def unpacked(value: Any) -> Any:
    """An array of numpy or torch as Python lists and numbers; other values, and arrays that cannot be listed, unchanged.

    Not listable are tensors on the device ``meta``, sparse tensors, and masked numpy scalars.
    """
    if not hasattr(value, "tolist"):
        return value
    try:
        found = value.tolist()
    except (RuntimeError, TypeError, ValueError):
        return value
    return value if found is None else found


def _item(value: Any) -> Any:
    """The Python number of a zero-dimensional numpy or torch array; any other value unchanged."""
    return unpacked(value) if getattr(value, "ndim", None) == 0 else value


def read_text(path: Path, what: str) -> str:
    """The text of a file.

    Args:
        path: The file.
        what: Start of error messages: ``Table 'rows.csv'``.

    Raises:
        ValueError: If the file does not exist, cannot be read, is larger than :data:`MOST_BYTES` or not UTF-8.
    """
    try:
        if not path.is_file():
            raise ValueError(f"{what} {'is no file' if path.exists() else 'does not exist'}.")
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{what} cannot be read: {error.strerror or type(error).__name__}.") from error
    if len(data) > MOST_BYTES:
        raise ValueError(f"{what} must have at most {MOST_BYTES // 2**20} MiB; got {path.stat().st_size / 2**20:.0f}.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{what} must be text in UTF-8; got bytes that are no text.") from error


def is_unicode(text: str) -> bool:
    """Whether text can be encoded as UTF-8: false if it holds surrogates, by which Python represents undecodable bytes."""
    return text.isascii() or not _SURROGATE.search(text)


def check_unicode(text: str, what: str) -> None:
    """Check that text can be encoded as UTF-8.

    Raises:
        ValueError: If it is not valid Unicode.
    """
    if not is_unicode(text):
        raise ValueError(f"{what} must be valid Unicode; got {text[:60]!a}.")


def parse_json(text: str) -> Any:
    """Parse JSON.

    Raises:
        ValueError: ``not valid JSON: ...``, if the text is no JSON, nested too deeply, or has a repeated name, NaN or infinity,
            or a number of too many digits.
    """
    try:
        value = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number, parse_int=_bounded)
        check_depth(value)
        if "\\u" in text:  # an escape may stand for half a surrogate pair
            check_unicode(json.dumps(value, ensure_ascii=False), "text")
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error.msg} at column {error.colno}.") from error
    except RecursionError as error:
        raise ValueError(f"not valid JSON: nested more than {MOST_DEPTH} deep.") from error
    except ValueError as error:
        raise ValueError(f"not valid JSON: {error}") from error
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the name {shown(name)} stands twice.")
        found[name] = value
    return found


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number.")


def _bounded(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number must have at most {MOST_DIGITS} digits; got {len(digits)}.")
    return int(digits)


def check_depth(value: Any) -> None:
    """Check that lists and mappings are nested at most :data:`MOST_DEPTH` deep and do not contain themselves.

    Raises:
        ValueError: If they are nested more deeply.
    """
    level = [value]
    for _ in range(MOST_DEPTH):
        inner: dict[int, Any] = {}
        for item in level:
            children = item.values() if isinstance(item, Mapping) else item if isinstance(item, list | tuple) else ()
            inner |= {id(child): child for child in children if isinstance(child, Mapping | list | tuple)}
        level = list(inner.values())
        if not level:
            return
    raise ValueError(f"nested more than {MOST_DEPTH} deep.")


def quotes(value: Any) -> str:
    """Hint `` (in quotes)`` for an error on a value that YAML did not read as text; empty text otherwise."""
    return " (in quotes)" if isinstance(value, bool | int | float) else ""
