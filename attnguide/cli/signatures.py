"""Options of methods, parsed from their source code, so that wrong ones are refused before torch is imported."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from attnguide.methods import method_info, method_options
from attnguide.outside import find_source
from attnguide.text.parsing import shown


@dataclass(frozen=True)
class MethodOption:
    """One option of a method, as its constructor declares it.

    Attributes:
        name: Name of the keyword argument.
        annotation: Source text of its type; ``""`` if it has none.
        default: Source text of its default; ``""`` if it is required.
    """

    name: str
    annotation: str
    default: str


@cache
def _constructor(target: str) -> dict[str, MethodOption] | None:
    """Keyword-only arguments of ``module:Class``; ``None`` if the class inherits its constructor."""
    module, name = target.split(":")
    source = find_source(module)
    if source is None:
        return None
    tree = ast.parse(Path(source).read_text(encoding="utf-8"))
    found = next((node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name), None)
    for item in found.body if found else ():
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            pairs = zip(item.args.kwonlyargs, item.args.kw_defaults, strict=True)
            constants = _constants(tree)
            return {
                argument.arg: MethodOption(
                    argument.arg, _text(argument.annotation), constants.get(text := _text(default), text)
                )
                for argument, default in pairs
            }
    return None


def _constants(tree: ast.Module) -> dict[str, str]:
    """Module-level constants, own and imported from ``attnguide.guidance``: name -> source text of the literal."""
    found: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("attnguide.guidance"):
            wanted = {alias.name for alias in node.names if alias.name.isupper()}
            source = find_source(node.module) if wanted else None
            if source is not None:
                theirs = _constants(ast.parse(Path(source).read_text(encoding="utf-8")))
                found |= {name: text for name, text in theirs.items() if name in wanted}
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        for target in targets:
            if isinstance(target, ast.Name) and isinstance(value, ast.Dict | ast.Constant | ast.Tuple):
                found[target.id] = ast.unparse(value)
    return found


def _text(node: ast.expr | None) -> str:
    return ast.unparse(node) if node is not None else ""


def options_of(method: str) -> dict[str, MethodOption]:
    """Options of a method, by name, with the presets of its entry in the method table as defaults.

    Raises:
        ValueError: If the method is unknown.
    """
    info = method_info(method)
    found = _constructor(info.target)
    if found is None:
        found = {name: MethodOption(name, "", repr(value)) for name, value in method_options(method).items()}
    presets = {
        name: MethodOption(name, found[name].annotation, repr(value)) for name, value in info.preset.items() if name in found
    }
    return {**found, **presets}


def check_value(option: MethodOption, value: Any) -> None:
    """Refuse a value of the wrong type, if the annotation is a ``Literal`` or one of the types in :data:`_KINDS`.

    Raises:
        ValueError: ``expected ...; got ...``.
    """
    if option.annotation.startswith("Literal["):
        choices = ast.literal_eval(f"({option.annotation[len('Literal[') : -1]},)")
        if not isinstance(value, str | int | float | None) or value not in choices:
            raise ValueError(f"expected one of {', '.join(map(str, choices))}; got {shown(value)}")
        return
    kind, _, rest = option.annotation.partition(" | ")
    if kind not in _KINDS or (rest not in ("", "None")) or (rest == "None" and value is None):
        return
    what, fits = _KINDS[kind]
    if not fits(value):
        raise ValueError(f"expected {what}; got {shown(value)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def _is_per_row(value: Any) -> bool:
    return _is_number(value) or (isinstance(value, list | tuple) and bool(value) and all(map(_is_number, value)))


_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "float": ("a finite number", _is_number),
    "int": ("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    "bool": ("true or false", lambda value: isinstance(value, bool)),
    "PerRow": ("a finite number, or a list with one for each row of a batch", _is_per_row),
}
