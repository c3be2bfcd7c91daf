"""Methods by name: look-up, checks, and construction from a row's configuration. Importing this needs no torch."""

from __future__ import annotations

import difflib
import inspect
import math
import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, get_type_hints

from attnguide.method_table import DEFAULT as DEFAULT
from attnguide.method_table import METHODS as METHODS
from attnguide.method_table import Family as Family
from attnguide.method_table import Knob as Knob
from attnguide.method_table import MethodInfo as MethodInfo
from attnguide.method_table import class_at, defaults, usual_knobs
from attnguide.outside import entry_point_targets, is_target, load_target
from attnguide.text.hints import fits, spelt
from attnguide.text.parsing import shown
from attnguide.types import MethodConfig, Sample

if TYPE_CHECKING:
    from attnguide.guidance.base import Guidance
    from attnguide.injection.base import Injection

GROUP = "attnguide.methods"
"""Entry points under which other packages offer methods, as classes or as :class:`MethodInfo`."""


def method_info(name: str) -> MethodInfo:
    """Look a method up: in :data:`METHODS`, as ``module:Class`` of a user's own, or among other packages' entry points.

    Raises:
        ValueError: If no method has this name (the message names the nearest and all others), or if ``module:Class`` cannot be
            imported or is no method.
    """
    if name in METHODS:
        return METHODS[name]
    target = name if is_target(name) else entry_point_targets(GROUP).get(name)
    if target is not None:
        return _outside(target)
    near = difflib.get_close_matches(name, METHODS, 1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    others = ", ".join([*METHODS, *entry_point_targets(GROUP)])
    raise ValueError(f"Unknown method {shown(name)}{hint}; choose from {others}, or name your own as module:Class.")


def is_method(name: str) -> bool:
    """Whether a name is a known method's or has the form ``module:Class``; nothing is imported."""
    return name in METHODS or is_target(name) or name in entry_point_targets(GROUP)


def _outside(target: str) -> MethodInfo:
    """Method info of another package's or a user's class, from its docstring and class attributes.

    Raises:
        ValueError: If it cannot be imported or is no method.
    """
    from attnguide.guidance.base import Guidance
    from attnguide.injection.base import Injection

    found = load_target(target)
    if isinstance(found, MethodInfo):
        return found
    kinds: dict[Family, type] = {"guidance": Guidance, "injection": Injection}
    family = next((name for name, kind in kinds.items() if isinstance(found, type) and issubclass(found, kind)), None)
    if family is None:
        raise ValueError(f"Method {shown(target)} must be a subclass of attnguide.Guidance or attnguide.Injection.")
    summary = (inspect.getdoc(found) or target).split("\n")[0].rstrip(".")
    per_row = frozenset(getattr(found, "per_row", ("scale",)))
    knobs = tuple(getattr(found, "knobs", usual_knobs(found)))
    return MethodInfo(target, family, summary, getattr(found, "needs_regions", "place"), per_row=per_row, knobs=knobs)


def method_class(name: str) -> type:
    """The class behind a method name."""
    return class_at(method_info(name).target)


def method_options(name: str) -> dict[str, Any]:
    """Options of a method, with their defaults."""
    return {**defaults(method_class(name)), **method_info(name).preset}


def build_method(name: str, options: Mapping[str, Any]) -> Guidance | Injection:
    """Construct a method from its options.

    Raises:
        ValueError: If the method or an option is unknown, or an option's value is of a wrong type or out of range.
    """
    known = method_options(name)
    for option, value in options.items():
        if option not in known:
            near = difflib.get_close_matches(option, known, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"Method {name!r} has no option {option!r}{hint}; it has {', '.join(known)}.")
        _check_type(name, option, value)
    try:
        built: Guidance | Injection = method_class(name)(**{**method_info(name).preset, **options})
    except (TypeError, ValueError, OverflowError) as error:
        said = str(error).rstrip(".")
        if any(re.search(rf"\b{re.escape(option)}\b", said) for option in options):
            raise ValueError(f"{said}.") from error
        raise ValueError(f"Method {name!r} with {', '.join(options)}: {said}.") from error  # its parts have names of their own
    for option, value in options.items():
        if isinstance(value, float) and math.isnan(value):  # which few comparisons notice
            raise ValueError(f"Method {name!r}: {option} must be a number; got nan.")
    built.name = name
    return built


def _check_type(name: str, option: str, value: Any) -> None:
    hint = _hints(method_class(name)).get(option, Any)
    several = option in method_info(name).per_row and isinstance(value, list | tuple)  # one value a row
    if not fits(value, hint) and not (several and all(fits(item, hint) for item in value)):
        raise ValueError(f"Method {name!r}: {option} must be {spelt(hint)}; got {shown(value)}.")


@cache
def _hints(method: type) -> Mapping[str, Any]:
    """Types of a method's options; empty if its annotations have names that exist only for type checkers."""
    try:
        return get_type_hints(method.__init__)  # type: ignore[misc]
    except NameError:
        return {}


def check_methods(sample: Sample) -> None:
    """Refuse a row whose methods are unknown or whose regions cannot serve them; needs no torch.

    Raises:
        ValueError: With the row's id.
    """
    for config in sample.methods:
        needed, placeless = method_info(config.name).needs_regions, method_info(config.name).placeless
        if placeless is not None and config.options.get(placeless) is not None:
            needed = "phrase"
        if needed and not sample.regions:
            raise ValueError(f"Method {config.name!r} needs at least one region; row {sample.id!r} has none.")
        if needed == "place" and not any(region.has_place for region in sample.regions):
            raise ValueError(f"Method {config.name!r} needs a region with a place; row {sample.id!r} names phrases only.")
    baseline_of(sample)


def baseline_of(sample: Sample) -> MethodConfig | None:
    """The baseline that a row names, if it names one.

    Raises:
        ValueError: If it names several.
    """
    named = [config for config in sample.methods if method_info(config.name).family == "baseline"]
    if len(named) > 1:
        raise ValueError(f"Only one baseline can be named; got {', '.join(config.name for config in named)}.")
    return named[0] if named else None


def check_options(configs: Iterable[MethodConfig]) -> None:
    """Construct methods as the engine will, so that wrong options are reported before a model is loaded.

    Raises:
        ValueError: Naming the option.
    """
    for config in configs:
        check_one_row(config)
        build_method(config.name, config.options)


def check_one_row(config: MethodConfig) -> None:
    """Refuse a list of per-row values in a configuration, which belongs to one row.

    Raises:
        ValueError: Naming the option, if a configuration holds the values of several rows.
    """
    for option in sorted(method_info(config.name).per_row & config.options.keys()):
        if isinstance(value := config.options[option], list | tuple):
            told = f"{option} must be one value for a row, each row having its own"
            raise ValueError(f"Method {config.name!r}: {told}; got {shown(value)}.")
