"""What the options of a method mean, read from docstrings in the source. Importing this needs no torch."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from attnguide.methods import method_info
from attnguide.outside import find_source


def option_meanings(method: str) -> Mapping[str, str]:
    """What each option of a method means, by name; options whose class says nothing of them are left out.

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
