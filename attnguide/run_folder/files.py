"""Atomic and durable file writing: a file appears whole or not at all, and is synced to disk. Importing this needs no torch."""

from __future__ import annotations

import errno
import io
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

_TEMPORARY = re.compile(r"\..{0,60}-[0-9a-f]{8}(\.[^.]*)?", re.DOTALL)
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)
"""Error numbers of file systems that cannot sync a folder."""


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it replaces ``path``, on an exception it is removed.

    Parent folders are made. File and folder entry are synced to disk before the block is left.
    """
    path = Path(path)
    make_folder(path.parent)
    temporary = path.with_name(f".{path.stem[:60]}-{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        _sync_file(temporary)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: str | Path, content: str | bytes) -> None:
    """Write a file atomically."""
    with replacing(path) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            _write_all(descriptor, content.encode() if isinstance(content, str) else content)
        finally:
            os.close(descriptor)


def write_picture(path: str | Path, picture: Image) -> None:
    """Write a picture as PNG, atomically."""
    content = io.BytesIO()
    picture.save(content, format="PNG")
    write_atomic(path, content.getvalue())


def whole_size(path: str | Path) -> tuple[int, int] | None:
    """``(width, height)`` of a PNG file that is complete and whose checksums agree; ``None`` otherwise."""
    from PIL import Image

    path = Path(path)
    try:
        with path.open("rb") as file:
            file.seek(-len(_PNG_END), io.SEEK_END)
            if file.read() != _PNG_END:
                return None
        with Image.open(path, formats=["PNG"]) as picture:
            picture.verify()
            return picture.size
    except (OSError, SyntaxError, ValueError):  # missing, empty, truncated or no PNG
        return None


def append(path: str | Path, content: bytes) -> None:
    """Append to a file and sync it; on failure (a full disk) the file is truncated to its former length."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        length = os.fstat(descriptor).st_size
        try:
            _write_all(descriptor, content)
            os.fsync(descriptor)
        except BaseException:
            os.ftruncate(descriptor, length)
            raise
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> list[Path]:
    """Make a folder and its parents; returns those that are new, outermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in reversed(missing):
        _sync_folder(path.parent)
    return missing[::-1]


def sweep_temporary(folder: Path) -> list[Path]:
    """Remove temporary files that a killed process left of :func:`replacing`, in a folder and below; returns their paths."""
    left = [Path(parent) / name for parent, _, names in os.walk(folder) for name in sorted(names) if _TEMPORARY.fullmatch(name)]
    for path in left:
        path.unlink(missing_ok=True)
    return left


def _write_all(descriptor: int, content: bytes) -> None:
    """Write all bytes or raise; a single ``os.write`` may write fewer, for instance on a nearly full disk."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """Sync a folder's entries to disk; does nothing on Windows, which has no such call."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)
