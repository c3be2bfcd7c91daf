"""The methods of this package by name: where each lives, what it needs and which options make it, without torch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from html import escape
from typing import Any, Literal

from attnguide.docstrings import arguments
from attnguide.outside import load_target
from attnguide.text.html import table

Family = Literal["guidance", "injection", "baseline"]


def class_at(target: str) -> type:
    """The class that ``module:Class`` names."""
    found: type = load_target(target)
    return found


@cache
def defaults(method: type) -> Mapping[str, Any]:
    """Keyword options of a method's class, with their default values."""
    parameters = inspect.signature(method).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


@dataclass(frozen=True)
class Knob:
    """An option worth tuning per model, and the values to try.

    Attributes:
        option: Name of the option.
        values: Values to try.
        factors: Instead of ``values``, factors on the option's current value.

    Example:
        >>> Knob("step_size", factors=(0.25, 1, 4)).settings(20.0)
        [5.0, 20.0, 80.0]
    """

    option: str
    values: tuple[float, ...] = ()
    factors: tuple[float, ...] = ()

    def settings(self, now: float) -> list[float]:
        """Values to try, where the option's current value is ``now``."""
        return [float(f"{now * factor:.6g}") for factor in self.factors] or list(self.values)


_STEP = Knob("step_size", factors=(0.0625, 0.25, 1, 4, 16))
_SCALE = Knob("scale", factors=(0.25, 0.5, 1, 2, 4))
_STOP = Knob("stop", (0.3, 0.5, 0.8))


def usual_knobs(method: type) -> tuple[Knob, ...]:
    """Default knobs of a class that declares none: ``step_size`` or ``scale``, and ``stop``."""
    return (_STEP if "step_size" in defaults(method) else _SCALE, _STOP)


@dataclass(frozen=True)
class MethodInfo:
    """A method's class, needs and options.

    Attributes:
        target: The class, as ``module:Class``.
        family: ``guidance``, ``injection``, or ``baseline`` for methods above the sampler (best of k).
        summary: One line for lists of methods.
        needs_regions: ``place`` (regions with places), ``phrase`` (regions, with or without places) or ``None``.
        preset: Options that make the class this method; users may override them.
        per_row: Options that may differ between rows of one batch.
        placeless: Option that, when given, makes regions without places enough although ``needs_regions`` is ``place``.
        reads_groups: Whether the method uses a row's nouns and their modifiers (:mod:`attnguide.prompt.pairs`).
        knobs: Options to tune, in this order; empty where there are none to tune by number.
    """

    target: str
    family: Family
    summary: str
    needs_regions: Literal["phrase", "place"] | None = "place"
    preset: Mapping[str, Any] = field(default_factory=dict)
    per_row: frozenset[str] = frozenset({"scale"})
    placeless: str | None = None
    reads_groups: bool = False
    knobs: tuple[Knob, ...] = (_STEP, _STOP)

    def _repr_html_(self) -> str:
        """Family, summary, needs, and options with their defaults and meanings, for notebooks."""
        needs = {"place": "a region with a place", "phrase": "a region's phrase", None: "no region"}[self.needs_regions]
        options = {**defaults(class_at(self.target)), **self.preset}
        said = f"<p>{escape(self.family)}: {escape(self.summary)}; needs {needs}</p>"
        meanings = arguments(self.target)
        return said + table(
            ("option", "default", "meaning"), ((name, value, meanings.get(name, "")) for name, value in options.items())
        )


_WINDOW = (Knob("start", (0.95, 0.9, 0.8)), _SCALE)
"""Knobs of injected maps, which act from the first step down to a timestep."""

_MAPS = "attnguide.injection.hand_maps:MapInjection"


def _hand_map(summary: str, stage: str, operation: str, levels: tuple[int, ...], scale: float) -> MethodInfo:
    preset = {"stage": stage, "operation": operation, "levels": levels, "scale": scale}
    return MethodInfo(_MAPS, "injection", summary, preset=preset, knobs=_WINDOW)


DEFAULT = "forward_layout"
"""Method of a row that names none and has a region with a place: without a gradient, at the cost of a plain picture."""

