"""Files written whole or not at all, and on the disk before anybody is told of them. Importing this needs no torch."""

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
"""What file systems answer that cannot sync a folder."""


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; when the block ends well it takes that place, else it vanishes.

    Parent folders are made. The file and its name are on the disk when this returns.
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
    """Write a file so that nobody ever sees half of it."""
    with replacing(path) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            _write_all(descriptor, content.encode() if isinstance(content, str) else content)
        finally:
            os.close(descriptor)


def write_picture(path: str | Path, picture: Image) -> None:
    """Write a picture as PNG, so that nobody ever sees half of it."""
    content = io.BytesIO()
    picture.save(content, format="PNG")
    write_atomic(path, content.getvalue())


def whole_size(path: str | Path) -> tuple[int, int] | None:
    """``(width, height)`` of a PNG whose every part is there and agrees with its checksum; ``None`` otherwise."""
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
    except (OSError, SyntaxError, ValueError):  # missing, empty, cut off, of other bytes
        return None


def append(path: str | Path, content: bytes) -> None:
    """Add to a file; if that fails (a full disk), the file is cut back to what it held before."""
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
    """Make a folder and its parents; those that were made, outermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in reversed(missing):
        _sync_folder(path.parent)
    return missing[::-1]


def sweep_temporary(folder: Path) -> list[Path]:
    """Remove what a killed process left of :func:`replacing`, in a folder and below it; links are not followed."""
    left = [Path(parent) / name for parent, _, names in os.walk(folder) for name in sorted(names) if _TEMPORARY.fullmatch(name)]
    for path in left:
        path.unlink(missing_ok=True)
    return left


def _write_all(descriptor: int, content: bytes) -> None:
    """Everything, or an error: one call may write less, say on a disk that is nearly full."""
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
    """Put names on the disk; Windows has no such thing."""
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
