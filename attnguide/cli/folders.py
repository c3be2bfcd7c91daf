"""Output folders of commands: paths are resolved once, and tested by writing before anything is loaded."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from attnguide.cli.errors import UsageError, one_line
from attnguide.cli.values import words
from attnguide.text.parsing import shown

_TRIED = 1 << 16
"""Size in bytes of the file that :func:`probe` writes."""

_LONGEST = 200
"""Most characters of a path in an error message."""


def local_path(value: Any) -> str:
    """A local path with ``~``, links and ``..`` resolved, so that every library reads it alike.

    Raises:
        ValueError: If it is a URL or too long, or a link in it is dangling.
    """
    text = words(value)
    if "://" in text or "::" in text or "\0" in text:
        raise ValueError(f"expected a path on this machine; got {text!r}")
    given = Path(os.path.expanduser(text))
    if _too_long(given):
        raise ValueError(f"expected a path that can be made; {text[:_LONGEST]!r}... is too long")
    dangling = next((str(path) for path in (given, *given.parents) if _leads_nowhere(path)), None)
    if dangling is not None:
        raise ValueError(f"expected a path that can be made; {dangling!r} is a link that leads nowhere")
    return _shown(os.path.realpath(given))


def _too_long(path: Path) -> bool:
    try:
        os.lstat(path)
    except OSError as error:
        return error.errno == errno.ENAMETOOLONG
    return False


def _leads_nowhere(path: Path) -> bool:
    return os.path.islink(path) and not os.path.exists(path)


def _shown(path: str) -> str:
    """The path, relative to the working directory if it lies below it."""
    below = os.path.relpath(path, os.path.realpath(os.curdir))
    return path if below == os.curdir or below.startswith(("..", "~", "-")) else below


def probe(folder: Path, longest: str = "config.yaml") -> None:
    """Make a folder, write a file in it, and remove both again.

    Args:
        folder: The run folder.
        longest: The longest path below it that the run will write.

    Raises:
        UsageError: If the folder cannot be made or written to; nothing is left behind.
    """
    target = folder / longest
    made: list[Path] = []
    try:
        if _too_long(target):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        _make(target.parent, made)
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".", suffix=target.name) as file:
            file.write(bytes(_TRIED))
            file.flush()
    except (OSError, ValueError) as error:
        raise UsageError(_refusal(folder, error)) from error
    finally:
        _remove(made)


def timed(*before: str) -> str:
    """The name of a new folder: what it holds and when it was begun, to the millisecond.

    A loop in a shell begins two runs in the same second, and each wants a folder of its own.
    """
    now = datetime.now()
    return "_".join([*before, f"{now:%Y-%m-%d_%H-%M-%S}-{now.microsecond // 1000:03d}"])


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """A hidden folder inside ``folder``; on success its files move up into ``folder``, on an exception all is removed."""
    made: list[Path] = []
    try:
        _make(folder, made)
        temporary = Path(tempfile.mkdtemp(dir=folder, prefix="."))
        try:
            yield temporary
            for path in temporary.iterdir():
                os.replace(path, folder / path.name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except BaseException:
        _remove(made)
        raise


def _make(folder: Path, made: list[Path]) -> None:
    """Make a folder and its parents; append each new one to ``made``, outermost first."""
    missing = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        made.append(path)
    folder.mkdir(exist_ok=True)


def _remove(made: Sequence[Path]) -> None:
    for path in reversed(made):
        with contextlib.suppress(OSError):  # not empty: another process has written into it
            path.rmdir()


def _refusal(folder: Path, error: Exception) -> str:
    file = next((path for path in (folder, *folder.parents) if os.path.lexists(path) and not os.path.isdir(path)), None)
    why = f"{str(file)!r} is a file" if file is not None else getattr(error, "strerror", None) or one_line(error)
    name = str(folder) if len(str(folder)) <= _LONGEST else f"{str(folder)[:_LONGEST]}..."
    return f"out: folder {name!r} cannot be written ({why}); choose another"


def existing_folder(name: str, path: str) -> Path:
    """The folder that a setting names.

    Raises:
        UsageError: If it is no folder.
    """
    found = Path(path).expanduser()
    if not found.is_dir():
        raise UsageError(f"{name}: expected a folder; {shown(path)} is none")
    return found
