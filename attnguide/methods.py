"""Methods by name: what exists, and how a row's configuration becomes objects. Importing this needs no torch."""

from __future__ import annotations

import difflib
import inspect
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from html import escape
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from attnguide.hints import fits, spelt
from attnguide.html import table
from attnguide.outside import entry_point_targets, is_target, load_target
from attnguide.parsing import shown
from attnguide.types import MethodConfig, Sample

if TYPE_CHECKING:
    from attnguide.guidance.base import Guidance
    from attnguide.injection.base import Injection

Family = Literal["guidance", "injection", "baseline"]


GROUP = "attnguide.methods"
"""Entry points under which other packages offer methods, as classes or as :class:`MethodInfo`."""


@dataclass(frozen=True)
class MethodInfo:
    """Where a method lives.

    Attributes:
        target: ``module:Class``.
        family: ``guidance``, ``injection``, or ``baseline`` for what stands above the sampler.
        summary: One line for people.
        needs_regions: ``phrase``, ``place`` or ``None``.
        preset: Options that make the class this method; users may still override them.
        per_row: Options that may differ between rows of one batch.
        placeless: An option with which words are enough where ``needs_regions`` says ``place``.
        reads_groups: Whether it uses a row's nouns and their modifiers (:mod:`attnguide.prompt.pairs`).
    """

    target: str
    family: Family
    summary: str
    needs_regions: Literal["phrase", "place"] | None = "place"
    preset: Mapping[str, Any] = field(default_factory=dict)
    per_row: frozenset[str] = frozenset({"scale"})
    placeless: str | None = None
    reads_groups: bool = False

    def _repr_html_(self) -> str:
        """What it is, and its options with their defaults, for notebooks."""
        needs = {"place": "a region with a place", "phrase": "a region's phrase", None: "no region"}[self.needs_regions]
        options = {**_defaults(_class_at(self.target)), **self.preset}
        said = f"<p>{escape(self.family)}: {escape(self.summary)}; needs {needs}</p>"
        return said + table(("option", "default"), options.items())


_MAPS = "attnguide.injection.hand_maps:MapInjection"


def _hand_map(summary: str, stage: str, operation: str, levels: tuple[int, ...], scale: float) -> MethodInfo:
    preset = {"stage": stage, "operation": operation, "levels": levels, "scale": scale}
    return MethodInfo(_MAPS, "injection", summary, preset=preset)


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
    ),
    "stable": MethodInfo(
        "attnguide.guidance.stable:Stable",
        "guidance",
        "each word's attention is moved into its region without adding any; a bounded gradient may hold it there",
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
    "map_injection": MethodInfo(_MAPS, "injection", "the family of the eight above, every choice an option"),
    "paint_with_words": MethodInfo(
        "attnguide.injection.paint_with_words:PaintWithWords",
        "injection",
        "a word's scores are raised where it is painted",
        per_row=frozenset({"scale", "region_seeds"}),
    ),
    "dense_diffusion": MethodInfo(
        "attnguide.injection.dense_diffusion:DenseDiffusion",
        "injection",
        "scores gather inside segments and leave what lies outside",
    ),
    "forward_layout": MethodInfo(
        "attnguide.injection.forward_layout:ForwardLayout",
        "injection",
        "each word's attention is moved into its region, its total kept",
    ),
    "prompt_to_prompt": MethodInfo(
        "attnguide.injection.prompt_to_prompt:PromptToPrompt",
        "injection",
        "attention of another prompt's picture, token by token",
        needs_regions=None,
        per_row=frozenset({"scale", "source_prompt", "source_image", "reweight", "word_windows", "blend", "blend_source"}),
    ),
    "cross_attention_control": MethodInfo(
        "attnguide.injection.cross_attention_control:CrossAttentionControl",
        "injection",
        "attention as it would be under another prompt on the same latents",
        needs_regions=None,
        per_row=frozenset({"scale", "source_prompt", "weights"}),
    ),
    "masactrl": MethodInfo(
        "attnguide.injection.masactrl:MasaCtrl",
        "injection",
        "self-attention is answered by another prompt's picture",
        needs_regions=None,
        per_row=frozenset({"scale", "source_prompt", "source_image", "words", "source_words"}),
    ),
    "pag": MethodInfo(
        "attnguide.injection.pag:PerturbedAttention",
        "injection",
        "away from what the network says when a place sees only itself",
        needs_regions=None,
    ),
    "plug_and_play": MethodInfo(
        "attnguide.injection.plug_and_play:PlugAndPlay",
        "injection",
        "self-attention scores and features of another prompt's picture",
        needs_regions=None,
        per_row=frozenset({"scale", "source_prompt", "source_image", "negative_prompt"}),
    ),
    "regional_prompts": MethodInfo(
        "attnguide.injection.regional_prompts:RegionalPrompts",
        "injection",
        "every region reads a prompt of its own",
    ),
    "taca": MethodInfo(
        "attnguide.injection.taca:Taca",
        "injection",
        "scores of the image with the text are multiplied in the first steps",
        needs_regions=None,
    ),
    "best_of_k": MethodInfo(
        "attnguide.sampling.best_of_k:BestOfK",
        "baseline",
        "several seeds, the best picture kept",
        needs_regions=None,
        per_row=frozenset(),
    ),
}
"""Every method by its name in CLI, YAML and Python."""


def method_info(name: str) -> MethodInfo:
    """Look a method up: in :data:`METHODS`, as ``module:Class`` of a user's own, or among other packages' entry points.

    Raises:
        ValueError: If there is none of this name; the message names the nearest and all others. Or if ``module:Class`` cannot
            be imported, or is no method.
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
    """Whether a name is that of a method, or written as one of a user's own; nothing is imported."""
    return name in METHODS or is_target(name) or name in entry_point_targets(GROUP)


def _outside(target: str) -> MethodInfo:
    """What a class of another package says of itself.

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
    return MethodInfo(target, family, summary, getattr(found, "needs_regions", "place"), per_row=per_row)


def method_class(name: str) -> type:
    """The class behind a method name."""
    return _class_at(method_info(name).target)


def _class_at(target: str) -> type:
    found: type = load_target(target)
    return found


def method_options(name: str) -> dict[str, Any]:
    """Options a method takes, with their defaults."""
    return {**_defaults(method_class(name)), **method_info(name).preset}


@cache
def _defaults(method: type) -> Mapping[str, Any]:
    parameters = inspect.signature(method).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def build_method(name: str, options: Mapping[str, Any]) -> Guidance | Injection:
    """One method object.

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
    """Types of a method's options; none if its annotations have names that only a type checker sees."""
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
    """Construct methods as the engine will, so that what they refuse is told before a model is loaded.

    Raises:
        ValueError: Naming the option.
    """
    for config in configs:
        check_one_row(config)
        build_method(config.name, config.options)


def check_one_row(config: MethodConfig) -> None:
    """A method takes a list with one value a row of its batch, but a configuration belongs to one row.

    Raises:
        ValueError: Naming the option, if a configuration holds the values of several rows.
    """
    for option in sorted(method_info(config.name).per_row & config.options.keys()):
        if isinstance(value := config.options[option], list | tuple):
            told = f"{option} must be one value for a row, each row having its own"
            raise ValueError(f"Method {config.name!r}: {told}; got {shown(value)}.")
