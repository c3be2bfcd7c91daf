"""Networks of judges, from a folder or a hub id."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from attnguide.models.load import quiet_libraries
from attnguide.text.parsing import shown

T = TypeVar("T")


def opened(judge: str, name: str, load: Callable[[str], T]) -> T:
    """What ``load`` makes of a folder or a hub id, in evaluation mode as the library leaves it.

    Args:
        judge: For the message.
        name: Folder or hub id; a hub id is taken from the local cache where the hub is out of reach.
        load: Opens it.

    Raises:
        ValueError: In one sentence, if it cannot be had or opened.
    """
    quiet_libraries()
    if not name or (name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir()):
        raise ValueError(f"{judge}: expected a model's folder or hub id; {shown(name)} is no folder.")
    try:
        return load(str(Path(name).expanduser()) if name.startswith("~") else name)
    except ImportError as error:
        raise ValueError(f"{judge}: {shown(name)} needs a package that is not installed: {_first_line(error)}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:  # of many kinds
        raise ValueError(
            f"{judge}: {shown(name)} cannot be opened here ({_first_line(error)}); give a folder with the model, or a hub id "
            "that is in the local cache or can be downloaded."
        ) from error


def _first_line(error: Exception) -> str:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return text.rstrip(".")[:200]
