"""Descriptions and ranges of methods' options, read from docstrings in the source. Importing this needs no torch."""

from __future__ import annotations

from collections.abc import Mapping

from attnguide.docstrings import arguments, docstring
from attnguide.methods import method_info

_SHARE, _POSITIVE, _ANY_COUNT, _COUNT = "from 0 to 1", "above 0", "0 or more", "1 or more"

RANGES: dict[str, str] = {
    **dict.fromkeys(("stop", "first_stop", "self_stop", "cross_stop", "blend_start", "attention_stop", "feature_stop"), _SHARE),
    **dict.fromkeys(("negative_alpha", "held"), _SHARE),
    **dict.fromkeys(("fraction", "room", "enough"), "above 0, at most 1"),
    **dict.fromkeys(("temperature", "positive_weight", "kl_limit", "max_norm", "most", "power", "spread"), _POSITIVE),
    **dict.fromkeys(("centre_weight", "size_weight", "shape_weight", "appearance_weight", "adaptive"), _ANY_COUNT),
    **dict.fromkeys(("reach", "refinements", "rounds", "last_iterations"), _ANY_COUNT),
    **dict.fromkeys(("first_refinements", "clusters", "attempts", "strongest", "interval", "k"), _COUNT),
    **dict.fromkeys(("at", "restart_at", "base"), "0 or more, below 1"),
    "start": "0 or more, below stop",
    "cross_start": "0 or more, below cross_stop",
    "self_start": "0 or more, below self_stop",
}
"""Ranges by option name, where a method's constructor refuses all other values."""

OWN_RANGES: dict[str, dict[str, str]] = {
    "a_star": {"threshold": "0 or more, below 1"},
    "attend_and_excite": {"max_refinements": _COUNT},
    "bounded_attention": {"iterations": _COUNT, "refine_every": _COUNT},
    "box_diff": {"max_refinements": _COUNT},
    "count_guidance": {"max_refinements": _COUNT},
    "cross_attention_control": dict.fromkeys(("tokens_start", "tokens_stop", "spatial_start", "spatial_stop"), _ANY_COUNT),
    "divide_and_bind": {"max_refinements": _COUNT},
    "forward_layout": {"scale": _SHARE},
    "groundit_global": {"iterations": _COUNT, "sharpness": _ANY_COUNT},
    "initno": {"iterations": _ANY_COUNT, "max_refinements": _ANY_COUNT, "learning_rate": _POSITIVE},
    "layout_guidance": {"iterations": _COUNT},
    "masactrl": {"source_iterations": _ANY_COUNT, "threshold": "above 0, below 1"},
    "mask_guidance": {"iterations": _ANY_COUNT},
    "plug_and_play": {"source_iterations": _ANY_COUNT},
    "prompt_to_prompt": {"source_iterations": _ANY_COUNT},
    "r_and_b": {"iterations": _COUNT, "sharpness": _ANY_COUNT},
    "regional_prompts": {"scale": _SHARE},
    "saga": {"iterations": _ANY_COUNT, "learning_rate": _ANY_COUNT},
    "self_cross": {"iterations": _ANY_COUNT, "max_refinements": _ANY_COUNT},
    "self_guidance": {"sharpness": _POSITIVE},
    "stable": {"scale": _SHARE, "fade": _ANY_COUNT, "inject_until": _ANY_COUNT},
}
"""Ranges by method and option, where an option's range in one method differs from :data:`RANGES`."""

_TIMED = (*(f"inject{number}" for number in range(1, 9)), "map_injection")
"""Methods whose ``start`` and ``stop`` are timesteps / 1000 by default, not progress."""


def option_range(method: str, option: str) -> str:
    """Range of a method's option in words; empty where every value of its type is allowed, or its description says more.

    Example:
        >>> option_range("box_diff", "fraction")
        'above 0, at most 1'
    """
    if method in _TIMED and option in ("start", "stop"):
        return _ANY_COUNT
    return OWN_RANGES.get(method, {}).get(option) or RANGES.get(option, "")


def option_meanings(method: str) -> Mapping[str, str]:
    """Descriptions of a method's options by name; options that the class's docstring does not describe are left out.

    Raises:
        ValueError: If the method is unknown.

    Example:
        >>> option_meanings("mask_guidance")["scale"]
        'Factor on the step size, one number or one per row.'
    """
    return arguments(method_info(method).target)


def method_meaning(method: str) -> str:
    """The first paragraphs of a method's docstring, without its arguments.

    Raises:
        ValueError: If the method is unknown.
    """
    text = docstring(method_info(method).target)
    return text.partition("\nArgs:")[0].strip()
