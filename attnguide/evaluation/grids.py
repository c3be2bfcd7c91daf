"""Settings of an arm that tuning tries: values of one declared knob after the other. Importing this needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from attnguide.evaluation.arms import Arm
from attnguide.methods import Knob, build_method, method_info, method_options
from attnguide.types import MethodConfig


def knobs_of(arm: Arm) -> list[tuple[int, Knob]]:
    """Knobs of an arm's methods, each with the index of its method, in order.

    Left out are knobs whose option is not a number at present, and ``stop`` if the method's window is not in units of progress.
    """
    return [
        (place, knob)
        for place, config in enumerate(arm.methods)
        for knob in method_info(config.name).knobs
        if isinstance(now := _now(config, knob), int | float) and not isinstance(now, bool) and _fits(config, knob)
    ]


def _now(config: MethodConfig, knob: Knob) -> object:
    return config.options.get(knob.option, method_options(config.name).get(knob.option))


def _fits(config: MethodConfig, knob: Knob) -> bool:
    unit = {**method_options(config.name), **config.options}.get("unit", "progress")
    return knob.option != "stop" or unit == "progress"


def candidates(arm: Arm, methods: Sequence[MethodConfig], place: int, knob: Knob) -> list[Arm]:
    """The arm with the current value of a knob, then with each other value; values that the method refuses are left out.

    Args:
        arm: The arm as the user gave it.
        methods: Its methods with the values chosen so far.
        place: Index of the method that has the knob.
        knob: The knob.
    """
    config = methods[place]
    now = _now(config, knob)
    assert isinstance(now, int | float)  # as knobs_of has it
    found = [_named(arm, methods)]
    for value in knob.settings(float(now)):
        changed = replace(config, options={**config.options, knob.option: value})
        if value != now and _takes(changed):
            found.append(_named(arm, [*methods[:place], changed, *methods[place + 1 :]]))
    return found


def _takes(config: MethodConfig) -> bool:
    try:
        build_method(config.name, config.options)
    except ValueError:
        return False
    return True


def _named(arm: Arm, methods: Sequence[MethodConfig]) -> Arm:
    """A setting of an arm, named by the options that differ from the user's."""
    told = changes(arm, methods)
    return Arm(f"{arm.name} {told}" if told else arm.name, tuple(methods))


def changes(arm: Arm, methods: Sequence[MethodConfig]) -> str:
    """Options of an arm that tuning changed, as ``step_size=80 stop=0.8``; with the method's name if it has several."""
    return " ".join(
        f"{f'{after.name}.' if len(methods) > 1 else ''}{option}={value:g}"
        for before, after in zip(arm.methods, methods, strict=True)
        for option, value in after.options.items()
        if value != before.options.get(option)
    )
