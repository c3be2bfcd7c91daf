"""Descriptions and ranges of methods' options, read from docstrings in the source. Importing this needs no torch."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from attnguide.methods import method_info
from attnguide.outside import find_source

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

_TIMED = (*(f"inject{number}" for number in range(1, 9)), "map_injection")
"""Methods whose ``start`` and ``stop`` are not shares of the steps, but of the scheduler's time."""


def option_range(method: str, option: str) -> str:
    """Range of a method's option in words; empty where every value of its type is allowed, or its description says more.

    Example:
        >>> option_range("box_diff", "fraction")
        'above 0, at most 1'
    """
    if method in _TIMED and option in ("start", "stop"):
        return ""
    return RANGES.get(option, "")


def option_meanings(method: str) -> Mapping[str, str]:
    """Descriptions of a method's options by name; options that the class's docstring does not describe are left out.

    Raises:
        ValueError: If the method is unknown.

    Example:
        >>> option_meanings("mask_guidance")["scale"]
        'Factor on the step size, one number or one per row.'
    """
    return _meanings(method_info(method).target)


def method_meaning(method: str) -> str:
    """The first paragraphs of a method's docstring, without its arguments.

    Raises:
        ValueError: If the method is unknown.
    """
    text = _docstring(method_info(method).target)
    return text.partition("\nArgs:")[0].strip()


def _docstring(target: str) -> str:
    node = _class(target)
    return (ast.get_docstring(node) if node is not None else None) or ""


@cache
def _class(target: str) -> ast.ClassDef | None:
    module, name = target.split(":")
    source = find_source(module)
    if source is None:
        return None
    tree = ast.parse(Path(source).read_text(encoding="utf-8"))
    return next((node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name), None)


@cache
def _meanings(target: str) -> Mapping[str, str]:
    """Entries of the docstring's ``Args``, lines joined."""
    found: dict[str, list[str]] = {}
    name, inside = "", False
    for line in _docstring(target).splitlines():
        indent = len(line) - len(line.lstrip())
        if line.rstrip() == "Args:":
            inside = True
        elif inside and line.strip() and indent == 0:
            break
        elif inside and indent == 4 and ":" in line:
            name, _, rest = line.strip().partition(":")
            found[name] = [rest.strip()]
        elif inside and name and line.strip():
            found[name].append(line.strip())
    return {key: " ".join(lines).replace("``", "") for key, lines in found.items()}
