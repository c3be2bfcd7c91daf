"""Definitions out of files of other repositories, without what those files import."""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import itertools
import math
import numbers
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

COMMON: Mapping[str, object] = {
    "F": F,
    "itertools": itertools,
    "math": math,
    "nn": nn,
    "np": np,
    "numbers": numbers,
    "torch": torch,
}
"""Modules under the names by which nearly all published code knows them."""


class NotFoundError(LookupError):
    """A clone, a file of it, a definition in a file, or a package that a comparison needs is not there."""


def load(path: Path, names: Collection[str], known: Mapping[str, object] | None = None) -> dict[str, Any]:
    """Execute only some definitions of a file.

    Functions, methods (which then stand alone), classes, and assignments at the top level to a name or to a part of it, all in
    the order of the file; of several with one name the last one stays. Imports of the file are not executed; decorators, which
    are often CUDA's autocast, are dropped; annotations are not evaluated.

    Args:
        path: The file. What is defined is executed, so it has to be one you trust.
        names: What is wanted of it.
        known: What its code refers to, beyond :data:`COMMON`.

    Returns:
        The scope of the code, with what was known and what was defined.

    Raises:
        NotFoundError: If there is no such file, or it does not define a name.
    """
    if not path.is_file():
        raise NotFoundError(str(path))
    scope: dict[str, Any] = {**COMMON, **(known or {})}
    missing = dict.fromkeys(names)
    for name, node in _definitions(ast.parse(path.read_text(encoding="utf-8"), str(path)).body, names):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            node.decorator_list = []
        # What is compiled here inherits this file's __future__ import, by which annotations are not evaluated.
        exec(compile(ast.Module([node], []), str(path), "exec"), scope)
        missing.pop(name, None)
    if missing:
        raise NotFoundError(f"{', '.join(missing)} in {path}")
    return scope


def _definitions(body: Sequence[ast.stmt], names: Collection[str]) -> Iterator[tuple[str, ast.stmt]]:
    """What is defined under one of the names, also inside of classes with other names, in order."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in names:
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from _definitions([part for part in node.body if not isinstance(part, ast.Assign)], names)
        elif isinstance(node, ast.Assign) and (root := _root(node.targets[0])) in names:
            yield root, node


def _root(target: ast.expr) -> str:
    """``a`` of ``a``, ``a.b`` and ``a[0].b``; nothing of other targets."""
    while isinstance(target, ast.Attribute | ast.Subscript):
        target = target.value
    return target.id if isinstance(target, ast.Name) else ""


def require_packages(packages: Mapping[str, str]) -> None:
    """Import modules that published code cannot do without.

    Args:
        packages: Module -> name to install it by.

    Raises:
        NotFoundError: If one is not installed.
    """
    for module, name in packages.items():
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise NotFoundError(f"the package {name}") from error


@contextlib.contextmanager
def tamed() -> Iterator[None]:
    """For code that was written for CUDA: it stays on the CPU, makes float64 tensors, and does not print or warn.

    Tensors and modules, asked to move to CUDA, stay where they are. Everything is as before once the context is left.
    """

    def stay(self: object, *_: object, **__: object) -> object:
        return self

    dtype = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        with (
            patch.object(torch.Tensor, "cuda", stay),
            patch.object(nn.Module, "cuda", stay),
            patch.object(torch.cuda, "is_available", lambda: False),
            contextlib.redirect_stdout(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_default_dtype(dtype)
