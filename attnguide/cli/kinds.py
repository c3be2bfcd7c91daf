"""Checks rows with input pictures against the run's model and ControlNets, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attnguide.cli.errors import UsageError
from attnguide.models.controlnets import ANY, read_controlnets, serving
from attnguide.models.folder import pipeline_class
from attnguide.models.kinds import pipeline_name
from attnguide.types import Sample


def check_kinds(samples: Sequence[Sample], config: Mapping[str, Any]) -> None:
    """Refuse a run whose model has no pipeline for a row, or whose ControlNets are not those that rows need.

    Raises:
        UsageError: With the setting's name.
    """
    sound = [sample for sample in samples if sample.problem is None]
    types = dict.fromkeys(control.type for sample in sound for control in sample.control)
    known = [one.type for one in read_controlnets(config["controlnet"] or ())]
    try:
        used = serving(types, known)
    except ValueError as error:
        raise UsageError(str(error)) from error
    for one in known:
        if one not in used.values():
            told = f"the type {one!r}" if one != ANY else "any type"
            raise UsageError(f"controlnet: expected a row with a --control of {told}; none has one")
    name = pipeline_class(config["model"])
    for kind in dict.fromkeys(sample.kind for sample in sound if sample.kind is not None):
        if name is None:
            return
        try:
            pipeline_name(name, kind)
        except ValueError as error:
            raise UsageError(f"model: {error}") from error
