"""Checks of the samplers' arguments: model, observer, lists of rows and methods, batch size."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from attnguide.engine.observer import Observer
from attnguide.models.base import ModelAdapter
from attnguide.text.parsing import as_whole, shown


def check_model(model: Any) -> None:
    """Refuse a model that is no :class:`ModelAdapter`.

    Raises:
        ValueError: Naming the functions that make one.
    """
    if not isinstance(model, ModelAdapter):
        raise ValueError(f"model must be an adapter, which load_model(name) or adapt(pipeline) makes; got {shown(model)}.")


def check_observer(observer: Any) -> None:
    """Refuse an observer that is no :class:`Observer`, as an object with only some of its hooks would fail during a run.

    Raises:
        ValueError: Naming the expected class.
    """
    if not isinstance(observer, Observer):
        raise ValueError(f"observer must be an Observer (a subclass with the methods that are wanted); got {shown(observer)}.")


def instances(name: str, given: Any, kind: type[Any]) -> list[Any]:
    """The items of an iterable as a list, each checked to be of a class.

    Args:
        name: Argument's name, for errors.
        given: The iterable, read once.
        kind: Class of every item.

    Raises:
        ValueError: If ``given`` is no iterable, or an item is of another class.
    """
    found = list(given) if isinstance(given, Iterable) and not isinstance(given, str | bytes) and _has_axes(given) else None
    if found is None:
        raise ValueError(f"{name} must be a list of {kind.__name__}s; got {shown(given)}.")
    other = [item for item in found if not isinstance(item, kind)]
    if other:
        raise ValueError(f"{name} must be a list of {kind.__name__}s; got {shown(other[0])} in it.")
    return found


def _has_axes(given: Any) -> bool:
    """False for arrays without axes, which have ``__iter__`` but cannot be iterated over."""
    return bool(getattr(given, "ndim", 1) > 0)


def whole_batch_size(batch_size: Any) -> int:
    """The batch size as a Python int.

    Raises:
        ValueError: If it is no whole number of at least 1.
    """
    number = as_whole(batch_size)
    if number is None or number < 1:
        raise ValueError(f"batch_size must be a whole number of at least 1; got {shown(batch_size)}.")
    return number
