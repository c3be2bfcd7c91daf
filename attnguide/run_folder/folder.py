"""Locks a run folder, checks that a run may use it, and tidies it before a run is resumed.

Importing this needs no torch.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from attnguide.rows.samples import sample_to_dict
from attnguide.run_folder.files import make_folder, sweep_temporary
from attnguide.run_folder.made_with import CONFIG_FILE, MADE_WITH
from attnguide.run_folder.records import RECORDS_FILE, ROW_TABLES, finished_ids, settings_of
from attnguide.run_folder.tables import keep_rows
from attnguide.text.yaml12 import dump_yaml, yaml_value
from attnguide.types import Sample

LOCK_FILE = ".run.lock"
"""Lock file of a run folder; holds process id and host of its owner, and is free once that process ends."""

# ------------------------------------------------------------------------------------------------------------- the lock


class RunLock:
    """The lock of a run folder, which this process holds.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK_FILE
        self._identity = self._found()

    def check(self) -> None:
        """Check that the folder is still the one that was locked.

        Raises:
            FileNotFoundError: If the folder was removed or replaced.
        """
        if self._identity is None or self._found() != self._identity:
            raise FileNotFoundError(f"Folder {str(self._path.parent)!r} was removed while the run was writing to it")

    def _found(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found.st_dev, found.st_ino


@contextmanager
def locked_run(folder: str | Path) -> Iterator[RunLock]:
    """Lock a run folder for the block. One process of a run does so on behalf of all.

    The folder is made; if the block writes nothing, folder and lock file are removed again.

    Raises:
        ValueError: If another process holds the lock, or the folder cannot be made or written to.
    """
    folder = Path(folder)
    path = folder / LOCK_FILE
    lock = FileLock(path, timeout=0)
    try:
        made = make_folder(folder)
        is_new, before = not path.exists(), set(os.listdir(folder))
        holder = _holder(path)
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"Folder {str(folder)!r} is being written by {holder}; wait until that ends, or choose another folder."
        ) from error
    except OSError as error:
        raise ValueError(f"Folder {str(folder)!r} cannot be written to: {error.strerror or error}.") from error
    try:
        with suppress(OSError):  # the text is for error messages only
            path.write_text(f"{os.getpid()} {socket.gethostname()}\n")
        yield RunLock(folder)
    finally:
        with suppress(OSError):
            os.truncate(path, 0)
        if is_new:
            _leave_nothing(folder, before, made)
        lock.release()


def _holder(path: Path) -> str:
    """Process and host in a lock file, in words; ``another process`` if it has none."""
    try:
        pid, host = path.read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return "another process"
    return f"process {pid} on {host}"


def _leave_nothing(folder: Path, before: set[str], made: Sequence[Path]) -> None:
    """Remove a new lock file and the folders made for it, if nothing else was added to the folder."""
    with suppress(OSError):
        if set(os.listdir(folder)) - {LOCK_FILE} == before:
            (folder / LOCK_FILE).unlink()
            for path in reversed(made):
                path.rmdir()


def tidy(folder: str | Path) -> set[str]:
    """Clean a stopped run's folder for resuming: drops temporary files, lines of unfinished rows and duplicate lines.

    Call it with the folder locked.

    Returns:
        Ids of the finished rows, as :func:`~attnguide.run_folder.records.finished_ids` gives them.
    """
    folder = Path(folder)
    sweep_temporary(folder)
    finished = finished_ids(folder)
    for table, key in ROW_TABLES.items():
        keep_rows(folder / table, finished, key)
    return finished


# ---------------------------------------------------------------------------------------------------- the configuration


def config_text(config: Mapping[str, Any]) -> str:
    """A resolved configuration as YAML, in the order given."""
    plain = json.loads(json.dumps(config, default=str))
    return dump_yaml(plain)


def config_of(samples: Sequence[Sample]) -> dict[str, Any]:
    """Configuration of a run that is given by its rows only, in the form of a table that :mod:`attnguide.rows.tables` reads."""
    rows = []
    for sample in samples:
        try:
            rows.append({"methods": [], **sample_to_dict(sample)})  # explicit, since a table's default may be another method
        except ValueError:  # mask tensors and the like cannot be written: keep the settings of the record
            rows.append({key: value for key, value in settings_of(sample).items() if value not in (None, "")})
    return {"samples": rows}


def check_run_folder(
    folder: str | Path,
    config: Mapping[str, Any] | None = None,
    *,
    resume: bool = False,
    ignore: Collection[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """Check that a run can use a folder; writes nothing.

    Args:
        folder: The run folder; may be missing.
        config: Configuration of the new run; compared with the folder's own when resuming.
        resume: Whether a run in the folder is to be continued.
        ignore: Keys of ``config`` that may differ (loggers, devices).
        defaults: Values of keys that the folder's configuration lacks because an earlier version wrote it.

    Raises:
        ValueError: If the folder is a file or not writable, holds another run, or was made with another configuration.
    """
    folder = Path(folder)
    _check_writable(folder)
    held = [name for name in (CONFIG_FILE, RECORDS_FILE) if (folder / name).exists()]
    if held and not resume:
        raise ValueError(f"Folder {str(folder)!r} already holds a run ({held[0]}); resume it or choose another folder.")
    if resume and config is not None and (folder / CONFIG_FILE).exists():
        before = read_config(folder)
        now = yaml_value(config_text(config))
        before = {**(defaults or {}), **before}
        for key in sorted({*before, *now} - {MADE_WITH, *ignore}):
            if before.get(key) != now.get(key):
                at, old, new = _difference(key, before.get(key), now.get(key))
                raise ValueError(
                    f"Folder {str(folder)!r} holds a run with another {at!r} ({_short(old)}, now {_short(new)}); choose "
                    "another folder."
                )


def read_config(folder: str | Path) -> dict[str, Any]:
    """The configuration in ``config.yaml`` of a run folder.

    Raises:
        ValueError: If the file is no YAML mapping.
    """
    path = Path(folder) / CONFIG_FILE
    try:
        content = yaml_value(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: it is no YAML.") from error
    if not isinstance(content or {}, dict):
        raise ValueError(f"{path} is damaged: expected settings as 'name: value'; got {_short(content)}.")
    return content or {}


def _difference(key: str, before: Any, now: Any) -> tuple[str, Any, Any]:
    """Path of the first difference inside two values, with both values there."""
    if isinstance(before, dict) and isinstance(now, dict):
        inner = next(name for name in {**before, **now} if before.get(name) != now.get(name))
        return _difference(f"{key}.{inner}", before.get(inner), now.get(inner))
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        place = next(index for index, (old, new) in enumerate(zip(before, now, strict=True)) if old != new)
        return _difference(f"{key}[{place}]", before[place], now[place])
    return key, before, now


def _check_writable(folder: Path) -> None:
    existing = folder.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise ValueError(f"Folder {str(folder)!r} cannot be made: {str(existing)!r} is a file.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"Folder {str(folder)!r} is not writable.")


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
