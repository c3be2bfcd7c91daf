"""Classes that other packages and users' files bring: ``module:Class`` and entry points. Importing this needs no torch."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from typing import Any

from attnguide.text.parsing import shown

_TARGET = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def is_target(name: str) -> bool:
    """Whether a name is written ``module:Class``."""
    return _TARGET.fullmatch(name) is not None


def load_target(target: str) -> Any:
    """What ``module:Class`` names; modules of the working directory are found, too.

    Raises:
        ValueError: If the module cannot be imported or has no such name.
    """
    module, _, name = target.partition(":")
    try:
        with _working_directory():
            found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except ImportError as error:
        raise ValueError(f"{shown(target)} cannot be imported: {error}.") from error
    except AttributeError as error:
        raise ValueError(f"{shown(target)}: module {module!r} has no {name!r}.") from error
    except Exception as error:  # whatever a user's file does when it is imported
        raise ValueError(f"{shown(target)} cannot be imported: {type(error).__name__}: {error}") from error
    return found


def find_source(module: str) -> str | None:
    """The file of a module, which is not imported; ``None`` where there is none."""
    with _working_directory():
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError):  # a parent that is no package; __main__ of an interactive session
            return None
    return None if spec is None else spec.origin


@contextmanager
def _working_directory() -> Iterator[None]:
    """The working directory is searched last, as ``python -m`` would search it first; a command's own script hides it."""
    here = os.getcwd()
    if here in sys.path or "" in sys.path:
        yield
        return
    sys.path.append(here)
    importlib.invalidate_caches()  # the file may be a second old
    try:
        yield
    finally:
        sys.path.remove(here)


@cache
def entry_point_targets(group: str) -> Mapping[str, str]:
    """Name -> ``module:Class`` of what installed packages offer under an entry point group."""
    return {point.name: point.value.replace(" ", "") for point in metadata.entry_points(group=group)}
