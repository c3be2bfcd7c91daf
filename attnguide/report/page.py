"""The page itself: pictures embedded, nothing fetched."""

from __future__ import annotations

import base64
import io
import re
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape
from PIL import Image

from attnguide.report.content import Row, inked_places, places, read_content
from attnguide.report.target import REPORT_FILE, check_target
from attnguide.run_folder.files import write_atomic
from attnguide.sheets.sheet import record_picture

_LARGE = 200_000
"""Bytes from which on a figure is embedded as JPEG."""

_TOLD = 5
"""Warnings of what could not be read; all of it stands on the page."""


def write_report(folder: str | Path, path: str | Path | None = None, *, limit: int = 200) -> Path:
    """Write a run folder's page: means with intervals, sheets and curves, every picture with its numbers, the configuration.

    Args:
        folder: Of a run, finished or not.
        path: The page; ``report.html`` in the folder when ``None``.
        limit: Most rows whose pictures are shown.

    Returns:
        Where it was written.

    Raises:
        ValueError: If the folder holds no run, or something else than an earlier page lies at ``path``.

    What cannot be read is named on the page, and in a warning each.
    """
    path = Path(folder) / REPORT_FILE if path is None else Path(path)
    check_target(path)
    write_atomic(path, report_page(folder, limit=limit))
    return path


def report_page(folder: str | Path, *, limit: int = 200) -> str:
    """The page as text; see :func:`write_report`."""
    folder = Path(folder)
    content = read_content(folder, limit=limit)
    pictures = _Pictures(folder, content.problems)
    text = _template().render(content=content, pictures=pictures, places=places, inked_places=inked_places)
    for problem in pictures.problems[:_TOLD]:
        warnings.warn(f"{folder}: {problem}", stacklevel=2)
    if len(pictures.problems) > _TOLD:
        warnings.warn(f"{folder}: {len(pictures.problems) - _TOLD} more things could not be read; see the page", stacklevel=2)
    return text


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("attnguide.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = _breakable
    return environment.get_template("page.html.jinja")


def _breakable(name: str) -> Markup:
    """A name that may be broken behind ``_`` and dots, so that tables stay narrow."""
    return Markup(re.sub(r"([_.])", r"\1<wbr>", str(escape(name))))


class _Pictures:
    """A run folder's pictures as data addresses; ``None`` for those that cannot be read, which are noted.

    Args:
        folder: The run's.
        problems: What else could not be read.
    """

    def __init__(self, folder: Path, problems: Sequence[str]) -> None:
        self.folder = folder
        self.problems = list(problems)

    def figure(self, path: Path) -> str | None:
        """A sheet or plot."""
        return self._read(path, lambda: _figure(path))

    def word_map(self, path: Path) -> str | None:
        """A word's attention over the picture."""
        return self._read(path, lambda: _jpeg(path))

    def picture(self, row: Row) -> str | None:
        """A row's picture with its regions drawn."""
        return None if row.picture is None else self._read(row.picture, lambda: _picture(self.folder, row))

    def _read(self, path: Path, read: Callable[[], str | None]) -> str | None:
        try:
            return read()
        except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
            self.problems.append(f"{path.relative_to(self.folder)}: not a picture that can be read ({type(error).__name__})")
            return None


def _figure(path: Path) -> str:
    """A file as a data address; large ones as JPEG."""
    if path.stat().st_size <= _LARGE:
        with Image.open(path) as file:
            file.verify()
        return _address(path.read_bytes(), "png")
    return _jpeg(path)


def _picture(folder: Path, row: Row) -> str | None:
    """A row's picture with its regions drawn."""
    drawn = record_picture(folder, row.record)
    return None if drawn is None else _encoded(drawn)


def _jpeg(path: Path) -> str:
    """A picture's file, smaller: a page has hundreds of them."""
    with Image.open(path) as file:
        return _encoded(file.convert("RGB"))


def _encoded(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "jpeg", quality=88)
    return _address(buffer.getvalue(), "jpeg")


def _address(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
