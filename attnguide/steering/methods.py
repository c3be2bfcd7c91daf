"""Checks which methods can run inside a pipeline's call: those that need several calls or other pictures cannot."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from attnguide.methods import method_info, method_options
from attnguide.steering.errors import SteerError
from attnguide.types import MethodConfig, Region

_SEVERAL = {
    "best_of_k": "it makes several pictures and keeps one",
    "count_guidance": "with a count it looks at the picture before it makes it",
}
"""Methods that need more than one call of a pipeline, with the reason."""


def fitting_methods(configs: Sequence[MethodConfig], notes: list[str]) -> tuple[MethodConfig, ...]:
    """The methods with options that work inside a pipeline's call.

    Args:
        configs: Methods as asked for.
        notes: List to which a remark is appended where a default is changed; it is also a warning.

    Raises:
        SteerError: If a method cannot run there, naming the way that works.
    """
    return tuple(_fitting(config, notes) for config in configs)


def _fitting(config: MethodConfig, notes: list[str]) -> MethodConfig:
    options = method_options(config.name)
    if config.name in _SEVERAL and (config.name != "count_guidance" or config.options.get("count") is not None):
        raise SteerError(f"Method {config.name!r} cannot run inside a pipeline's call: {_SEVERAL[config.name]}. {_WAY}")
    if method_info(config.name).family == "baseline":
        raise SteerError(f"Method {config.name!r} stands above the making of pictures; no pipeline's call can be it. {_WAY}")
    if options.get("attempts", 1) == 1:
        return config
    asked = config.options.get("attempts", 1)
    if asked != 1:
        raise SteerError(
            f"Method {config.name!r}: attempts must be 1 inside a pipeline's call, which cannot be begun anew; got {asked}. "
            f"{_WAY}"
        )
    told = (
        f"method {config.name!r} makes one attempt: a pipeline's call cannot be begun anew (attempts is {options['attempts']} "
        "elsewhere)"
    )
    if "attempts" not in config.options:
        notes.append(told)
        warnings.warn(f"{told[0].upper()}{told[1:]}.", stacklevel=4)
    return MethodConfig(config.name, {**config.options, "attempts": 1})


def check_places(regions: Sequence[Region]) -> None:
    """Refuse regions whose place is yet to be recorded from another picture's attention.

    Raises:
        SteerError: Naming the phrase.
    """
    for region in regions:
        if region.source is not None and region.mask is None:
            raise SteerError(
                f"The place of {region.phrase!r} is another picture's attention, which is recorded before a row is made, not "
                f"inside a pipeline's call; give a mask, or use attnguide.sample."
            )


_WAY = "Use attnguide.sample on rows without input pictures, which it makes itself."
