"""Telling people of methods whose window no step falls into."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from attnguide.guidance.base import Guidance
from attnguide.injection.base import Injection
from attnguide.schedules import Window, position
from attnguide.types import Step

_UNITS = {"progress": "progress", "timestep": "timestep / 1000", "sigma": "sigma"}


def warn_of_idle(methods: Sequence[Guidance | Injection], steps: Sequence[Step]) -> None:
    """Warn of each method that has a window and will never act: few steps may miss a window in timesteps or sigma.

    A progress window that is empty as it was given (a stop of 0, say) is a choice and no reason to warn.

    Args:
        methods: Of one batch.
        steps: Of its scheduler.
    """
    for method in methods:
        window = getattr(method, "window", None)
        if not isinstance(window, Window) or any(window.active(step) for step in steps):
            continue
        if window.unit == "progress" and window.start == window.stop:
            continue
        reached = ", ".join(f"{position(step, window.unit):.3g}" for step in steps)
        warnings.warn(
            f"Method {method.name!r} does nothing: its window, start {window.start:g} and stop {window.stop:g} in "
            f"{_UNITS[window.unit]}, holds none of the {len(steps)} steps, which lie at {reached}. Widen the window "
            "or take more steps.",
            stacklevel=2,
        )
