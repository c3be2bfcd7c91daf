"""Opens the networks of judges from a folder or a hub id."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from attnguide.models.load import quiet_libraries
from attnguide.text.parsing import shown

T = TypeVar("T")


def opened(judge: str, name: str, load: Callable[[str], T]) -> T:
    """Call ``load`` with a folder or a hub id, and turn its failures into one-sentence errors.

    Args:
        judge: Name of the judge, for errors.
        name: Folder or hub id; a hub id is read from the local cache if the hub is out of reach.
        load: Opens the model.

    Raises:
        ValueError: If the model does not exist or cannot be opened.
    """
    quiet_libraries()
    if not name or (name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir()):
        raise ValueError(f"{judge}: expected a model's folder or hub id; {shown(name)} is no folder.")
    try:
        return load(str(Path(name).expanduser()) if name.startswith("~") else name)
    except ImportError as error:
        raise ValueError(f"{judge}: {shown(name)} needs a package that is not installed: {_first_line(error)}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:  # foreign files fail in many ways
        raise ValueError(
            f"{judge}: {shown(name)} cannot be opened here ({_first_line(error)}); give a folder with the model, or a hub id "
            "that is in the local cache or can be downloaded."
        ) from error


def _first_line(error: Exception) -> str:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return text.rstrip(".")[:200]