METHODS: dict[str, MethodInfo] = {
    "mask_guidance": MethodInfo(
        "attnguide.guidance.mask_guidance:MaskGuidance",
        "guidance",
        "each word's attention must fill its region",
        per_row=frozenset({"scale", "until"}),
    ),
    "attend_and_excite": MethodInfo(
        "attnguide.guidance.attend_and_excite:AttendAndExcite",
        "guidance",
        "every named word must be attended to somewhere",
        needs_regions="phrase",
        per_row=frozenset({"scale", "thresholds"}),
    ),
    "box_diff": MethodInfo(
        "attnguide.guidance.box_diff:BoxDiff",
        "guidance",
        "attention strong inside each box, weak outside, and of its outline",
        per_row=frozenset({"scale", "thresholds"}),
    ),
    "layout_guidance": MethodInfo(
        "attnguide.guidance.layout_guidance:LayoutGuidance",
        "guidance",
        "each head's attention to a word inside its box",
        per_row=frozenset({"scale", "until"}),
    ),
    "divide_and_bind": MethodInfo(
        "attnguide.guidance.divide_and_bind:DivideAndBind",
        "guidance",
        "structure in every noun's attention, attributes where their nouns are",
        needs_regions=None,
        per_row=frozenset({"scale", "thresholds"}),
        reads_groups=True,
    ),
    "syngen": MethodInfo(
        "attnguide.guidance.syngen:SynGen",
        "guidance",
        "modifiers attend where their nouns do, and away from other words",
        needs_regions=None,
        reads_groups=True,
    ),
    "a_star": MethodInfo(
        "attnguide.guidance.a_star:AStar",
        "guidance",
        "words share no cells, and keep those they had a step before",
        needs_regions="phrase",
    ),
    "conform": MethodInfo(
        "attnguide.guidance.conform:Conform",
        "guidance",
        "maps of one noun and its modifiers alike, of different nouns apart",
        needs_regions=None,
        reads_groups=True,
    ),
    "r_and_b": MethodInfo(
        "attnguide.guidance.r_and_b:RegionAndBoundary",
        "guidance",
        "the rectangle around strong attention is the box, edges inside it",
        per_row=frozenset({"scale", "until"}),
    ),
    "count_guidance": MethodInfo(
        "attnguide.guidance.count_guidance:CountGuidance",
        "guidance",
        "a word's attention covers the places of all its instances, the background does not see them",
        per_row=frozenset({"scale", "thresholds", "count"}),
        placeless="count",
    ),
    "bounded_attention": MethodInfo(
        "attnguide.guidance.bounded_attention:BoundedAttention",
        "guidance",
        "subjects see their own words and themselves, in both kinds of attention",
        per_row=frozenset({"scale", "until"}),
    ),
    "self_guidance": MethodInfo(
        "attnguide.guidance.self_guidance:SelfGuidance",
        "guidance",
        "centre, size and shape of a word's attention become its region's, through the noise prediction",
        per_row=frozenset({"scale", "source_prompt", "source_image"}),
    ),
    "initno": MethodInfo(
        "attnguide.guidance.initno:InitNO",
        "guidance",
        "initial noise under which every word is attended to and words keep apart, then guidance",
        needs_regions="phrase",
    ),
    "saga": MethodInfo(
        "attnguide.guidance.saga:Saga",
        "guidance",
        "a distribution of latents at an intermediate step under which words are attended to and keep apart",
        needs_regions="phrase",
        knobs=(Knob("learning_rate", factors=(0.25, 1, 4)),),
    ),
    "stable": MethodInfo(
        "attnguide.guidance.stable:Stable",
        "guidance",
        "each word's attention is moved into its region without adding any; a bounded gradient may hold it there",
        knobs=(Knob("room", (0.8, 0.9, 1.0)), Knob("fade", (0.0, 1.0)), Knob("inject_until", (1.0, 2.0, 3.0))),
    ),
    "focus": MethodInfo(
        "attnguide.guidance.focus:Focus",
        "guidance",
        "tokens of one subject attend to one place, subjects to different ones, through the prediction",
        needs_regions="phrase",
    ),
    "self_cross": MethodInfo(
        "attnguide.guidance.self_cross:SelfCross",
        "guidance",
        "cells of one subject do not look at the cells of another, in self-attention",
        needs_regions="phrase",
    ),
    "groundit_global": MethodInfo(
        "attnguide.guidance.r_and_b:RegionAndBoundary",
        "guidance",
        "r_and_b with the numbers of GrounDiT's global update",
        preset={"step_size": 50.0, "stop": 0.5, "iterations": 3, "until": 1e-6, "sharpness": 0.0},
        per_row=frozenset({"scale", "until"}),
    ),
    "inject1": _hand_map("add to probs, largest maps", "probs", "add", (0,), 3.0),
    "inject2": _hand_map("replace probs, largest maps", "probs", "replace", (0,), 3.0),
    "inject3": _hand_map("add to scores, largest maps", "scores", "add", (0,), 30.0),
    "inject4": _hand_map("replace scores, largest maps", "scores", "replace", (0,), 30.0),
    "inject5": _hand_map("add to probs, two largest map sizes", "probs", "add", (0, 1), 3.0),
    "inject6": _hand_map("replace probs, two largest map sizes", "probs", "replace", (0, 1), 3.0),
    "inject7": _hand_map("add to scores, two largest map sizes", "scores", "add", (0, 1), 30.0),
    "inject8": _hand_map("replace scores, two largest map sizes", "scores", "replace", (0, 1), 30.0),
    "map_injection": MethodInfo(_MAPS, "injection", "the family of the eight above, every choice an option", knobs=_WINDOW),
    "paint_with_words": MethodInfo(
        "attnguide.injection.paint_with_words:PaintWithWords",
        "injection",
        "a word's scores are raised where it is painted",
        per_row=frozenset({"scale", "region_seeds"}),
        knobs=(_SCALE,),
    ),
    "dense_diffusion": MethodInfo(
        "attnguide.injection.dense_diffusion:DenseDiffusion",
        "injection",
        "scores gather inside segments and leave what lies outside",
        knobs=(Knob("cross_scale", factors=(0.5, 1, 2, 4)), _STOP),
    ),
    "forward_layout": MethodInfo(
        "attnguide.injection.forward_layout:ForwardLayout",
        "injection",
        "each word's attention is moved into its region, its total kept",
        knobs=(Knob("scale", (0.4, 0.8, 1.0)), _STOP),
    ),
    "prompt_to_prompt": MethodInfo(
        "attnguide.injection.prompt_to_prompt:PromptToPrompt",
        "injection",
        "attention of another prompt's picture, token by token",
        needs_regions=None,
        per_row=frozenset({"scale", "source_prompt", "source_image", "reweight", "word_windows", "blend", "blend_source"}),
        knobs=(),
    ),
    "cross_attention_control": MethodInfo(
        "attnguide.injection.cross_attention_control:CrossAttentionControl",
        "injection",
        "attention as it would be under another prompt on the same latents",
        needs_regions=None,
        per_row=frozenset({"scale", "source_prompt", "weights"}),
        knobs=(),
    ),
    "masactrl": MethodInfo(
        "attnguide.injection.masactrl:MasaCtrl",
        "injection",
        "self-attention is answered by another prompt's picture",
        needs_regions=None,
        per_row=frozenset({"scale", "source_prompt", "source_image", "words", "source_words"}),
        knobs=(),
    ),
    "pag": MethodInfo(
        "attnguide.injection.pag:PerturbedAttention",
        "injection",
        "away from what the network says when a place sees only itself",
        needs_regions=None,
        knobs=(Knob("scale", factors=(0.25, 0.5, 1)),),
    ),
    "plug_and_play": MethodInfo(
        "attnguide.injection.plug_and_play:PlugAndPlay",
        "injection",
        "self-attention scores and features of another prompt's picture",
        needs_regions=None,
        per_row=frozenset({"scale", "source_prompt", "source_image", "negative_prompt"}),
        knobs=(),
    ),
    "regional_prompts": MethodInfo(
        "attnguide.injection.regional_prompts:RegionalPrompts",
        "injection",
        "every region reads a prompt of its own",
        knobs=(Knob("base", (0.1, 0.3, 0.5)), _STOP),
    ),
    "taca": MethodInfo(
        "attnguide.injection.taca:Taca",
        "injection",
        "scores of the image with the text are multiplied in the first steps",
        needs_regions=None,
        knobs=(Knob("gamma", (1.1, 1.2, 1.4)), Knob("stop", (0.1, 0.3))),
    ),
    "best_of_k": MethodInfo(
        "attnguide.sampling.best_of_k:BestOfK",
        "baseline",
        "several seeds, the best picture kept",
        needs_regions=None,
        per_row=frozenset(),
        knobs=(),
    ),
}
"""Every method by its name in CLI, YAML and Python."""
