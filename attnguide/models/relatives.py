"""Img2img, inpainting and ControlNet pipelines of diffusers, built from a model's parts."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import diffusers

from attnguide.inputs import Kind
from attnguide.models.base import ModelAdapter
from attnguide.models.controlnets import serving
from attnguide.models.kinds import SINGLE, pipeline_name


def check_relative(model: ModelAdapter, kind: Kind | None, controls: Sequence[str] = ()) -> None:
    """Refuse rows of a kind that the model's family has no pipeline for, or whose ControlNet is not loaded.

    Raises:
        ValueError: Naming the pipeline or the type of control.
    """
    family = type(model.pipeline).__name__
    pipeline_name(family, kind)
    serving(controls, model.controlnets)
    if len(controls) > 1 and family in SINGLE:
        raise ValueError(f"{family} takes one control picture a row; got {', '.join(controls)}.")


def reads(model: ModelAdapter, kind: Kind, argument: str) -> bool:
    """Whether the call of the pipeline for rows of a kind has an argument of this name."""
    chosen = getattr(diffusers, pipeline_name(type(model.pipeline).__name__, kind))
    return argument in inspect.signature(chosen.__call__).parameters


def relative(model: ModelAdapter, kind: Kind | None, scheduler: Any, controls: Sequence[str] = ()) -> Any:
    """Build the diffusers pipeline for rows of a kind from the model's own parts.

    ``from_pipe`` would cast all parts to one dtype; here they keep theirs.

    Args:
        model: The adapter.
        kind: Pipeline kind of the rows; ``None`` for text to image.
        scheduler: Scheduler of diffusers for the new pipeline.
        controls: Types of the rows' control pictures, in order.

    Raises:
        ValueError: As for :func:`check_relative`.
    """
    check_relative(model, kind, controls)
    own = model.pipeline
    chosen = getattr(diffusers, pipeline_name(type(own).__name__, kind))
    given = {**own.components, "scheduler": scheduler}
    if controls:
        nets = [model.controlnets[name].to(model.device) for name in serving(controls, model.controlnets).values()]
        given["controlnet"] = nets if len(nets) > 1 else nets[0]
    known = inspect.signature(chosen.__init__).parameters
    settings = {name: own.config[name] for name in known if name in own.config and name not in own.components}
    made = chosen(**{name: part for name, part in given.items() if name in known}, **settings)
    made.set_progress_bar_config(disable=True)
    return made
