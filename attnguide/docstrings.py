"""What a class says of itself, read from its source without torch: its docstring, and what each argument means."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from attnguide.outside import find_source


def docstring(target: str) -> str:
    """Of the class at ``module:Class``; empty where there is none."""
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
def arguments(target: str) -> Mapping[str, str]:
    """Entries of the ``Args`` of the class at ``module:Class``, by name, lines joined."""
    found: dict[str, list[str]] = {}
    name, inside = "", False
    for line in docstring(target).splitlines():
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
