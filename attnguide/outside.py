"""Classes from other packages and users' files, by ``module:Class`` or entry point. Importing this needs no torch."""

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
    """Whether a name has the form ``module:Class``."""
    return _TARGET.fullmatch(name) is not None


def load_target(target: str) -> Any:
    """Import the object that ``module:Class`` names; modules of the working directory are found, too.

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
    """Path of a module's source file, without importing the module; ``None`` where there is none."""
    with _working_directory():
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError):  # a parent that is no package; __main__ of an interactive session
            return None
    return None if spec is None else spec.origin


@contextmanager
def _working_directory() -> Iterator[None]:
    """Append the working directory to ``sys.path``, from which a console script, unlike ``python -m``, leaves it out."""
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
    """``module:Class`` by name of all entry points that installed packages declare in a group."""
    return {point.name: point.value.replace(" ", "") for point in metadata.entry_points(group=group)}
