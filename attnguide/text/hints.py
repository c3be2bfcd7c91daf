"""Checks values that come from text (YAML, tables, the command line) against type hints."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin

_WORDS = {float: "a number", int: "a whole number", bool: "true or false", str: "text", type(None): "null"}
_LISTED = {float: "[0.3, 0.7]", int: "[0, 1]", str: "[first, second]"}
_MANY = {float: "numbers", int: "whole numbers", bool: "true or false", str: "texts"}


def fits(value: Any, hint: Any) -> bool:
    """Whether ``value`` has the type of ``hint``; true for hints that are not supported, such as callables.

    ``true`` is no number and text no list, although Python counts them as such. Keys of mappings may be numbers written as
    text, since keys of JSON are always text.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if origin is tuple and Ellipsis not in inner:
        return _is_list(value) and len(value) == len(inner) and all(map(fits, value, inner))
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return _is_list(value) and all(fits(item, inner[0]) for item in value)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(
            _is_key(key, inner[0]) and fits(item, inner[1]) for key, item in value.items()
        )
    return _is_plain(value, hint)


def spelt(hint: Any) -> str:
    """A hint in words, for errors: ``a number, or a list of numbers, like [0.3, 0.7]``."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        named = [spelt(one) for one in inner if one is not type(None)]
        return ", or ".join(dict.fromkeys(named))
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "a mapping" + (f" to {_MANY[inner[1]]}, like {{NAME: VALUE}}" if inner[1] in _MANY else "")
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return "a list" + (f" of {_MANY[inner[0]]}, like {_LISTED[inner[0]]}" if inner[0] in _LISTED else "")
    return _WORDS.get(hint, str(getattr(hint, "__name__", hint)))


def _is_plain(value: Any, hint: Any) -> bool:
    if hint is None:
        return value is None
    if hint is float:
        return isinstance(value, Real) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    return hint is Any or not isinstance(hint, type) or isinstance(value, hint)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _is_key(key: Any, hint: Any) -> bool:
    if hint is not float or not isinstance(key, str):
        return fits(key, hint)
    try:
        return fits(float(key), hint)
    except ValueError:
        return False
